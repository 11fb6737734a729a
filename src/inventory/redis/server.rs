//! Redis as its URL has it: one server, the primary that Sentinels know, or a cluster.

use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, Runtime};
use futures_util::TryStreamExt;
use futures_util::future::{join_all, select_ok};
use parking_lot::Mutex;
use redis::aio::ConnectionLike;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncCommands, AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr,
    ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, RedisResult,
    TlsCertificates, TlsMode, Value,
};
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;
use url::Url;

use crate::hosts;
use crate::inventory::InventoryError;
use crate::tls::Tls;

use super::unavailable;

/// What is behind the URL.
pub(super) enum Server {
    /// One server.
    One(Pool),
    /// The server that Sentinels say is the primary.
    Watched(Watched),
    /// A cluster. One connection, which is to be cloned, has one to each node; a pool of them would ask every
    /// primary before each use, and wait for one that is down.
    Cluster(Box<ClusterClient>, OnceCell<ClusterConnection>),
}

/// A primary with its Sentinels.
pub(super) struct Watched {
    /// Asked all at once: one that is cut off does not answer.
    sentinels: Vec<tokio::sync::Mutex<SentinelClient>>,
    limits: Limits,
    /// Connections to the one that was the primary when they were last asked.
    primary: Mutex<Option<Pool>>,
}

/// Of connections.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub connections: usize,
    pub timeout: Duration,
}

/// A connection to the server, or to every node of the cluster.
pub(super) enum Link {
    Server(Connection),
    Cluster(ClusterConnection),
}

impl Server {
    /// What is at `url`: with the parameter `sentinel` its hosts are Sentinels that watch the primary of that name, with
    /// several hosts or with `cluster=true` they belong to a cluster.
    pub(super) fn at(url: &str, limits: Limits, tls: Tls) -> RedisResult<Self> {
        let urls = hosts::each(url);
        let parameter = |name: &str| {
            let url: Option<Url> = urls.first().and_then(|url| url.parse().ok());
            let found = url.and_then(|url| {
                url.query_pairs()
                    .find(|(given, _)| given == name)
                    .map(|(_, value)| value.into_owned())
            });
            found.unwrap_or_default()
        };
        let servers = urls.iter().map(|url| url.as_str().into_connection_info());
        let servers: Vec<ConnectionInfo> = servers.collect::<Result<_, _>>()?;
        let certificates = certificates(tls);
        let primary = parameter("sentinel");
        if !primary.is_empty() {
            return Watched::by(servers, &primary, limits, certificates.as_ref())
                .map(Self::Watched);
        }
        if servers.len() > 1 || parameter("cluster") == "true" {
            return cluster(servers, limits, certificates);
        }
        let Some(server) = servers.into_iter().next() else { unreachable!("a URL names a host") };
        let server = match certificates {
            Some(certificates) => {
                Client::build_with_tls(server, certificates)?.get_connection_info().clone()
            }
            None => server,
        };
        pool(server, limits).map(Self::One)
    }

    pub(super) async fn connection(&self) -> Result<Link, InventoryError> {
        match self {
            Self::One(pool) => pool.get().await.map(Link::Server).map_err(unavailable),
            Self::Watched(watched) => {
                let pool = watched.primary().await?;
                pool.get().await.map(Link::Server).map_err(|error| {
                    watched.lost();
                    unavailable(error)
                })
            }
            Self::Cluster(client, connection) => {
                let connection = connection.get_or_try_init(|| client.get_async_connection());
                connection.await.cloned().map(Link::Cluster).map_err(unavailable)
            }
        }
    }

    /// A connection has failed. It is not used again, nor are the others when the server has become a replica: its
    /// name or address may stand for another server by now.
    pub(super) fn failed(&self, link: Link, error: &RedisError) {
        if let Link::Server(connection) = link {
            drop(Connection::take(connection));
        }
        match self {
            Self::One(pool) if error.to_string().contains("READONLY") => {
                pool.retain(|_, _| false);
            }
            Self::Watched(watched) => watched.lost(),
            Self::One(_) | Self::Cluster(..) => {}
        }
    }
}

