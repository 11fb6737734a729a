//! The ledger's port: where decisions become final.

mod archive;
mod archived_units;
mod archiving;
mod batch;
mod books;
mod changes;
mod erasing;
mod erasure;
pub(crate) mod keys;
mod operator_log;
mod packed;
mod postgres;
pub mod recipe;
mod row;
mod rows;
mod sqlite;
mod statements;
mod webhooks;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, serde_as};

use crate::domain::decision::{Decision, Hint};
use crate::domain::order::{AdjustmentId, Candidate, OrderId, OrderKey, Quantity, SaleId, UserId};
use crate::domain::rules::Answer;
use crate::domain::sale::{Announcement, PauseMode, Restock, Sale, SaleState, Watermark};

pub use archive::{
    Archive, ArchiveRecord, ArchiveStage, ArchivedOrders, NotArchivable, archivable,
};
pub use erasure::{Erasure, KeptOfUser};
pub use postgres::{PostgresLedger, UNLOGGED};
pub use sqlite::SqliteLedger;

/// The store that makes every decision final.
#[async_trait]
pub trait Ledger: Outbox + ArchivedOrders {
    /// Opens sales. A sale that is open already keeps its stock and what it has sold, whatever the
    /// definition says. Gives one answer for each sale, in order.
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError>;

    /// Changes a sale. Safe to repeat.
    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError>;

    /// The named sales that exist, or all of them, by sale id.
    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError>;

    /// Decides a batch of orders, given in queue order, by the [rule](crate::domain::rules), and stores the
    /// new decisions, of each sale all or none. The hints change how long that takes and never an answer.
    /// Deciding a batch again gives the same decisions.
    async fn decide(
        &self,
        orders: &[Proposed<'_>],
        max_age: Duration,
    ) -> Result<Decided, LedgerError>;

    /// The decisions of orders, one answer for each key, in order.
    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError>;
}

/// What subscribers are owed: stored with the change of the sale that it tells of, so that a crash
/// between the two cannot lose it.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Announcements of these sales, or of all, that are not published as far as is known: those of a sale in
    /// their order, at most [`MAX_ANNOUNCEMENTS`].
    async fn unpublished(&self, sales: Option<&[SaleId]>)
    -> Result<Vec<Announcement>, LedgerError>;

    /// Announcements are published, and owed no more.
    async fn published(&self, announcements: &[Announcement]) -> Result<(), LedgerError>;
}

/// The ledger's books, for an audit: its tables checked against each other, with nothing of floodgate but the
/// rule of what they mean.
#[async_trait]
pub trait Books: Send + Sync {
    /// Balances the books of a sale, or of all, as they are at one moment. Takes the database's memory, not
    /// this process's, whatever their size.
    async fn balance(&self, sale: Option<&SaleId>) -> Result<Balance, LedgerError>;

    /// Decisions of a sale by order id, those after `after`, at most `limit`.
    async fn decided(
        &self,
        sale: &SaleId,
        after: Option<&OrderId>,
        limit: u32,
    ) -> Result<Vec<Decision>, LedgerError>;

    /// Units of buyers of a sale with a limit, 0 for those who have none.
    async fn units(
        &self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, LedgerError>;
}

/// The most discrepancies that a book tells of; one more says that there are more.
pub const MAX_DISCREPANCIES: usize = 20;

/// What the ledger's books come to.
#[derive(Debug)]
pub struct Balance {
    /// Sales looked at.
    pub sales: u64,
    /// Decisions looked at.
    pub decisions: u64,
    /// What does not balance, by book.
    pub discrepancies: Vec<Discrepancy>,
}

/// Two things that should agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discrepancy {
    /// The book.
    pub book: Book,
    /// The sale, as it is written in the database.
    pub sale_id: String,
    /// The order, buyer, restock or whatever it is about.
    pub about: String,
    /// What is wrong, for a person to read.
    pub detail: String,
}

/// A book of the ledger. Counters and outcomes are those of [`crate::domain::rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Book {
    /// Everything belongs to a sale.
    Sales,
    /// Never more is sold than was on offer, at any moment.
    Stock,
    /// Units sold are those of the created orders, one after the other.
    Sold,
    /// Buyers' units are those of their created orders, and within the limit.
    Buyers,
    /// Every `sold_out` was right at its moment.
    SoldOut,
    /// Every `purchase_limit` was right at its moment, and every creation.
    PurchaseLimit,
    /// Every `not_open` and `closed` was right, and every creation.
    Window,
    /// Units on offer are those of the opening and of the restocks.
    Restocks,
}

impl Book {
    /// Every book.
    pub const ALL: [Self; 8] = [
        Self::Sales,
        Self::Stock,
        Self::Sold,
        Self::Buyers,
        Self::SoldOut,
        Self::PurchaseLimit,
        Self::Window,
        Self::Restocks,
    ];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sales => "sales",
            Self::Stock => "stock",
            Self::Sold => "sold",
            Self::Buyers => "buyers",
            Self::SoldOut => "sold_out",
            Self::PurchaseLimit => "purchase_limit",
            Self::Window => "window",
            Self::Restocks => "restocks",
        }
    }
}

/// The most announcements read at once.
pub const MAX_ANNOUNCEMENTS: usize = 1000;

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
    /// Pause it, change how it is paused, or resume it. What is decided already stays.
    Pause {
        /// How its orders are treated from now on; `None`: they are sold to again.
        mode: Option<PauseMode>,
        /// When.
        at: DateTime<Utc>,
    },
    /// Hold a sale of which the ledger has lost what it had committed, until an operator accepts that.
    Lost {
        /// The sale's version when that was seen. One that has changed since is left alone: it may just have been
        /// accepted.
        version: u32,
        /// When.
        at: DateTime<Utc>,
    },
    /// Go on with a sale that is held because its ledger was restored.
    Accept {
        /// When.
        at: DateTime<Utc>,
    },
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is done, now or earlier.
    Done {
        /// The sale as it is now.
        state: SaleState,
        /// The restock as it was first stored, if it was one.
        restock: Option<Restock>,
        /// Whether it was this call that changed the sale.
        is_new: bool,
    },
    /// The adjustment id was used before in this sale, for this other restock.
    Conflict(Restock),
    /// The sale is held because its ledger was restored, so it can't be paused or resumed; nothing is changed.
    NotAccepted,
    /// The sale would have more units on offer than a sale can have, so nothing is changed.
    StockTooLarge,
    /// The ledger has no such sale.
    UnknownSale,
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

/// An order to be decided.
#[derive(Debug, Clone, Copy)]
pub struct Proposed<'a> {
    /// The order.
    pub candidate: &'a Candidate,
    /// What the inventory expects, if it was asked.
    pub hint: Option<Hint>,
    /// Its message was delivered before, so it is probably decided.
    pub redelivered: bool,
    /// How far its sale was committed before the batch, as far as that is known.
    pub watermark: Option<Watermark>,
}

/// What became of a batch.
#[derive(Debug, Clone, Default)]
pub struct Decided {
    /// One answer for each order, in order.
    pub answers: Vec<Answer>,
    /// The sales that exist, of those that the orders name, as the batch has left them.
    pub sales: HashMap<SaleId, SaleState>,
    /// Units of the buyers of sales with a limit, likewise.
    pub units: HashMap<(SaleId, UserId), u32>,
    /// Sales, not held for it yet, of which the ledger has lost what was committed. Nothing is decided for them.
    pub lost: HashSet<SaleId>,
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

impl LedgerError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// Section `ledger` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LedgerSettings {
    pub max_connections: u32,
    #[serde(rename = "timeout_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub timeout: Duration,
    pub distributed: bool,
}
