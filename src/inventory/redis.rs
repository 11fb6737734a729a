//! The inventory on Redis: one script call for each sale of a batch, all in one pipeline.

mod holdings;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use chrono::{DateTime, Utc};
use deadpool_redis::{Connection, Manager, Pool, Runtime};
use futures_util::TryStreamExt;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncCommands, AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionInfo,
    IntoConnectionInfo, RedisError, RedisResult, Script, TlsCertificates, Value,
};
use secrecy::{ExposeSecret, SecretString};
use xxhash_rust::xxh3::Xxh3;

use super::{Amendment, Inventory, InventoryError, InventorySettings};
use crate::domain::decision::Hint;
use crate::domain::order::{Candidate, Eligibility, Order, SaleId};
use crate::domain::sale::SaleState;
use crate::tls::Tls;

/// [`Inventory`] on Redis 6.2 or newer. Redis must not evict keys (`maxmemory-policy noeviction`).
pub struct RedisInventory {
    pool: Pool,
    namespace: String,
    keep_after_close: Duration,
    deduct: Script,
    amend: Script,
}

/// The keys of one sale: its counters, the orders it has deducted for, and its buyers. The sale is their
/// hash tag, so that they live in one slot of a cluster.
type Keys = [String; 3];

/// How to connect to `url`.
fn secured(url: &str, tls: Tls) -> RedisResult<ConnectionInfo> {
    let server = url.into_connection_info()?;
    if tls.ca.is_none() && tls.client.is_none() {
        return Ok(server);
    }
    let client_tls = tls.client.map(|client| ClientTlsConfig {
        client_cert: client.certificate.into_bytes(),
        client_key: client.key.expose_secret().as_bytes().to_vec(),
    });
    let certificates = TlsCertificates { client_tls, root_cert: tls.ca.map(String::into_bytes) };
    Ok(Client::build_with_tls(server, certificates)?.get_connection_info().clone())
}

impl RedisInventory {
    /// An inventory at `url` with up to `connections` connections. Connects when it is first used.
    pub fn new(
        url: &SecretString,
        namespace: &str,
        settings: &InventorySettings,
        connections: usize,
        tls: Tls,
    ) -> Result<Self, InventoryError> {
        let timeout = settings.timeout;
        // Requests are small and each waits for its answer: Nagle's algorithm would hold them back.
        let tcp = TcpSettings::default().set_nodelay(true);
        let server = secured(url.expose_secret(), tls).map_err(unavailable)?.set_tcp_settings(tcp);
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        let manager = Manager::new_with_config(server, limits).map_err(unavailable)?;
        let pool = Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .recycle_timeout(Some(timeout))
            .build()
            .map_err(unavailable)?;
        Ok(Self {
            pool,
            namespace: namespace.to_owned(),
            keep_after_close: settings.keep_after_close,
            deduct: Script::new(include_str!("lua/deduct.lua")),
            amend: Script::new(include_str!("lua/amend.lua")),
        })
    }

    /// Bytes of Redis's memory that a sale takes, and the orders that it has deducted for.
    pub async fn usage(&self, sale: &SaleId) -> Result<(u64, u64), InventoryError> {
        let mut connection = self.connection().await?;
        let keys = self.keys(sale);
        let mut pipe = redis::pipe();
        for key in &keys {
            // Of every entry, not of a sample.
            pipe.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
        }
        pipe.scard(&keys[1]);
        let answers: Vec<Option<u64>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let orders = answers.last().copied().flatten().unwrap_or(0);
        let bytes = answers.iter().rev().skip(1).flatten().sum();
        Ok((bytes, orders))
    }

