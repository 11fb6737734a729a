//! The composition root: the only place that chooses adapters.

mod check;
mod processes;
pub mod temp_deployment;

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use tokio::sync::OnceCell;

use crate::broker::topology::Topology;
use crate::broker::{Broker, EmbeddedBroker, Queue, RabbitBroker};
use crate::clock;
use crate::config::{Server, Settings};
use crate::inventory::{Holdings, Inventory, RedisInventory};
use crate::ledger::{Archive, Books, Erasure, Ledger, PostgresLedger, SqliteLedger};
use crate::metrics::Metrics;
use crate::operator_log::{Journal, OperatorLog};
use crate::sales::operations::Operations;
use crate::shards::{Division, Roster, ShardMap};
use crate::sqlite::SqliteFile;
use crate::status::WorkerHealth;
use crate::traces::{Places, Traces};
use crate::verification::{HttpVerifier, Verifier};
use crate::webhooks::{WebhookQueue, Webhooks};

pub use check::Finding;
use check::of_server;
pub use processes::listen;

/// Connections to Redis besides one for each batch in flight: one to propose, and one to spare.
const SPARE_REDIS_CONNECTIONS: usize = 2;
/// Builds the adapters of a deployment from its settings.
pub struct App {
    settings: Box<Settings>,
    metrics: Arc<Metrics>,
    traces: OnceLock<Traces>,
    health: Arc<WorkerHealth>,
    embedded: OnceCell<Embedded>,
}

/// The adapters of an embedded deployment: one of each for the whole process. There is no inventory: with
/// one writer on one file a hint saves nothing.
struct Embedded {
    file: SqliteFile,
    broker: Arc<EmbeddedBroker>,
    ledger: Arc<SqliteLedger>,
}

