//! A cache of verdicts. The only file that knows the library for it.

use std::time::Duration;

use moka::sync::Cache;

use super::Verdict;
use crate::domain::order::{Order, SaleId, UserId};

/// Verdicts remembered at once; those used least are forgotten first.
const MAX_VERDICTS: u64 = 100_000;

/// What was said of users, sale by sale.
#[derive(Debug)]
pub(super) struct VerdictCache(Cache<(SaleId, UserId), Verdict>);

impl VerdictCache {
    /// A cache that keeps a verdict for `keep`.
    pub(super) fn new(keep: Duration) -> Self {
        Self(Cache::builder().max_capacity(MAX_VERDICTS).time_to_live(keep).build())
    }

    /// What was said of the user of `order`, if that is not too long ago.
    pub(super) fn get(&self, order: &Order) -> Option<Verdict> {
        self.0.get(&(order.sale_id.clone(), order.user_id.clone()))
    }

    /// Remembers what was said of `user` in `sale`.
    pub(super) fn insert(&self, sale: SaleId, user: UserId, verdict: Verdict) {
        self.0.insert((sale, user), verdict);
    }
}
