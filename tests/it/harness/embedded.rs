//! A deployment without servers: everything in this process and in one file.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::Utc;
use floodgate::broker::{Broker, EmbeddedBroker};
use floodgate::config::Settings;
use floodgate::inventory::{Inventory, LocalInventory};
use floodgate::ledger::{Ledger, SqliteLedger};
use floodgate::sqlite::SqliteFile;
use floodgate::watch::SaleWatch;
use floodgate::worker::Worker;
use tempfile::TempDir;

/// How often a message may come back.
pub const DELIVERY_LIMIT: u32 = 3;

/// The embedded adapters on a file of their own.
pub struct Embedded {
    pub broker: Arc<dyn Broker>,
    pub inventory: Arc<dyn Inventory>,
    pub ledger: Arc<dyn Ledger>,
    folder: Arc<TempDir>,
}

impl Embedded {
    pub async fn new() -> Self {
        Self::open(Arc::new(tempfile::tempdir().expect("a folder"))).await
    }

    async fn open(folder: Arc<TempDir>) -> Self {
        let path: PathBuf = folder.path().join("floodgate.db");
        let file = SqliteFile::open(&path).await.expect("a file");
        let ledger = Arc::new(SqliteLedger::new(file.clone()));
        let broker = Arc::new(EmbeddedBroker::new(file, "test", DELIVERY_LIMIT));
        Self { broker, inventory: Arc::new(LocalInventory::new()), ledger, folder }
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

    pub async fn worker(&self) -> Worker {
        let (ledger, inventory) = (self.ledger.clone(), self.inventory.clone());
        let watch = SaleWatch::start(ledger, inventory, self.broker.as_ref()).await;
        Worker {
            broker: self.broker.clone(),
            inventory: self.inventory.clone(),
            ledger: self.ledger.clone(),
            verifier: None,
            watch: Arc::new(watch.expect("watch")),
            clock: Arc::new(Utc::now),
            settings: Settings::load(None).expect("settings"),
        }
    }
}