impl App {
    /// An application with `settings`.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Box::new(settings),
            metrics: Arc::default(),
            traces: OnceLock::new(),
            health: Arc::default(),
            embedded: OnceCell::new(),
        }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What everything that it builds counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Where workers and the API record what becomes of orders.
    pub fn traces(&self) -> &Traces {
        self.traces.get_or_init(|| {
            let names = Topology::new(&self.settings.namespace);
            let places = Places {
                system: if self.settings.is_embedded() { "floodgate" } else { "rabbitmq" },
                intents: names.queue(&Queue::Intents),
                events: names.events_exchange(),
                namespace: self.settings.namespace.clone(),
            };
            Traces::start(&self.settings.traces, places).unwrap_or_else(|error| {
                tracing::error!(%error, "traces are off: traces.otlp_url can't be used");
                Traces::off()
            })
        })
    }

    /// The adapters that need no servers, made when they are first asked for.
    async fn embedded(&self) -> Result<&Embedded> {
        let Self { settings, metrics, .. } = self;
        let opening = async || {
            let file = SqliteFile::open(&settings.embedded.file).await?;
            let bounds = settings.bounds();
            Ok(Embedded {
                broker: Arc::new(EmbeddedBroker::new(
                    file.clone(),
                    &settings.namespace,
                    bounds,
                    metrics,
                )),
                ledger: Arc::new(SqliteLedger::new(file.clone(), clock::system(), metrics)),
                file,
            })
        };
        self.embedded.get_or_try_init(opening).await
    }

    /// Closes what must be closed in order, when everything else has ended.
    pub async fn close(&self) {
        if let Some(Embedded { file, .. }) = self.embedded.get() {
            file.close().await;
        }
        if let Some(traces) = self.traces.get() {
            traces.stop().await;
        }
    }

    /// Brings the ledger's database to this version's schema.
    pub async fn migrate(&self) -> Result<()> {
        if self.settings.is_embedded() {
            // A file is brought up to date whenever it is opened.
            return self.embedded().await.map(drop);
        }
        self.settings.require(&[Server::Database])?;
        let migrated = PostgresLedger::migrate(&self.settings.database_url).await;
        of_server(Server::Database, migrated).context("could not migrate")
    }

    /// Distributes the ledger, which is up to date, over the nodes of its database.
    pub async fn distribute(&self) -> Result<()> {
        self.settings.require(&[Server::Database])?;
        let distributed = PostgresLedger::distribute(&self.settings.database_url).await;
        of_server(Server::Database, distributed).context("could not distribute the ledger")
    }

    /// The ledger, checked to be there.
    pub async fn ledger(&self) -> Result<Arc<dyn Ledger>> {
        Ok(self.records().await?.ledger)
    }

    /// The ledger and the operators' log, which are in one database, checked to be there.
    pub async fn records(&self) -> Result<Records> {
        if self.settings.is_embedded() {
            let ledger = self.embedded().await?.ledger.clone();
            return Ok(Records {
                ledger: ledger.clone(),
                operator_log: ledger.clone(),
                webhooks: ledger.clone(),
                webhook_queue: ledger.clone(),
                books: ledger,
                shard_map: None,
            });
        }
        let ledger = self.postgres()?;
        of_server(Server::Database, ledger.check().await)?;
        let ledger = Arc::new(ledger);
        let shard_map: Option<Arc<dyn ShardMap>> = Some(ledger.clone());
        Ok(Records {
            ledger: ledger.clone(),
            operator_log: ledger.clone(),
            webhooks: ledger.clone(),
            webhook_queue: ledger.clone(),
            books: ledger,
            shard_map,
        })
    }

    /// What an audit looks at: the ledger, checked to be there, and what the inventory holds, if there is one.
    pub async fn audited(&self) -> Result<Audited> {
        if self.settings.is_embedded() {
            let ledger = self.embedded().await?.ledger.clone();
            let (books, archive) = (ledger.clone(), ledger.clone());
            return Ok(Audited { ledger, books, archive, holdings: None });
        }
        let ledger = self.postgres()?;
        of_server(Server::Database, ledger.check().await)?;
        let ledger = Arc::new(ledger);
        let holdings = Some(Arc::new(self.redis(SPARE_REDIS_CONNECTIONS)?) as Arc<dyn Holdings>);
        let (books, archive) = (ledger.clone(), ledger.clone());
        Ok(Audited { ledger, books, archive, holdings })
    }

    /// What keeps decisions elsewhere, and replaces users' ids: the ledger, checked to be there, and what else has them.
    pub async fn retention(&self) -> Result<Retention> {
        if self.settings.is_embedded() {
            let ledger = self.embedded().await?.ledger.clone();
            let journal = Journal::new(Some(ledger.clone()));
            let (books, archive, erasure) = (ledger.clone(), ledger.clone(), ledger.clone());
            return Ok(Retention { ledger, books, archive, erasure, holdings: None, journal });
        }
        let ledger = self.postgres()?;
        of_server(Server::Database, ledger.check().await)?;
        let ledger = Arc::new(ledger);
        let holdings = Some(Arc::new(self.redis(SPARE_REDIS_CONNECTIONS)?) as Arc<dyn Holdings>);
        let journal = Journal::new(Some(ledger.clone()));
        let (books, archive, erasure) = (ledger.clone(), ledger.clone(), ledger.clone());
        Ok(Retention { ledger, books, archive, erasure, holdings, journal })
    }

    /// How the intake is divided.
    pub async fn division(&self) -> Result<Division> {
        match self.records().await?.shard_map {
            Some(map) => Ok(map.roster().await?.division),
            None => Ok(Division::NONE),
        }
    }

    /// How the intake is divided, and the workers that run.
    pub async fn roster(&self) -> Result<Roster> {
        match self.records().await?.shard_map {
            Some(map) => Ok(map.roster().await?),
            None => bail!("an embedded deployment has one queue, which can't be divided"),
        }
    }

    /// Divides the intake into `shards`; returns into how many it was divided before.
    pub async fn divide(&self, shards: u16) -> Result<u16> {
        let before = self.roster().await?.division;
        let (map, broker) = (self.postgres()?, self.rabbitmq()?);
        // First, so that every queue that gets orders is consumed.
        map.divide(shards).await?;
        let divided = broker.divide(before.most, shards).await;
        if divided.is_err() {
            map.divide(before.shards).await?;
        }
        of_server(Server::Amqp, divided)?;
        Ok(before.shards)
    }

    /// Where acts are written down that need no ledger: in the operators' log, if a database is
    /// configured. It may be unavailable.
    pub async fn journal(&self) -> Result<Journal> {
        let log: Arc<dyn OperatorLog> = if self.settings.is_embedded() {
            self.embedded().await?.ledger.clone()
        } else if self.settings.require(&[Server::Database]).is_ok() {
            Arc::new(self.postgres()?)
        } else {
            return Ok(Journal::new(None));
        };
        Ok(Journal::new(Some(log)))
    }

    /// The broker, checked to be there.
    pub async fn broker(&self) -> Result<Arc<dyn Broker>> {
        if self.settings.is_embedded() {
            return Ok(self.embedded().await?.broker.clone());
        }
        let broker = self.rabbitmq()?;
        of_server(Server::Amqp, broker.check().await)?;
        Ok(Arc::new(broker))
    }

    /// The inventory, if there is one. It may be unavailable: the worker knows what to do then.
    pub fn inventory(&self) -> Result<Option<Arc<dyn Inventory>>> {
        if self.settings.is_embedded() {
            return Ok(None);
        }
        let connections = self.settings.worker.batches_in_flight + SPARE_REDIS_CONNECTIONS;
        Ok(Some(Arc::new(self.redis(connections)?)))
    }

    fn rabbitmq(&self) -> Result<RabbitBroker> {
        let settings = &self.settings;
        settings.require(&[Server::Amqp])?;
        let (url, tls, bounds) = (&settings.amqp_url, settings.amqp_tls()?, settings.bounds());
        let (namespace, settings) = (&settings.namespace, &settings.broker);
        Ok(RabbitBroker::new(url, tls, namespace, settings, bounds, &self.metrics)?)
    }

    /// With up to `connections`.
    fn redis(&self, connections: usize) -> Result<RedisInventory> {
        let settings = &self.settings;
        settings.require(&[Server::Redis])?;
        let (url, tls, namespace) =
            (&settings.redis_url, settings.redis_tls()?, &settings.namespace);
        let inventory = RedisInventory::new(url, namespace, &settings.inventory, connections, tls);
        of_server(Server::Redis, inventory)
    }

    fn postgres(&self) -> Result<PostgresLedger> {
        self.settings.require(&[Server::Database])?;
        let Settings { database_url, ledger, .. } = &*self.settings;
        Ok(PostgresLedger::new(database_url, ledger, &self.metrics)?)
    }

    /// All servers, or none.
    fn require_all(&self) -> Result<()> {
        if !self.settings.is_embedded() {
            self.settings.require(&[Server::Amqp, Server::Redis, Server::Database])?;
        }
        Ok(())
    }

    /// What long-running commands work with, checked to be there.
    pub async fn adapters(&self) -> Result<Adapters> {
        self.require_all()?;
        if self.settings.is_embedded() {
            let file = self.settings.embedded.file.display();
            tracing::warn!(%file, "no server is configured: running embedded");
        }
        let (broker, inventory, records) =
            (self.broker().await?, self.inventory()?, self.records().await?);
        Ok(Adapters { broker, inventory, records, verifier: self.verifier()? })
    }

    /// What checks users, if anything does.
    pub fn verifier(&self) -> Result<Option<Arc<dyn Verifier>>> {
        let settings = &self.settings.verification;
        if settings.url.is_empty() {
            return Ok(None);
        }
        let verifier = HttpVerifier::new(settings);
        Ok(Some(Arc::new(verifier.context("user service (FLOODGATE_VERIFICATION__URL)")?)))
    }

    /// What operators may do to sales.
    pub async fn operations(&self) -> Result<Operations> {
        self.require_all()?;
        let records = self.records().await?;
        Ok(records.operations(self.broker().await?))
    }
}

