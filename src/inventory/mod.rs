//! The inventory's port: fast hints about stock, which save the ledger work.

mod redis;

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, DurationSeconds, serde_as};

use crate::domain::decision::Hint;
use crate::domain::order::{Candidate, Order, SaleId, UserId};
use crate::domain::sale::{SaleState, Watermark};

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
    ) -> Result<Proposal, InventoryError>;

    /// The ledger has committed these states. The highest counters of each sale are kept beside what is held of
    /// it, also when that is forgotten: by them a ledger that was restored from a backup is known.
    async fn committed(&self, sales: &[SaleState]) -> Result<(), InventoryError>;

    /// How far the ledger had committed a sale, if that is known.
    async fn watermark(&self, sale: &SaleId) -> Result<Option<Watermark>, InventoryError>;

    /// Overwrites what it holds of sales with what the ledger has said. Amendments may be repeated and
    /// come late. One for a sale that it does not hold does nothing.
    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError>;

    /// Loads sales that it does not hold. Of those it holds it takes over what is newer.
    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError>;
}

/// What an inventory says of some orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proposal {
    /// One for each order.
    pub hints: Vec<Option<Hint>>,
    /// How far the ledger had committed each of their sales, as far as that is known.
    pub watermarks: HashMap<SaleId, Watermark>,
}

/// What an inventory holds, for an audit.
#[async_trait]
pub trait Holdings: Inventory {
    /// The sales that it holds anything of, as their ids are written there.
    async fn sales(&self) -> Result<Vec<String>, InventoryError>;

    /// What it holds of a sale, if anything.
    async fn held(&self, sale: &SaleId) -> Result<Option<Held>, InventoryError>;

    /// How many of `orders`, all of one sale, it has deducted for.
    async fn deducted(&self, orders: &[Order]) -> Result<u64, InventoryError>;

    /// Some of the buyers of a sale with their units, as both are written there, and where to go on. 0 is
    /// the beginning, and the end.
    async fn buyers(
        &self,
        sale: &SaleId,
        cursor: u64,
    ) -> Result<(u64, Vec<(String, String)>), InventoryError>;

    /// Has it hold nothing of a sale any more, so that it is loaded again from the ledger.
    async fn forget(&self, sale: &SaleId) -> Result<(), InventoryError>;

    /// Forgets its watermark too: what the ledger knows now is all there is.
    async fn forget_watermark(&self, sale: &SaleId) -> Result<(), InventoryError>;
}

/// What is held of a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Something that floodgate has not written.
    Damaged(String),
    /// Its definition and counters.
    Sale(HeldSale),
}

/// The definition of a sale and its counters. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in SaleState")]
pub struct HeldSale {
    /// Units not deducted.
    pub left: i64,
    pub version: i64,
    pub sold: i64,
    pub per_user_limit: Option<i64>,
    pub opens_at_ms: Option<i64>,
    pub closes_at_ms: Option<i64>,
    pub verification: bool,
    pub paused: bool,
    /// Orders that it has deducted for.
    pub deducted: u64,
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
