//! The designs, one file for each technique.
//!
//! Each does what the published code does, no more and no less: nothing in it waits to make a gap
//! wider. An order is created where that code creates it: within the lock where there it is within.

mod atomic_decrement;
mod optimistic_lock;
mod owner_token_lock;
mod polling_lock;
mod read_modify_write;
mod redlock;
mod setnx_lock;
mod sharded_stock;

use async_trait::async_trait;

use super::Technique;
use super::shop::{Shop, ShopError};
pub use sharded_stock::{index, share};

/// How a shop sells one unit to one buyer.
#[async_trait]
pub trait Design: Send + Sync {
    /// Tries to, and says what the buyer is told.
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError>;

    /// The stock left in this process, where it is kept there.
    fn left(&self) -> Option<i64> {
        None
    }
}

/// What a buyer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A unit is theirs.
    Bought,
    /// There is none left.
    SoldOut,
    /// Nothing yet: somebody else has the lock.
    Busy,
}

/// The design of `technique`, where `share` units are this process's own, if it sells by such shares.
/// None for floodgate, which is no shop.
pub fn of(technique: Technique, share: i64) -> Option<Box<dyn Design>> {
    Some(match technique {
        Technique::ReadModifyWrite => Box::new(read_modify_write::ReadModifyWrite),
        Technique::SetnxPublished => Box::new(setnx_lock::SetnxLock { everybody_deletes: true }),
        Technique::SetnxAsTold => Box::new(setnx_lock::SetnxLock { everybody_deletes: false }),
        Technique::OwnerTokenLock => Box::new(owner_token_lock::OwnerTokenLock::new()),
        Technique::PollingLock => Box::new(polling_lock::PollingLock),
        Technique::AtomicDecrement => Box::new(atomic_decrement::AtomicDecrement),
        Technique::OptimisticLock => Box::new(optimistic_lock::OptimisticLock),
        Technique::Redlock => Box::new(redlock::Redlock::new()),
        Technique::ShardedStock => Box::new(sharded_stock::ShardedStock::new(share)),
        Technique::Floodgate => return None,
    })
}