    /// The version of the server.
    pub async fn version(&self) -> Result<String, InventoryError> {
        let mut connection = self.connection().await?;
        let info: redis::InfoDict = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut connection)
            .await
            .map_err(unavailable)?;
        Ok(info.get("redis_version").unwrap_or_default())
    }

    /// Fails unless the script for hints runs: it is called for no order, with a name that no sale can have.
    pub async fn check(&self) -> Result<(), InventoryError> {
        let mut connection = self.connection().await?;
        let keys = self.keys("");
        let mut call = self.deduct.prepare_invoke();
        for key in &keys {
            call.key(key);
        }
        call.invoke_async::<Value>(&mut connection).await.map(drop).map_err(unavailable)
    }

    /// Deletes every key of the namespace.
    pub async fn remove(&self) -> Result<(), InventoryError> {
        let mut connection = self.connection().await?;
        let pattern = format!("{}:{{*", self.namespace);
        let found = connection.scan_match(pattern).await.map_err(unavailable)?;
        let keys: Vec<String> = found.try_collect().await.map_err(unavailable)?;
        for keys in keys.chunks(1000) {
            connection.unlink::<_, ()>(keys).await.map_err(unavailable)?;
        }
        Ok(())
    }

    fn keys(&self, sale: &(impl Display + ?Sized)) -> Keys {
        ["sale", "deducted", "buyers"].map(|what| format!("{}:{{{sale}}}:{what}", self.namespace))
    }

    async fn connection(&self) -> Result<Connection, InventoryError> {
        self.pool.get().await.map_err(unavailable)
    }

    /// Calls `script` once for each of `calls` in one pipeline. A script that the server does not have
    /// is loaded, and the calls that missed it, which did nothing, are repeated. Fails as a whole when
    /// the server cannot do its work; what is wrong with the keys of one sale is that call's error.
    async fn call(
        &self,
        script: &Script,
        calls: &[Cmd],
    ) -> Result<Vec<RedisResult<Value>>, InventoryError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        let results = call_on(&mut connection, script, calls).await.and_then(|results| {
            let mut errors = results.iter().filter_map(|result| result.as_ref().err());
            errors.find(|error| !is_of_keys(error)).cloned().map_or(Ok(results), Err)
        });
        results.map_err(|error| {
            // A connection that has failed is not used again, nor are the others when the server has
            // become a replica: its name or address may stand for another server by now.
            drop(Connection::take(connection));
            if error.to_string().contains("READONLY") {
                self.pool.retain(|_, _| false);
            }
            unavailable(error)
        })
    }

    /// Deletes what is held of sales whose keys are damaged, so that they are loaded again.
    async fn forget(&self, sales: &[&SaleId]) -> Result<(), InventoryError> {
        if sales.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        let mut pipe = redis::pipe();
        for sale in sales {
            pipe.unlink(&self.keys(sale)).ignore();
        }
        pipe.query_async(&mut connection).await.map_err(unavailable)
    }

    /// Amends sales, and loads those not held if so asked.
    async fn write(&self, amendments: &[Amendment], load: bool) -> Result<(), InventoryError> {
        let calls: Vec<Cmd> =
            amendments.iter().map(|amendment| self.amend_call(amendment, load)).collect();
        let results = self.call(&self.amend, &calls).await?;
        results.into_iter().try_for_each(|result| result.map(drop)).map_err(unavailable)
    }

    fn amend_call(&self, amendment: &Amendment, load: bool) -> Cmd {
        let Amendment { state, buyers, orders } = amendment;
        let sale = &state.sale;
        let mut call = evalsha(&self.amend, &self.keys(&sale.id));
        call.arg(if load { "1" } else { "" })
            .arg(state.version)
            .arg(state.sold)
            .arg(sale.stock)
            .arg(sale.per_user_limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(ms(sale.opens_at))
            .arg(ms(sale.closes_at))
            .arg(if sale.verification { "1" } else { "" })
            .arg(if state.paused.is_some() { "1" } else { "" })
            .arg(self.expires_at(sale.closes_at))
            .arg(buyers.len());
        for (user, units) in buyers {
            call.arg(user.as_str()).arg(units);
        }
        for (order, granted) in orders {
            call.arg(if *granted { "1" } else { "" }).arg(digest(order));
        }
        call
    }

    /// When the keys of a sale may go: a while after it closes, or never.
    fn expires_at(&self, closes_at: Option<DateTime<Utc>>) -> i64 {
        closes_at
            .map_or(0, |closes| (closes.max(Utc::now()) + self.keep_after_close).timestamp_millis())
    }
}

async fn call_on(
    connection: &mut Connection,
    script: &Script,
    calls: &[Cmd],
) -> RedisResult<Vec<RedisResult<Value>>> {
    let mut results = pipeline(connection, calls.iter()).await?;
    let missed: Vec<usize> = (0..results.len()).filter(|&i| is_no_script(&results[i])).collect();
    if !missed.is_empty() {
        script.load_async(connection).await?;
        let again = pipeline(connection, missed.iter().map(|&i| &calls[i])).await?;
        for (index, result) in missed.into_iter().zip(again) {
            results[index] = result;
        }
    }
    Ok(results)
}

async fn pipeline(
    connection: &mut Connection,
    calls: impl Iterator<Item = &Cmd>,
) -> RedisResult<Vec<RedisResult<Value>>> {
    let mut pipe = redis::pipe();
    pipe.ignore_errors();
    for call in calls {
        pipe.add_command(call.clone());
    }
    pipe.query_async(connection).await
}

