//! A deployment without servers: everything in this process and in one file.

use std::path::PathBuf;
use std::sync::Arc;

use floodgate::app::{Records, Retention};
use floodgate::broker::{Bounds, Broker, Deliveries, EmbeddedBroker, Queue, Topic};
use floodgate::clock;
use floodgate::config::Settings;
use floodgate::ledger::{Ledger, SqliteLedger};
use floodgate::metrics::Metrics;
use floodgate::operator_log::{Journal, OperatorLog};
use floodgate::sqlite::SqliteFile;
use floodgate::traces::Traces;
use floodgate::worker::Worker;
use tempfile::TempDir;

/// How often a message may come back.
pub const DELIVERY_LIMIT: u32 = 3;
const BOUNDS: Bounds = Bounds {
    delivery_limit: DELIVERY_LIMIT,
    max_body_bytes: 16 << 20,
    prefetch_bytes: 16 << 30,
    feed: None,
};

/// What the names of its queues begin with.
pub const NAMESPACE: &str = "test";
const FILE: &str = "floodgate.db";

/// The embedded adapters on a file of their own.
pub struct Embedded {
    pub broker: Arc<dyn Broker>,
    pub ledger: Arc<dyn Ledger>,
    pub operator_log: Arc<dyn OperatorLog>,
    pub records: Records,
    pub retention: Retention,
    pub metrics: Arc<Metrics>,
    folder: Arc<TempDir>,
}

impl Embedded {
    pub async fn new() -> Self {
        Self::open(Arc::new(tempfile::tempdir().expect("a folder"))).await
    }

    async fn open(folder: Arc<TempDir>) -> Self {
        let path: PathBuf = folder.path().join(FILE);
        let file = SqliteFile::open(&path).await.expect("a file");
        let metrics = Arc::new(Metrics::new());
        let ledger = Arc::new(SqliteLedger::new(file.clone(), clock::system(), &metrics));
        let broker = Arc::new(EmbeddedBroker::new(file, NAMESPACE, BOUNDS, &metrics));
        let records = Records {
            ledger: ledger.clone(),
            operator_log: ledger.clone(),
            webhooks: ledger.clone(),
            webhook_queue: ledger.clone(),
            books: ledger.clone(),
            shard_map: None,
        };
        let retention = Retention {
            ledger: ledger.clone(),
            books: ledger.clone(),
            archive: ledger.clone(),
            erasure: ledger.clone(),
            holdings: None,
            journal: Journal::new(Some(ledger.clone())),
        };
        Self { broker, operator_log: ledger.clone(), ledger, records, retention, metrics, folder }
    }

    /// The same file, as another process has it.
    pub async fn other_process(&self) -> Self {
        Self::open(self.folder.clone()).await
    }

    /// The same file after a sudden end: nothing is settled any more, nor forgotten in order.
    pub async fn crash(self) -> Self {
        let folder = self.folder.clone();
        drop(self);
        Self::open(folder).await
    }

    /// Every event of an order.
    pub async fn events(&self) -> Deliveries {
        let queue = Queue::Subscriber("events".into());
        self.broker.subscribe(queue, &[Topic::Events("order.#")], 5000).await.expect("subscribe")
    }

    /// Where everything is.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    pub fn worker(&self) -> Worker {
        Worker {
            broker: self.broker.clone(),
            inventory: None,
            ledger: self.ledger.clone(),
            verifier: None,
            shard_map: None,
            metrics: self.metrics.clone(),
            traces: Traces::off(),
            health: Arc::default(),
            clock: clock::system(),
            options: Settings::load(None).expect("settings").worker_options(),
        }
    }
}
