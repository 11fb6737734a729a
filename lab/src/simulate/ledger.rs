//! A ledger in memory: a database that locks rows, as far as the recipe of a transaction needs one.

mod connection;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floodgate::domain::decision::Decision;
use floodgate::domain::order::{OrderKey, SaleId, UserId};
use floodgate::domain::sale::{Announcement, Restock, Sale, SaleState};
use floodgate::ledger::{Change, Changed, LedgerError};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(super) use self::connection::Connection;
use super::world::World;

/// A transaction that stands still for longer has ended (`idle_in_transaction_session_timeout`).
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// The database itself.
pub(super) struct Database {
    world: Arc<World>,
    tables: Mutex<Tables>,
    /// A lock was let go.
    unlocked: Notify,
}

#[derive(Default)]
struct Tables {
    sales: BTreeMap<SaleId, SaleState>,
    units: BTreeMap<(SaleId, UserId), u32>,
    decisions: BTreeMap<OrderKey, Decision>,
    announcements: Vec<(Announcement, bool)>,
    restocks: BTreeMap<(SaleId, String), Restock>,
    /// Which transaction has each sale locked, and each decision written and not committed.
    locks: BTreeMap<Row, u64>,
    /// When each open transaction was last heard of.
    open: BTreeMap<u64, Duration>,
    next: u64,
    history: Vec<Committed>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Sale(SaleId),
    Decision(OrderKey),
}

/// What was committed, in its order, for the auditor.
#[derive(Debug, Clone)]
pub(super) enum Committed {
    /// The decisions of a batch.
    Batch(Vec<Decision>),
    /// A sale was opened or changed.
    Sale(SaleState),
}

/// Why a statement fails.
#[derive(Debug)]
pub(super) enum Failure {
    Unavailable,
    Deadlock,
    Undecidable,
}

impl From<Failure> for LedgerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Undecidable => Self::Permanent("the simulated ledger refuses a value".into()),
            other => Self::Transient(format!("simulated: {other:?}").into()),
        }
    }
}

impl Database {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world, tables: Mutex::default(), unlocked: Notify::new() }
    }

    pub(super) fn decision(&self, key: &OrderKey) -> Option<Decision> {
        self.tables.lock().decisions.get(key).cloned()
    }

    pub(super) fn open(&self, sale: Sale) {
        let mut tables = self.tables.lock();
        let state = SaleState::opened(sale);
        tables.history.push(Committed::Sale(state.clone()));
        tables.sales.insert(state.sale.id.clone(), state);
    }

    /// What was committed so far, in its order, and what is stored now.
    pub(super) fn history(&self) -> (Vec<Committed>, Vec<SaleState>) {
        let tables = self.tables.lock();
        (tables.history.clone(), tables.sales.values().cloned().collect())
    }

    /// Changes a sale as an operator does.
    pub(super) async fn change(&self, sale: &SaleId, change: &Change) {
        let id = self.begin();
        if self.lock(id, &Row::Sale(sale.clone())).await.is_ok() {
            let mut tables = self.tables.lock();
            let key = match change {
                Change::Restock { adjustment_id, .. } => adjustment_id.to_string(),
                _ => String::new(),
            };
            let first = tables.restocks.get(&(sale.clone(), key.clone())).cloned();
            if let Some(mut state) = tables.sales.get(sale).cloned() {
                let changed = change.apply(&mut state, first);
                self.world.note(|| format!("{change:?} {}", changed.is_new()));
                if changed.is_new() {
                    tables
                        .announcements
                        .extend(changed.owed().into_iter().map(|owed| (owed, false)));
                    if let Changed::Done { restock: Some(restock), .. } = changed {
                        tables.restocks.insert((sale.clone(), key), restock);
                    }
                    tables.history.push(Committed::Sale(state.clone()));
                    tables.sales.insert(sale.clone(), state);
                }
            }
        }
        self.end(id);
    }

    fn begin(&self) -> u64 {
        let mut tables = self.tables.lock();
        tables.next += 1;
        let id = tables.next;
        tables.open.insert(id, self.world.age());
        id
    }

    /// Lets go of what a transaction has locked.
    fn end(&self, id: u64) {
        let mut tables = self.tables.lock();
        tables.locks.retain(|_, holder| *holder != id);
        tables.open.remove(&id);
        self.unlocked.notify_waiters();
    }

    /// Waits for a lock. A holder that stands still loses its own.
    async fn lock(&self, id: u64, row: &Row) -> Result<(), Failure> {
        loop {
            let unlocked = self.unlocked.notified();
            {
                let mut tables = self.tables.lock();
                let now = self.world.age();
                let holder = tables.locks.get(row).copied().filter(|holder| *holder != id);
                let Some(holder) = holder else {
                    tables.locks.insert(row.clone(), id);
                    return Ok(());
                };
                let heard = tables.open.get(&holder).copied().unwrap_or_default();
                if now.saturating_sub(heard) > IDLE_LIMIT {
                    self.world.note(|| format!("transaction {holder} stood still and is ended"));
                    tables.locks.retain(|_, of| *of != holder);
                    tables.open.remove(&holder);
                    continue;
                }
                // While it waits it is not idle.
                if let Some(heard) = tables.open.get_mut(&id) {
                    *heard = now;
                }
            }
            tokio::select! {
                biased;
                () = unlocked => {}
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }
}