fn is_no_script(result: &RedisResult<Value>) -> bool {
    result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT"))
}

/// Whether an error is about what a sale's keys hold, a wrong type or no number, and not about the
/// server. Redis 6.2 reports every error within a script as `ERR`, with the original in its text.
fn is_of_keys(error: &RedisError) -> bool {
    const OF_THE_SERVER: [&str; 6] =
        ["READONLY", "OOM", "LOADING", "MISCONF", "MASTERDOWN", "NOREPLICAS"];
    let text = error.to_string();
    matches!(error.code(), Some("WRONGTYPE" | "ERR"))
        && !OF_THE_SERVER.iter().any(|code| text.contains(code))
}

fn evalsha(script: &Script, keys: &Keys) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(keys.len()).arg(keys);
    call
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> InventoryError {
    InventoryError(error.into())
}

fn ms(time: Option<DateTime<Utc>>) -> String {
    time.map(|time| time.timestamp_millis().to_string()).unwrap_or_default()
}

/// What Redis knows an order by: 64 bits of its id and contents in eleven characters, so that an order
/// takes no more memory for a long id. Should two orders of a sale ever share it, a hint is wrong.
fn digest(order: &Order) -> String {
    let mut hash = Xxh3::new();
    for part in [order.id.as_str(), order.user_id.as_str()] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.update(&order.quantity.get().to_be_bytes());
    BASE64_STANDARD_NO_PAD.encode(hash.digest().to_be_bytes())
}

fn deduct_call(
    script: &Script,
    keys: &Keys,
    orders: &[&Candidate],
    indexes: &[usize],
    max_age: Duration,
) -> Cmd {
    let mut call = evalsha(script, keys);
    call.arg(u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX));
    for &index in indexes {
        let Candidate { order, submitted_at, eligibility } = orders[index];
        let eligibility = match eligibility {
            Eligibility::Unchecked => "",
            Eligibility::Eligible => "+",
            Eligibility::Denied => "-",
        };
        call.arg(digest(order))
            .arg(order.user_id.as_str())
            .arg(order.quantity.get())
            .arg(ms(*submitted_at))
            .arg(eligibility);
    }
    call
}

/// The answer of `deduct.lua` for `orders` orders; nothing when the sale is not held.
fn hints(answer: Value, orders: usize) -> Result<Option<Vec<Hint>>, InventoryError> {
    let Some(letters) = redis::from_redis_value::<Option<String>>(answer).map_err(unavailable)?
    else {
        return Ok(None);
    };
    let hints = letters.bytes().map(|letter| match letter {
        b'g' => Some(Hint::Granted),
        b'r' => Some(Hint::Refused),
        _ => None,
    });
    match hints.collect::<Option<Vec<_>>>() {
        Some(hints) if hints.len() == orders => Ok(Some(hints)),
        _ => Err(unavailable(format!("deduct.lua answered {letters:?} for {orders} orders"))),
    }
}

#[async_trait]
impl Inventory for RedisInventory {
    async fn propose(
        &self,
        orders: &[&Candidate],
        max_age: Duration,
    ) -> Result<Vec<Option<Hint>>, InventoryError> {
        let mut groups: BTreeMap<&SaleId, Vec<usize>> = BTreeMap::new();
        for (index, candidate) in orders.iter().enumerate() {
            groups.entry(&candidate.order.sale_id).or_default().push(index);
        }
        let calls: Vec<Cmd> = groups
            .iter()
            .map(|(sale, indexes)| {
                deduct_call(&self.deduct, &self.keys(sale), orders, indexes, max_age)
            })
            .collect();
        let results = self.call(&self.deduct, &calls).await?;
        let mut answers = vec![None; orders.len()];
        let mut damaged = Vec::new();
        for ((sale, indexes), result) in groups.into_iter().zip(results) {
            match result {
                Ok(answer) => {
                    for (index, hint) in
                        indexes.iter().zip(hints(answer, indexes.len())?.into_iter().flatten())
                    {
                        answers[*index] = Some(hint);
                    }
                }
                Err(error) => {
                    tracing::warn!(%sale, %error, "the sale's keys in Redis are damaged: loading it again");
                    damaged.push(sale);
                }
            }
        }
        self.forget(&damaged).await?;
        Ok(answers)
    }

    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError> {
        self.write(amendments, false).await
    }

    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        self.write(&sales.iter().cloned().map(Amendment::of).collect::<Vec<_>>(), true).await
    }
}
