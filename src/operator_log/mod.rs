//! The operators' log: who did what to which sale, when, and from where.
//!
//! The port, and the [`Journal`] through which all write to it. What is refused is counted by
//! [`Refusals`] first, so that a flood of it stays a few entries.

mod entry;
mod journal;
mod refusals;

use async_trait::async_trait;

pub use entry::{Action, Entry, EntryId, NotKnown, Operator};
pub use journal::Journal;
pub use refusals::{FLUSH_EVERY, MAX_DISTINCT, Refusal, Refusals};

use crate::domain::order::SaleId;

/// Keeps what operators did. Entries are only ever added.
#[async_trait]
pub trait OperatorLog: Send + Sync {
    /// Stores entries, all or none of them.
    async fn record(&self, entries: &[Entry]) -> Result<(), OperatorLogError>;

    /// Entries, newest first: by their ids, which begin with the time.
    async fn entries(&self, wanted: &Wanted) -> Result<Vec<Entry>, OperatorLogError>;
}

/// Which entries to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The most entries.
    pub limit: u32,
    /// Only entries before this one.
    pub before: Option<EntryId>,
    /// Only entries of this sale.
    pub sale_id: Option<SaleId>,
}

/// The log could not be written or read. Whether entries were stored is unknown.
#[derive(Debug, thiserror::Error)]
#[error("operators' log: {0}")]
pub struct OperatorLogError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl OperatorLogError {
    /// An error because of `source`.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}
