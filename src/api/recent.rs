//! Orders that this server has taken lately, so that one that waits for its decision is told from one that
//! was never seen.

use std::time::Duration;

use moka::sync::Cache;

use crate::order::{Order, OrderKey, UserId};

/// The most orders remembered, of about 200 bytes each.
const MAX_ORDERS: u64 = 50_000;
/// How long one is remembered.
const FOR: Duration = Duration::from_hours(1);

/// Who has ordered what lately.
pub(super) struct Recent(Cache<OrderKey, UserId>);

impl Default for Recent {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_ORDERS).time_to_live(FOR).build())
    }
}

impl Recent {
    /// Remembers an order that is in the queue.
    pub(super) fn taken(&self, order: &Order) {
        self.0.insert(order.key(), order.user_id.clone());
    }

    /// The buyer of an order that was taken.
    pub(super) fn buyer(&self, order: &OrderKey) -> Option<UserId> {
        self.0.get(order)
    }
}
