//! What processes run: workers and the API.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Adapters, App, Records};
use crate::api::auth::TokenVerifier;
use crate::api::{Api, ApiSettings, Contracts, Monitor, Registry};
use crate::broker::topology::Topology;
use crate::clock;
use crate::config::Settings;
use crate::sales::cache::SaleCache;
use crate::shards::ShardMap;
use crate::status::{Depths, StatusBoard, WorkerHealth, tell, watch_depths};
use crate::webhook_sender::WebhookSender;
use crate::worker::{Worker, WorkerError};

/// How often a worker process counts what waits in the queues. There may be many of them; an API process looks each
/// second.
const LOOK_SELDOM: Duration = Duration::from_secs(10);
/// How long a worker that has ended may take to tell so.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted. The kernel may allow fewer (net.core.somaxconn).
const BACKLOG: u32 = 4096;

impl App {
    /// A worker.
    pub fn worker(&self, adapters: &Adapters) -> Worker {
        let Adapters { broker, inventory, records, verifier } = adapters.clone();
        let Records { ledger, shard_map, .. } = records;
        Worker {
            broker,
            inventory,
            ledger,
            verifier,
            shard_map,
            metrics: self.metrics.clone(),
            traces: self.traces().clone(),
            health: self.health.clone(),
            clock: clock::system(),
            options: self.settings.worker_options(),
        }
    }

    /// Runs a worker until `stop` and its drain, and tells meanwhile how it does.
    pub fn run_worker(
        &self,
        adapters: &Adapters,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), WorkerError>> + Send + use<> {
        let ended = CancellationToken::new();
        let (metrics, health) = (self.metrics.clone(), self.health.clone());
        let Adapters { broker, records, .. } = adapters.clone();
        let (unheard, _) = watch::channel(Depths::default());
        let (map, counted) = (records.shard_map, metrics.broker.clone());
        let looking = watch_depths(broker.clone(), map, counted, LOOK_SELDOM, unheard);
        let telling = tell(broker, metrics, health, ended.clone());
        let working = self.worker(adapters).run(stop);
        async move {
            let _looking = AbortOnDropHandle::new(tokio::spawn(looking));
            let telling = AbortOnDropHandle::new(tokio::spawn(telling));
            let worked = working.await;
            ended.cancel();
            // Without a broker the last word is not waited for.
            let _ = tokio::time::timeout(LAST_WORD, telling).await;
            worked
        }
    }

    /// The HTTP API.
    pub async fn api(&self, adapters: &Adapters) -> Result<Api> {
        let Adapters { broker, records, .. } = adapters.clone();
        let (settings, token_verifier) = (self.settings.api.clone(), self.token_verifier()?);
        let has_user_service = !self.settings.verification.url.is_empty();
        let ledger = records.ledger.clone();
        // Only here: each process that has one gets every sale's news, which a worker has no use for.
        let sale_cache = Arc::new(SaleCache::start(ledger.clone(), broker.as_ref()).await?);
        let (shard_map, metrics) = (records.shard_map.clone(), self.metrics.clone());
        let status = StatusBoard::start(broker.clone(), shard_map, metrics).await?;
        let operations = records.clone().operations(broker.clone());
        Ok(Api {
            settings,
            has_user_service,
            token_verifier,
            broker,
            contracts: self.contracts(),
            ledger,
            sale_cache,
            operations,
            metrics: self.metrics.clone(),
            traces: self.traces().clone(),
            worker_health: self.health.clone(),
            status: Arc::new(status),
            webhooks: Registry {
                store: records.webhooks,
                settings: self.settings.webhooks.clone(),
                has_feed: self.settings.feed.enabled,
            },
        })
    }

    /// A sender of webhooks.
    pub fn webhook_sender(
        &self,
        adapters: &Adapters,
        health: Arc<WorkerHealth>,
    ) -> Result<WebhookSender> {
        if !self.settings.feed.enabled {
            bail!(
                "webhooks are sent from the feed: set feed.enabled (FLOODGATE_FEED__ENABLED) for all processes"
            );
        }
        let Adapters { broker, records, .. } = adapters.clone();
        Ok(WebhookSender {
            queue: records.webhook_queue,
            broker,
            books: records.books,
            settings: self.settings.webhooks.clone(),
            source: Topology::new(&self.settings.namespace).event_source(),
            metrics: self.metrics.clone(),
            health,
        })
    }

    /// Told whether the process works; shown by [`monitor`](Self::monitor).
    pub fn health(&self) -> &Arc<WorkerHealth> {
        &self.health
    }

    /// What clients, producers and subscribers may rely on.
    pub fn contracts(&self) -> Contracts {
        let Settings { namespace, intent, .. } = &*self.settings;
        Contracts {
            topology: Topology::new(namespace),
            limits: intent.limits(),
            delivery_limit: intent.delivery_limit,
        }
    }

    /// What tells who calls the API, if there is a key.
    pub(super) fn token_verifier(&self) -> Result<Option<TokenVerifier>> {
        TokenVerifier::from_settings(&self.settings.api).context("settings: api")
    }

    /// What all workers say of themselves. Needs the broker only.
    pub async fn status_board(&self) -> Result<StatusBoard> {
        if self.settings.is_embedded() {
            bail!("an embedded deployment is one process; its live page shows how it does");
        }
        let broker = self.broker().await?;
        let shard_map: Option<Arc<dyn ShardMap>> = match self.postgres() {
            Ok(ledger) => Some(Arc::new(ledger)),
            Err(_) => None,
        };
        Ok(StatusBoard::start(broker, shard_map, self.metrics.clone()).await?)
    }

    /// What a worker process serves besides, and where; `None`: nothing.
    pub fn monitor(&self) -> Result<Option<(Monitor, TcpListener)>> {
        let Some(address) = self.settings.worker.listen else { return Ok(None) };
        let listener = match listen(address) {
            Ok(listener) => listener,
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                tracing::warn!(
                    "{address} is in use: no metrics of this worker; FLOODGATE_WORKER__LISTEN names another address"
                );
                return Ok(None);
            }
            Err(error) => {
                let error = Err(error);
                return error.with_context(|| {
                    format!("can't listen on {address} (FLOODGATE_WORKER__LISTEN)")
                });
            }
        };
        let (metrics, health) = (self.metrics.clone(), self.health.clone());
        // No page of another site has any business there.
        let settings = ApiSettings { cors_origins: Vec::new(), ..self.settings.api.clone() };
        Ok(Some((Monitor { settings, metrics, health }, listener)))
    }

    /// Where the API is to listen. Without a key it answers every client, so then it must be where only
    /// this machine can reach it.
    pub fn listener(&self, api: &Api) -> Result<TcpListener> {
        let address = self.settings.api.listen;
        if api.token_verifier.is_none() && !address.ip().is_loopback() {
            bail!(
                "settings: api.listen is {address}, which others can reach, and no key is configured; \
                 set FLOODGATE_API__JWT_SECRET, FLOODGATE_API__JWT_PUBLIC_KEY or FLOODGATE_API__JWT_JWKS, \
                 or listen on 127.0.0.1"
            );
        }
        listen(address)
            .with_context(|| format!("can't listen on {address} (FLOODGATE_API__LISTEN)"))
    }
}

/// Listens on `address`, with room for all who connect when a sale opens. The runtime's own way of
/// listening leaves room for 128 who are not accepted yet; a client that comes then tries again a second later
/// (RFC 6298 section 2). Must be called within the runtime.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As TcpListener::bind does, so that a restart needs not wait for old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
