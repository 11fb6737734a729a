//! The one file of an embedded deployment: ledger and queues in SQLite.
//!
//! SQLite takes one writer at a time. All of a process share one connection for that, each waiting
//! for its turn in order, so that they never meet in SQLite's own waiting, which only tries again
//! now and then. That is left for other processes that have the same file open.

mod lock;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::migrations;
pub(crate) use lock::Lock;
use lock::private_file;

/// What a file of version 0.1 has to be told.
const OTHER_VERSION: &str = "it was made by floodgate 0.1, which knows orders by their order id \
    alone; drain 0.1 and let this version begin with a new file (see CHANGELOG.md)";
/// How long to wait for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read: the consumer, the ledger's lookups, and one to spare.
const READERS: u32 = 3;
/// Pages of the log after which they are carried over into the file, 16 MiB: each carrying over
/// waits for the disk, and pages that are written again before it are carried once.
const CHECKPOINT_PAGES: &str = "4096";
/// What the log is cut to when it has grown larger, in bytes.
const LOG_LIMIT_BYTES: &str = "67108864";
/// Memory for pages of each connection, in KiB; SQLite takes it as a negative number.
const WRITER_CACHE_KIB: &str = "-32768";
/// Rows that a query may be ahead of its reader.
const ROWS_AHEAD: usize = 512;

/// A file with a ledger and queues. Clones are handles on the same connections.
#[derive(Debug, Clone)]
pub struct SqliteFile {
    path: Arc<Path>,
    readers: SqlitePool,
    writer: Writer,
}

/// The connection that writes, between two transactions.
#[derive(Debug, Clone)]
struct Writer {
    options: SqliteConnectOptions,
    /// Empty while a transaction has the connection, and after one that has failed.
    idle: Arc<Mutex<Option<SqliteConnection>>>,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("can't open {}: {source}", path.display())]
pub struct OpenError {
    path: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// What a transaction survives once it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survives {
    /// The end of the process, however sudden, but not that of the machine. Costs no waiting for
    /// the disk.
    Kill,
    /// Also the end of the machine.
    PowerLoss,
}

impl SqliteFile {
    /// Opens the file at `path`, makes it if it isn't there, and brings it to this version's
    /// schema.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        Self::connect(path).await.map_err(|source| OpenError { path: path.to_owned(), source })
    }

    async fn connect(path: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        let writing = options
            .clone()
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("journal_size_limit", LOG_LIMIT_BYTES)
            .pragma("cache_size", WRITER_CACHE_KIB);
        let new = writing.clone().create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
        let turn = lock_path(path, "open");
        // The lock may take a while to get.
        let runtime = tokio::runtime::Handle::current();
        let migrating = move || runtime.block_on(migrated(turn, &new));
        let writer = tokio::task::spawn_blocking(migrating).await??;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            // There is no link that could be broken.
            .test_before_acquire(false)
            .connect_lazy_with(options.pragma("query_only", "on"));
        let writer = Writer { options: writing, idle: Arc::new(Mutex::new(Some(writer))) };
        Ok(Self { path: path.into(), readers, writer })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connections to read with, outside of any transaction.
    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Begins a transaction that writes; waits for those before it.
    pub(crate) async fn begin(&self, survives: Survives) -> Result<Writing, sqlx::Error> {
        let mut idle = self.writer.idle.clone().lock_owned().await;
        let mut connection = match idle.take() {
            Some(connection) => connection,
            None => self.writer.options.connect().await?,
        };
        if survives == Survives::Kill {
            sqlx::query("pragma synchronous = normal").execute(&mut connection).await?;
        }
        sqlx::query("begin immediate").execute(&mut connection).await?;
        Ok(Writing { connection, idle, survives })
    }

    /// Takes the lock called `name` that goes with the file, or says that another process has it,
    /// or another handle.
    pub(crate) fn lock(&self, name: &str) -> io::Result<Option<Lock>> {
        Lock::take(lock_path(&self.path, name))
    }

    /// Closes every connection. The last process that does it carries the log over into the file, which
    /// then holds everything (SQLite's page on write-ahead logging, "the WAL file").
    pub async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = self.writer.idle.lock().await.take()
            && let Err(error) = writer.close().await
        {
            tracing::warn!(%error, "the file was not closed in order; nothing is lost");
        }
    }
}

/// A connection to a file that has this version's schema. Processes that open the same file at the
/// same time migrate it one after the other. Blocks.
async fn migrated(
    turn: PathBuf,
    options: &SqliteConnectOptions,
) -> Result<SqliteConnection, Box<dyn std::error::Error + Send + Sync>> {
    let turn = Lock::wait(turn)?;
    // What SQLite puts beside it has the same permissions. A file that is there is not opened: closing it
    // again would give back every lock that SQLite has on it in this process (fcntl_locking(2)).
    if !fs::exists(options.get_filename())? {
        private_file(options.get_filename())?;
    }
    let mut connection = options.connect().await?;
    migrations::sqlite().run(&mut connection).await.map_err(|error| match error {
        MigrateError::VersionMismatch(_) => OTHER_VERSION.into(),
        other => Box::<dyn std::error::Error + Send + Sync>::from(other),
    })?;
    drop(turn);
    Ok(connection)
}

fn lock_path(path: &Path, name: &str) -> PathBuf {
    let mut file = path.as_os_str().to_owned();
    file.push(format!(".{name}.lock"));
    file.into()
}

