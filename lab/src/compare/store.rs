//! What the shops of one run share in Redis: stock, lock, and the table of orders.

use std::net::SocketAddr;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncConnectionConfig, Client, RedisResult};
use tokio::sync::Mutex;

use super::{Counter, Technique};

/// How long Redis may take to answer. Generous: what is compared isn't how designs fail without Redis.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The field of the hash that holds the stock, as in the incident's code.
pub(super) const FIELD: &str = "stock";

/// Names of what is shared.
pub(super) struct Keys {
    /// The stock, as a string.
    pub stock: String,
    /// The stock, as [`FIELD`] of a hash.
    pub info: String,
    /// The lock.
    pub lock: String,
    /// A list of buyers: one entry for each order that was created.
    pub orders: String,
}

/// A Redis server as the shops of one run see it.
pub struct Store {
    client: Client,
    /// Shared by all purchases of a process, as Java's Lettuce does it. Cheap to clone.
    shared: MultiplexedConnection,
    /// Connections that one purchase at a time has for itself.
    own: Mutex<Vec<MultiplexedConnection>>,
    pub(super) keys: Keys,
}

impl Store {
    /// Connects to the server at `url`. Keys begin with `prefix`.
    pub async fn connect(url: &str, prefix: &str) -> RedisResult<Self> {
        let client = Client::open(url)?;
        let shared = connect(&client).await?;
        let key = |what| format!("{prefix}:{what}");
        let keys = Keys {
            stock: key("stock"),
            info: key("info"),
            lock: key("lock"),
            orders: key("orders"),
        };
        Ok(Self { client, shared, own: Mutex::default(), keys })
    }

    /// The connection that all purchases share.
    pub(super) fn redis(&self) -> MultiplexedConnection {
        self.shared.clone()
    }

    /// A connection that nobody else uses until it is given back.
    pub(super) async fn take(&self) -> RedisResult<MultiplexedConnection> {
        let idle = self.own.lock().await.pop();
        match idle {
            Some(connection) => Ok(connection),
            None => connect(&self.client).await,
        }
    }

    /// Gives a connection back.
    pub(super) async fn give_back(&self, connection: MultiplexedConnection) {
        self.own.lock().await.push(connection);
    }

    /// Writes an order into the table of orders.
    pub(super) async fn create_order(&self, buyer: &str) -> RedisResult<()> {
        self.redis().rpush(&self.keys.orders, buyer).await
    }

    /// Puts `stock` units on offer.
    pub async fn open(&self, stock: u32) -> RedisResult<()> {
        let mut redis = self.redis();
        let () = redis.set(&self.keys.stock, stock).await?;
        redis.hset(&self.keys.info, FIELD, stock).await
    }

    /// The buyer of every order that was created, in that order.
    pub async fn orders(&self) -> RedisResult<Vec<String>> {
        self.redis().lrange(&self.keys.orders, 0, -1).await
    }

    /// The stock left by the counter that `technique` uses, if that is here. Negative where a design
    /// deducts first and asks then.
    pub async fn left(&self, technique: Technique) -> RedisResult<Option<i64>> {
        match technique.counter() {
            Counter::Text => self.redis().get(&self.keys.stock).await,
            Counter::Field => self.redis().hget(&self.keys.info, FIELD).await,
            Counter::Processes | Counter::Ledger => Ok(None),
        }
    }

    /// Deletes everything.
    pub async fn remove(&self) -> RedisResult<()> {
        let Keys { stock, info, lock, orders } = &self.keys;
        self.redis().del(&[stock, info, lock, orders]).await
    }

    /// How long one question and its answer take, the median of many.
    pub async fn round_trip(&self) -> RedisResult<Duration> {
        const ASKED: usize = 101;
        let mut took = Vec::with_capacity(ASKED);
        for _ in 0..ASKED {
            let begun = std::time::Instant::now();
            let _: String = redis::cmd("PING").query_async(&mut self.redis()).await?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        Ok(took[ASKED / 2])
    }
}

async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIME_LIMIT))
        .set_response_timeout(Some(TIME_LIMIT));
    client.get_multiplexed_async_connection_with_config(&limits).await
}

/// Host and port of the server at `url`, for a proxy to connect to. `None` if it isn't reached by plain
/// TCP.
pub fn address(url: &str) -> Option<String> {
    let url = redis::parse_redis_url(url).filter(|url| url.scheme() == "redis")?;
    Some(format!("{}:{}", url.host_str()?, url.port().unwrap_or(6379)))
}

/// `url` with `proxy` for its host and port.
pub fn through(url: &str, proxy: SocketAddr) -> Option<String> {
    let mut url = redis::parse_redis_url(url)?;
    url.set_ip_host(proxy.ip()).ok()?;
    url.set_port(Some(proxy.port())).ok()?;
    Some(url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leads_through_the_proxy_with_its_password_and_database() {
        let proxy: SocketAddr = "127.0.0.1:7000".parse().unwrap();
        for (url, to, through_it) in [
            ("redis://host/2", "host:6379", "redis://127.0.0.1:7000/2"),
            ("redis://:hush@10.0.0.1:1/0", "10.0.0.1:1", "redis://:hush@127.0.0.1:7000/0"),
        ] {
            assert_eq!(address(url).as_deref(), Some(to));
            assert_eq!(through(url, proxy).as_deref(), Some(through_it));
        }
        assert_eq!(address("rediss://host/"), None);
        assert_eq!(address("nonsense"), None);
    }
}
