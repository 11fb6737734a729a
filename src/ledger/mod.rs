//! The ledger's port: where decisions become final.

mod postgres;
mod sqlite;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::decision::Decision;
use crate::order::{AdjustmentId, OrderKey, Quantity, SaleId};
use crate::sale::{Restock, Sale, SaleState, SoldOut};

pub use postgres::PostgresLedger;
pub use sqlite::SqliteLedger;

/// The store with the final word on every order.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Opens sales. A sale that is open already keeps its stock and what it has sold, whatever the
    /// definition says. Gives one answer for each sale, in order.
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError>;

    /// Changes a sale. Safe to repeat.
    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError>;

    /// The named sales that exist, or all of them, by sale id.
    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError>;

    /// Records a batch of proposed decisions, given in queue order, all or none of them. Recording
    /// a batch again gives the same answers.
    ///
    /// The order ids of a batch must be distinct, and its sales must exist: a proposed `created`
    /// for a sale that does not is a permanent error.
    async fn record(&self, proposals: &[Proposed<'_>]) -> Result<Recording, LedgerError>;

    /// The decisions of orders, one answer for each order, in order. `None`: the ledger has no
    /// decision for this order id in this sale.
    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError>;
}

/// What an operator may do to a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Put more units on offer, once for each adjustment id.
    Restock {
        /// Names the adjustment.
        adjustment_id: AdjustmentId,
        /// Units to add.
        units: Quantity,
        /// When, should it be new.
        at: DateTime<Utc>,
    },
    /// End the sale for orders submitted at `at` or later. A sale never closes later than it did
    /// before, nor before it opens.
    Close {
        /// When.
        at: DateTime<Utc>,
    },
    /// Have its users checked before they get a unit, or sell without checks. What is decided
    /// already stays.
    Verify {
        /// Whether users are checked from now on.
        on: bool,
    },
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is done, now or earlier.
    Done {
        /// The sale as it is now.
        state: SaleState,
        /// The restock as it was first recorded, if it was one.
        restock: Option<Restock>,
    },
    /// The adjustment id was used before, for this other restock.
    Conflict(Restock),
    /// The ledger has no such sale.
    UnknownSale,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// One answer for each proposal, in order.
    pub answers: Vec<Recorded>,
    /// Sales that the batch proposes created orders for and that have no unit left now. A sale that
    /// sells out is in the answer to the batch that did it, and to every repeat of that batch.
    pub sold_out: Vec<SoldOut>,
}

/// What became of a request to open a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It is new.
    Opened,
    /// It was open with the same definition.
    Unchanged,
    /// It was open with another definition, which stands.
    Differs(SaleState),
}

/// A decision to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct Proposed<'a> {
    /// The proposal.
    pub decision: &'a Decision,
    /// When the order counts as submitted; decides whether the sale was open.
    pub submitted_at: DateTime<Utc>,
    /// The order was probably recorded before. Only a hint: it changes the cost, not the answer.
    pub repeat: bool,
}

/// The ledger's answer to one proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// The proposal was new and is now final.
    AsProposed,
    /// Another decision stands.
    Instead {
        /// The decision that is final. Its contents differ from the proposal's when the order id
        /// was used before for something else.
        decision: Decision,
        /// It was recorded by an earlier call, not refused by this one.
        known: bool,
        /// Units that the sale of the proposal has sold.
        sold: u32,
    },
}

/// Why the ledger gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Whether anything was recorded is unknown; the same call may succeed later.
    #[error("ledger unavailable: {0}")]
    Transient(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The same call will fail again; nothing was recorded.
    #[error("ledger refused: {0}")]
    Permanent(#[source] Box<dyn std::error::Error + Send + Sync>),
}