/// A transaction that writes.
///
/// Dropped before it is committed, in the middle of whatever it was doing, it takes its connection
/// with it, which rolls it back; the next transaction makes a new one.
pub(crate) struct Writing {
    connection: SqliteConnection,
    idle: OwnedMutexGuard<Option<SqliteConnection>>,
    survives: Survives,
}

impl Writing {
    /// To run statements on.
    pub(crate) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Makes what was written last. After an error it is unknown whether it does.
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        let Self { mut connection, mut idle, survives } = self;
        sqlx::query("commit").execute(&mut connection).await?;
        if survives == Survives::Kill {
            sqlx::query("pragma synchronous = full").execute(&mut connection).await?;
        }
        *idle = Some(connection);
        Ok(())
    }
}

/// What an error of SQLite means to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no room on the disk.
    Full,
    /// The same call may succeed later.
    Passes,
    /// The same call will fail again: what it wants to store is not accepted.
    Stays,
}

impl Trouble {
    /// Sorts an error by its primary result code, SQLite's page on result codes. A file that is
    /// damaged or out of reach says nothing about what was to be stored: an operator may repair it.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        const FULL: i32 = 13;
        const TOO_BIG: i32 = 18;
        const CONSTRAINT: i32 = 19;
        const MISMATCH: i32 = 20;
        match error {
            sqlx::Error::Database(database) => {
                let code = database.code().and_then(|code| code.parse::<i32>().ok());
                match code.map(|extended| extended & 0xff) {
                    Some(FULL) => Self::Full,
                    Some(TOO_BIG | CONSTRAINT | MISMATCH) => Self::Stays,
                    _ => Self::Passes,
                }
            }
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => Self::Stays,
            _ => Self::Passes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn file(folder: &tempfile::TempDir) -> SqliteFile {
        SqliteFile::open(folder.path().join("f.db")).await.unwrap()
    }

    async fn sales(file: &SqliteFile) -> i64 {
        sqlx::query_scalar("select count(*) from sales").fetch_one(file.readers()).await.unwrap()
    }

    async fn insert(writing: &mut Writing, id: &str) -> Result<(), sqlx::Error> {
        let query = sqlx::query("insert into sales (sale_id, stock) values (?1, 1)").bind(id);
        query.execute(writing.connection()).await.map(drop)
    }

    #[tokio::test]
    async fn a_transaction_that_is_dropped_leaves_nothing_and_the_next_one_works() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder).await;
        for survives in [Survives::Kill, Survives::PowerLoss] {
            let mut writing = file.begin(survives).await.unwrap();
            insert(&mut writing, "dropped").await.unwrap();
            drop(writing);
            drop(file.begin(survives).await.unwrap());
            assert_eq!(sales(&file).await, 0);
        }
        let mut writing = file.begin(Survives::Kill).await.unwrap();
        insert(&mut writing, "s").await.unwrap();
        writing.commit().await.unwrap();
        assert_eq!(sales(&file).await, 1);
        let mut writing = file.begin(Survives::PowerLoss).await.unwrap();
        let error = insert(&mut writing, "s").await.unwrap_err();
        assert_eq!(Trouble::of(&error), Trouble::Stays);
        let level: i64 =
            sqlx::query_scalar("pragma synchronous").fetch_one(writing.connection()).await.unwrap();
        assert_eq!(level, 2, "FULL again");
    }

    #[tokio::test]
    async fn many_open_a_new_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let path = folder.path().join("f.db");
            opening.spawn(async move { SqliteFile::open(path).await.map(drop) });
        }
        while let Some(opened) = opening.join_next().await {
            opened.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn opening_it_again_keeps_the_locks_on_it() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let first = file(&folder).await;
        let inode = fs::metadata(first.path()).unwrap().ino();
        let held = || {
            // As proc_locks(5) has it: ... POSIX ADVISORY READ PROCESS MAJOR:MINOR:INODE ...
            let locks = fs::read_to_string("/proc/locks").unwrap();
            let ours = [format!(" {} ", std::process::id()), format!(":{inode} ")];
            locks
                .lines()
                .any(|lock| lock.contains("POSIX") && ours.iter().all(|part| lock.contains(part)))
        };
        assert!(held());
        let second = file(&folder).await;
        drop(second);
        assert!(held());
    }

    #[tokio::test]
    async fn it_is_private_and_alone_once_it_is_closed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
            entries
                .map(|entry| {
                    let mode = entry.metadata().unwrap().permissions().mode();
                    assert_eq!(mode & 0o777, 0o600, "{entry:?}");
                    entry.file_name()
                })
                .collect::<Vec<_>>()
        };
        let file = file(&folder).await;
        let lock = file.lock("queue").unwrap();
        sales(&file).await;
        assert_eq!(names().len(), 4, "with its log, the log's index and the lock: {:?}", names());
        drop(lock);
        file.close().await;
        assert_eq!(names(), ["f.db"]);
    }

    #[tokio::test]
    async fn a_lock_is_held_once() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (file(&folder).await, file(&folder).await);
        let held = one.lock("queue").unwrap();
        assert!(held.is_some() && other.lock("queue").unwrap().is_none());
        drop(held);
        assert!(other.lock("queue").unwrap().is_some());
    }
}