/// What an audit looks at.
#[derive(Clone)]
pub struct Audited {
    /// Sales.
    pub ledger: Arc<dyn Ledger>,
    /// The same ledger's books.
    pub books: Arc<dyn Books>,
    /// The same ledger's archives.
    pub archive: Arc<dyn Archive>,
    /// What the inventory holds.
    pub holdings: Option<Arc<dyn Holdings>>,
}

/// What has decisions and users' ids, and what moves and replaces them.
#[derive(Clone)]
pub struct Retention {
    /// Sales and decisions.
    pub ledger: Arc<dyn Ledger>,
    /// The same ledger's books.
    pub books: Arc<dyn Books>,
    /// The same ledger's archives.
    pub archive: Arc<dyn Archive>,
    /// What replaces users in the same ledger.
    pub erasure: Arc<dyn Erasure>,
    /// What the inventory holds.
    pub holdings: Option<Arc<dyn Holdings>>,
    /// Where it is written down what was done.
    pub journal: Journal,
}

/// What is kept in the database.
#[derive(Clone)]
pub struct Records {
    /// The ledger.
    pub ledger: Arc<dyn Ledger>,
    /// The operators' log.
    pub operator_log: Arc<dyn OperatorLog>,
    /// Webhooks, for those who register them.
    pub webhooks: Arc<dyn Webhooks>,
    /// Webhooks, for those who send.
    pub webhook_queue: Arc<dyn WebhookQueue>,
    /// The ledger's books.
    pub books: Arc<dyn Books>,
    /// Which worker takes which shard of the intake; embedded the intake is not divided.
    pub shard_map: Option<Arc<dyn ShardMap>>,
}

impl Records {
    /// Where to write down what operators do.
    pub fn journal(&self) -> Journal {
        Journal::new(Some(self.operator_log.clone()))
    }

    fn operations(self, broker: Arc<dyn Broker>) -> Operations {
        let journal = self.journal();
        Operations { ledger: self.ledger, broker, journal }
    }
}

/// The ports, each with its adapter.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Adapters {
    pub broker: Arc<dyn Broker>,
    pub inventory: Option<Arc<dyn Inventory>>,
    pub records: Records,
    pub verifier: Option<Arc<dyn Verifier>>,
}
