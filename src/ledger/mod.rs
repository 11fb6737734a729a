//! The ledger's port: where decisions become final.

mod postgres;

use async_trait::async_trait;

use crate::decision::Decision;
use crate::order::{OrderId, SaleId};
use crate::sale::{Sale, SaleState};

pub use postgres::PostgresLedger;

/// The store with the final word on every order.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Opens sales. A sale that is open already keeps its stock and what it has sold, whatever the
    /// definition says. Gives one answer for each sale, in order.
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError>;

    /// The named sales that exist, or all of them, by sale id.
    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError>;

    /// Records a batch of proposed decisions, given in queue order, all or none of them. Gives one
    /// answer for each, in order. Recording a batch again gives the same answers.
    ///
    /// The order ids of a batch must be distinct, and its sales must exist: a proposed `created`
    /// for a sale that does not is a permanent error.
    async fn record(&self, proposals: &[Proposed<'_>]) -> Result<Vec<Recorded>, LedgerError>;

    /// The decision of one order.
    async fn decision(&self, id: &OrderId) -> Result<Option<Decision>, LedgerError>;
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
    pub submitted_at: chrono::DateTime<chrono::Utc>,
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
        /// Units that the sale of the proposal has left.
        remaining: u32,
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
