//! The inventory's port: fast answers about stock, which the ledger then confirms.

mod local;
mod redis;

use std::collections::HashMap;

use async_trait::async_trait;

use crate::decision::{Decision, Outcome};
use crate::order::{Candidate, Order, SaleId};
use crate::sale::SaleState;

pub use self::local::LocalInventory;
pub use self::redis::RedisInventory;

/// Fast counters of the stock left. May forget anything at any time: it proposes, and the ledger
/// has the final word.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// Proposes an outcome for each order, deducting the stock of those it proposes as created.
    /// Orders of one sale are answered in the order given. An order id that is known gets its
    /// recorded answer again, whatever else has changed.
    async fn propose(&self, orders: &[Candidate]) -> Result<Proposals, InventoryError>;

    /// Writes the ledger's answers over its own, and takes back what they make free. The stock of
    /// a sale is never left above what the ledger says is not sold.
    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError>;

    /// Loads the counters of sales from the ledger's state. Of a sale that it holds already, takes
    /// over what a later version has changed: units added, another window, and whether users are
    /// checked.
    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError>;

    /// The stock left by its own count, or `None` for a sale it doesn't hold.
    async fn remaining(&self, sales: &[SaleId]) -> Result<Vec<Option<u32>>, InventoryError>;

    /// Sets a sale's stock left to `correction.actual` if it still is `correction.seen`. Says for
    /// each whether it did.
    async fn correct(&self, corrections: &[Correction]) -> Result<Vec<bool>, InventoryError>;
}

/// The inventory's answers to a batch of orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proposals {
    /// One for each order, in the order given.
    pub answers: Vec<Proposal>,
    /// Units left after them, of each sale that it holds.
    pub left: HashMap<SaleId, u32>,
}

/// The inventory's answer to one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposal {
    /// An outcome to be recorded.
    Decided {
        /// The outcome.
        outcome: Outcome,
        /// It was decided by this call, not read back from an earlier one.
        fresh: bool,
    },
    /// The order id was used before for an order with other contents.
    Conflict,
    /// It would be created, but nobody has checked its user, as the sale wants it: have the user
    /// checked and propose it again. Nothing was deducted or remembered.
    Unchecked,
    /// The sale is not held: prime it and propose again.
    Absent,
}

/// The ledger's answer to an order that the inventory had answered otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amendment {
    /// The order that was proposed. What was deducted for it is given back.
    pub proposed: Order,
    /// The decision to hold for its id from now on, or `None` to forget the id in this sale.
    pub answer: Option<Decision>,
    /// Units that the ledger says the sale has sold, if it was asked. They only grow, so that this
    /// holds back too much stock for no version of the sale.
    pub sold: Option<u32>,
}

/// A stock count to be repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// The sale.
    pub sale_id: SaleId,
    /// The stock left as the inventory counted it.
    pub seen: u32,
    /// The stock left as the ledger counts it.
    pub actual: u32,
}

/// The inventory gave no answer. What it did is unknown; asking again is safe.
#[derive(Debug, thiserror::Error)]
#[error("inventory unavailable: {0}")]
pub struct InventoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
