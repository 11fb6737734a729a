//! Orders that this server has taken lately, so that one that waits for its decision is told from one that
//! was never seen.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::domain::order::{Order, OrderId, OrderKey, SaleId, UserId};
use parking_lot::{Mutex, MutexGuard};

/// The fewest orders remembered; up to twice as many are, of 24 bytes each.
const MIN_ORDERS: usize = 50_000;

/// An order that was taken.
#[derive(Clone, Copy)]
struct Taken {
    buyer: u64,
    /// Messages with orders before it, from when this server began to watch.
    place: u64,
}

/// Who has ordered what lately, as hashes that no client can foresee.
#[derive(Default)]
pub(super) struct Recent {
    hashing: RandomState,
    generations: Mutex<[HashMap<u64, Taken>; 2]>,
}

impl Recent {
    /// Remembers an order that is in the queue, behind `place` messages since this server began to watch.
    pub(super) fn taken(&self, order: &Order, place: u64) {
        let (key, buyer) = (self.hash(&order.sale_id, &order.id), self.buyer(&order.user_id));
        let mut generations = self.lock();
        if generations[0].len() >= MIN_ORDERS {
            generations.swap(0, 1);
            generations[0].clear();
        }
        generations[0].insert(key, Taken { buyer, place });
    }

    /// The buyer of an order that was taken, as [`Recent::buyer`] hashes it.
    pub(super) fn buyer_of(&self, order: &OrderKey) -> Option<u64> {
        self.find(order).map(|taken| taken.buyer)
    }

    /// The place of an order that was taken.
    pub(super) fn place_of(&self, order: &OrderKey) -> Option<u64> {
        self.find(order).map(|taken| taken.place)
    }

    fn find(&self, order: &OrderKey) -> Option<Taken> {
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

    fn lock(&self) -> MutexGuard<'_, [HashMap<u64, Taken>; 2]> {
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
            recent.taken(&order(number), number as u64);
        }
        for number in [MIN_ORDERS, 2 * MIN_ORDERS] {
            let buyer = recent.buyer_of(&order(number).key());
            assert_eq!(buyer, Some(recent.buyer(&user(number))), "{number}");
            assert_eq!(recent.place_of(&order(number).key()), Some(number as u64));
        }
        assert_eq!(recent.buyer_of(&order(0).key()), None, "forgotten");
    }
}
