//! The inventory's port: fast hints about stock, which save the ledger work.

mod redis;

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, DurationSeconds, serde_as};

use crate::domain::decision::Hint;
use crate::domain::order::{Candidate, Order, UserId};
use crate::domain::sale::SaleState;

pub use self::redis::RedisInventory;

/// Counters of the stock left. It may forget or miscount anything at any time: its answers are hints,
/// which change how long the ledger takes and never what it decides.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// Gives a hint for each order, in the order given, and deducts the stock of those it grants; an
    /// order that it has deducted for is granted again. `None` for the orders of a sale it does not
    /// hold. Orders older than `max_age` are refused.
    async fn propose(
        &self,
        orders: &[&Candidate],
        max_age: Duration,
    ) -> Result<Vec<Option<Hint>>, InventoryError>;

    /// Overwrites what it holds of sales with what the ledger has said. Amendments may be repeated and
    /// come late. One for a sale that it does not hold does nothing.
    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError>;

    /// Loads sales that it does not hold. Of those it holds it takes over what is newer.
    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError>;
}

/// What the ledger has said of one sale, where a hint was wrong.
#[derive(Debug, Clone)]
pub struct Amendment {
    /// The sale as the ledger has left it.
    pub state: SaleState,
    /// Buyers concerned, with their units, of a sale with a limit.
    pub buyers: Vec<(UserId, u32)>,
    /// Orders that the hint was wrong for, and whether they have their units.
    pub orders: Vec<(Order, bool)>,
}

impl Amendment {
    /// One of a sale alone.
    pub fn of(state: SaleState) -> Self {
        Self { state, buyers: Vec::new(), orders: Vec::new() }
    }
}

/// The inventory gave no answer. What it did is unknown; asking again is safe.
#[derive(Debug, thiserror::Error)]
#[error("inventory unavailable: {0}")]
pub struct InventoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Section `inventory` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct InventorySettings {
    pub when_unavailable: WhenUnavailable,
    #[serde(rename = "timeout_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub timeout: Duration,
    #[serde(rename = "retry_after_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub retry_after: Duration,
    #[serde(rename = "keep_after_close_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub keep_after_close: Duration,
}

/// What a worker does while the inventory can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenUnavailable {
    /// Go on without hints.
    Ledger,
    /// Pause.
    Wait,
}
