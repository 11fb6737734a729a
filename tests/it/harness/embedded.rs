//! A deployment without servers: everything in this process and in one file.

use std::path::PathBuf;
use std::sync::Arc;

use floodgate::inventory::{Inventory, LocalInventory};
use floodgate::ledger::{Ledger, SqliteLedger};
use floodgate::sqlite::SqliteFile;
use tempfile::TempDir;

/// The embedded adapters on a file of their own.
pub struct Embedded {
    pub inventory: Arc<dyn Inventory>,
    pub ledger: Arc<dyn Ledger>,
    pub file: SqliteFile,
    /// Goes with the file in it.
    folder: TempDir,
}

impl Embedded {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = open(folder.path().join("floodgate.db")).await;
        let ledger = Arc::new(SqliteLedger::new(file.clone()));
        Self { inventory: Arc::new(LocalInventory::new()), ledger, file, folder }
    }
}

/// Another handle on the file at `path`, as another process would have.
pub async fn open(path: PathBuf) -> SqliteFile {
    SqliteFile::open(path).await.expect("a file")
}
