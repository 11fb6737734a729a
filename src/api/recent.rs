//! Orders that this server has taken lately, so that one that waits for its decision is told from one that
//! was never seen.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::domain::order::{Order, OrderId, OrderKey, SaleId, UserId};
use parking_lot::{Mutex, MutexGuard};

/// The fewest orders remembered; up to twice as many are, of 16 bytes each.
const MIN_ORDERS: usize = 50_000;

/// Who has ordered what lately, as hashes that no client can foresee.
#[derive(Default)]
pub(super) struct Recent {
    hashing: RandomState,
    generations: Mutex<[HashMap<u64, u64>; 2]>,
}

impl Recent {
    /// Remembers an order that is in the queue.
    pub(super) fn taken(&self, order: &Order) {
        let (key, buyer) = (self.hash(&order.sale_id, &order.id), self.buyer(&order.user_id));
        let mut generations = self.lock();
        if generations[0].len() >= MIN_ORDERS {
            generations.swap(0, 1);
            generations[0].clear();
        }
        generations[0].insert(key, buyer);
    }

    /// The buyer of an order that was taken, as [`Recent::buyer`] hashes it.
    pub(super) fn buyer_of(&self, order: &OrderKey) -> Option<u64> {
        let key = self.hash(&order.sale_id, &order.order_id);
        self.lock().iter().find_map(|generation| generation.get(&key).copied())
    }

    /// The hash of a buyer.
    pub(super) fn buyer(&self, user: &UserId) -> u64 {
        self.hashing.hash_one(user.as_str())
    }

    fn hash(&self, sale: &SaleId, order: &OrderId) -> u64 {
        self.hashing.hash_one((sale.as_str(), order.as_str()))
    }

    fn lock(&self) -> MutexGuard<'_, [HashMap<u64, u64>; 2]> {
        self.generations.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::Quantity;

    #[test]
    fn the_latest_orders_are_remembered_with_their_buyers() {
        let recent = Recent::default();
        let user = |number: usize| UserId::parse(format!("u-{number}")).unwrap();
        let order = |number: usize| Order {
            id: OrderId::parse(format!("o-{number}")).unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: user(number),
            quantity: Quantity::new(1).unwrap(),
        };
        for number in 0..=2 * MIN_ORDERS {
            recent.taken(&order(number));
        }
        for number in [MIN_ORDERS, 2 * MIN_ORDERS] {
            let buyer = recent.buyer_of(&order(number).key());
            assert_eq!(buyer, Some(recent.buyer(&user(number))), "{number}");
        }
        assert_eq!(recent.buyer_of(&order(0).key()), None, "forgotten");
    }
}
