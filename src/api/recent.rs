//! The orders that this process has queued lately, so that an id that is used twice for different
//! orders is refused also while the first one waits for its decision. What is forgotten, or was
//! queued by another process, the worker finds, and parks the second one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::order::{Order, OrderKey};

/// Orders remembered; the oldest are forgotten first. About 200 bytes each.
const MAX_ORDERS: usize = 50_000;

/// Orders by their sale and order id.
#[derive(Default)]
pub(super) struct Recent(Mutex<Queued>);

#[derive(Default)]
struct Queued {
    orders: HashMap<OrderKey, Order>,
    /// Oldest first.
    keys: VecDeque<OrderKey>,
}

impl Recent {
    /// Remembers `order`. False when its id stands for another one.
    pub(super) fn claim(&self, order: &Order) -> bool {
        let Queued { orders, keys } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = orders.get(&order.key()) {
            return first == order;
        }
        if keys.len() == MAX_ORDERS
            && let Some(oldest) = keys.pop_front()
        {
            orders.remove(&oldest);
        }
        keys.push_back(order.key());
        orders.insert(order.key(), order.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{OrderId, Quantity, SaleId, UserId};

    fn order(id: usize, quantity: i64) -> Order {
        Order {
            id: OrderId::parse(format!("o-{id}")).unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: UserId::parse("u").unwrap(),
            quantity: Quantity::new(quantity).unwrap(),
        }
    }

    #[test]
    fn an_id_stands_for_its_first_order_until_it_is_forgotten() {
        let recent = Recent::default();
        assert!(recent.claim(&order(0, 1)) && recent.claim(&order(0, 1)));
        assert!(!recent.claim(&order(0, 2)));
        assert!((1..=MAX_ORDERS).all(|id| recent.claim(&order(id, 1))));
        assert!(recent.claim(&order(0, 2)), "the oldest is forgotten");
        assert!(!recent.claim(&order(MAX_ORDERS, 2)));
        assert_eq!(recent.0.lock().unwrap().orders.len(), MAX_ORDERS);
    }
}
