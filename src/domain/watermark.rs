//! How far a ledger has come, by which one that was restored from a backup is known.

use crate::domain::sale::SaleState;

/// How far a ledger has come with a sale, of which all that was ever committed is kept: its counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    /// The highest version.
    pub version: u32,
    /// The most units sold.
    pub sold: u32,
}

impl Watermark {
    /// As far as `state` is.
    pub fn of(state: &SaleState) -> Self {
        Self { version: state.version, sold: state.sold }
    }

    /// Whether `other`, read later, has lost something of this.
    pub fn is_lost_in(self, other: Self) -> bool {
        self.version > other.version || self.sold > other.sold
    }
}