impl Watched {
    fn by(
        sentinels: Vec<ConnectionInfo>,
        primary: &str,
        limits: Limits,
        certificates: Option<&TlsCertificates>,
    ) -> RedisResult<Self> {
        let watching = |sentinel: ConnectionInfo| {
            let server = sentinel.redis_settings();
            let kind = SentinelServerType::Master;
            let mut client = SentinelClientBuilder::new([sentinel.addr().clone()], primary, kind)?
                .set_client_to_redis_db(server.db())
                .set_client_to_redis_tcp_settings(tcp())
                .set_client_to_sentinel_tcp_settings(tcp());
            if let Some(username) = server.username() {
                client = client.set_client_to_redis_username(username);
            }
            if let Some(password) = server.password() {
                client = client.set_client_to_redis_password(password);
            }
            if let ConnectionAddr::TcpTls { .. } = sentinel.addr() {
                client = client.set_client_to_redis_tls_mode(TlsMode::Secure);
            }
            if let Some(certificates) = certificates {
                client = client
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates.clone());
            }
            client.build().map(tokio::sync::Mutex::new)
        };
        let sentinels = sentinels.into_iter().map(watching).collect::<Result<_, _>>()?;
        Ok(Self { sentinels, limits, primary: Mutex::default() })
    }

    async fn primary(&self) -> Result<Pool, InventoryError> {
        if let Some(pool) = &*self.primary.lock() {
            return Ok(pool.clone());
        }
        let asking = self
            .sentinels
            .iter()
            .map(|sentinel| Box::pin(async { sentinel.lock().await.async_get_client().await }));
        let answer = tokio::time::timeout(self.limits.timeout, select_ok(asking)).await;
        let (client, _) = answer.map_err(unavailable)?.map_err(unavailable)?;
        let server = client.get_connection_info().clone();
        let pool = pool(server, self.limits).map_err(unavailable)?;
        *self.primary.lock() = Some(pool.clone());
        Ok(pool)
    }

    /// Has the Sentinels asked again.
    fn lost(&self) {
        *self.primary.lock() = None;
    }
}

impl Link {
    /// Does each of `calls`, and says what came of each. Those of different keys may go to different servers.
    pub(super) async fn each(
        &mut self,
        calls: impl IntoIterator<Item = Cmd>,
    ) -> RedisResult<Vec<RedisResult<Value>>> {
        match self {
            Self::Server(connection) => {
                let mut pipe = redis::pipe();
                pipe.ignore_errors();
                for call in calls {
                    pipe.add_command(call);
                }
                pipe.query_async(connection).await
            }
            Self::Cluster(connection) => {
                let calls = calls.into_iter().map(|call| {
                    let mut connection = connection.clone();
                    async move { call.query_async(&mut connection).await }
                });
                Ok(join_all(calls).await)
            }
        }
    }

    /// What one server answers to a command without keys.
    pub(super) async fn any(&mut self, command: Cmd) -> RedisResult<Value> {
        match self {
            Self::Server(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => {
                let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
                connection.route_command(command, random).await
            }
        }
    }

    /// The keys that match `pattern`.
    pub(super) async fn keys(&mut self, pattern: &str) -> RedisResult<Vec<String>> {
        match self {
            Self::Server(connection) => connection.scan_match(pattern).await?.try_collect().await,
            Self::Cluster(connection) => {
                let mut keys = Vec::new();
                let everywhere =
                    RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                let first = connection.route_command(scan(0, pattern), everywhere).await?;
                let first: Vec<(String, (u64, Vec<String>))> = redis::from_redis_value(first)?;
                for (node, (mut cursor, found)) in first {
                    keys.extend(found);
                    let Some((host, port)) = node.rsplit_once(':') else { continue };
                    let port = port.parse().map_err(|_| {
                        RedisError::from((
                            ErrorKind::UnexpectedReturnType,
                            "the address of a node has no port",
                        ))
                    })?;
                    while cursor != 0 {
                        let node = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port };
                        let more = connection
                            .route_command(scan(cursor, pattern), RoutingInfo::SingleNode(node))
                            .await?;
                        let (next, found): (u64, Vec<String>) = redis::from_redis_value(more)?;
                        keys.extend(found);
                        cursor = next;
                    }
                }
                Ok(keys)
            }
        }
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

fn scan(cursor: u64, pattern: &str) -> Cmd {
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
    scan
}

/// Requests are small and each waits for its answer: Nagle's algorithm would hold them back.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn pool(server: ConnectionInfo, limits: Limits) -> RedisResult<Pool> {
    let timeout = Some(limits.timeout);
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout);
    let manager = Manager::new_with_config(server.set_tcp_settings(tcp()), config)?;
    let pool = Pool::builder(manager)
        .max_size(limits.connections)
        .runtime(Runtime::Tokio1)
        .wait_timeout(timeout)
        .create_timeout(timeout)
        .recycle_timeout(timeout)
        .build();
    pool.map_err(|_| RedisError::from((ErrorKind::InvalidClientConfig, "the pool has no runtime")))
}

fn cluster(
    nodes: Vec<ConnectionInfo>,
    limits: Limits,
    certificates: Option<TlsCertificates>,
) -> RedisResult<Server> {
    let mut cluster = ClusterClientBuilder::new(nodes)
        .connection_timeout(limits.timeout)
        .response_timeout(limits.timeout)
        .tcp_settings(tcp());
    if let Some(certificates) = certificates {
        cluster = cluster.certs(certificates);
    }
    Ok(Server::Cluster(Box::new(cluster.build()?), OnceCell::new()))
}

fn certificates(tls: Tls) -> Option<TlsCertificates> {
    if tls.ca.is_none() && tls.client.is_none() {
        return None;
    }
    let client_tls = tls.client.map(|client| ClientTlsConfig {
        client_cert: client.certificate.into_bytes(),
        client_key: client.key.expose_secret().as_bytes().to_vec(),
    });
    Some(TlsCertificates { client_tls, root_cert: tls.ca.map(String::into_bytes) })
}
