//! The orders of a run, each known by its number.

use floodgate::domain::order::{Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use floodgate::domain::sale::Sale;
use serde_json::{Value, json};

/// Sales that orders are for, in turns. As many have a limit, have their users checked, sell up to three units to an
/// order, or are plain.
const SALES: u32 = 20;
/// Restocks of a sale at most, which together bring a fifth of what is asked for.
const RESTOCKS: u32 = 20;

/// As many orders as asked for.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// How many.
    pub orders: u32,
}

/// What is special about a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two units to a buyer, each of whom wants three.
    Limited,
    /// Users are checked.
    Verified,
    /// Orders of one to three units.
    Several,
    /// Nothing.
    Plain,
}

impl Kind {
    fn of(index: u32) -> Self {
        [Self::Limited, Self::Verified, Self::Several, Self::Plain][(index % 4) as usize]
    }
}

impl Demand {
    /// The sales, each with the units that it has at first: three tenths of what is asked for.
    pub fn sales(self) -> Vec<Sale> {
        let sale = |index| Sale {
            id: sale_id(index),
            stock: (self.units(index) * 3 / 10).max(1),
            per_user_limit: (Kind::of(index) == Kind::Limited).then_some(2),
            opens_at: None,
            closes_at: None,
            verification: Kind::of(index) == Kind::Verified,
        };
        (0..SALES).map(sale).collect()
    }

    /// The sale that restock `number` is for, and its units, unless that has had as many as it gets: with all of
    /// them it has half of the units that are asked for.
    pub fn restock(self, number: u32) -> Option<(SaleId, Quantity)> {
        let index = number % SALES;
        let units = Quantity::new((self.units(index) / 5 / RESTOCKS).max(1).into())?;
        (number / SALES < RESTOCKS).then(|| (sale_id(index), units))
    }

    /// Units that are asked for in all.
    fn units(self, index: u32) -> u32 {
        let orders = self.orders / SALES;
        match Kind::of(index) {
            Kind::Several => orders * 2,
            // A third of the orders are beyond the limit.
            Kind::Limited => orders * 2 / 3,
            Kind::Verified | Kind::Plain => orders,
        }
    }

    /// Order `number`.
    pub fn order(self, number: u32) -> Order {
        let (index, turn) = (number % SALES, number / SALES);
        let buyer = match Kind::of(index) {
            Kind::Limited => turn % (self.orders / SALES / 3).max(1),
            _ => turn,
        };
        let quantity = if Kind::of(index) == Kind::Several { 1 + turn % 3 } else { 1 };
        let parts = (
            OrderId::parse(order_id(number)),
            UserId::parse(format!("user-{buyer:08}")),
            Quantity::new(quantity.into()),
        );
        let (Ok(id), Ok(user_id), Some(quantity)) = parts else { unreachable!("fixed form") };
        Order { id, sale_id: sale_id(index), user_id, quantity }
    }

    /// Order `number` as a client sends it. Without its sale, which is in the path, for the HTTP API.
    pub fn body(self, number: u32, with_sale: bool) -> Vec<u8> {
        let Order { id, sale_id, user_id, quantity } = self.order(number);
        let mut body = json!({ "order_id": id, "user_id": user_id, "quantity": quantity.get() });
        if with_sale {
            body["sale_id"] = Value::from(sale_id.as_str());
        }
        body.to_string().into_bytes()
    }

    /// The number of `order`, or nothing when it is none of these.
    pub fn number(self, order: &OrderKey) -> Option<u32> {
        let number = u32::from_str_radix(order.order_id.as_str().get(24..)?, 16).ok()?;
        let is_ours = number < self.orders && order_id(number) == order.order_id.as_str();
        (is_ours && sale_id(number % SALES) == order.sale_id).then_some(number)
    }
}

fn sale_id(index: u32) -> SaleId {
    let Ok(id) = SaleId::parse(format!("chaos-{:02}", index % SALES)) else {
        unreachable!("fixed form")
    };
    id
}

/// In the form of a UUID, so that it has a usual length.
fn order_id(number: u32) -> String {
    format!("c4a05000-0000-7000-8000-{number:012x}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn an_order_is_known_by_its_number_and_more_is_asked_for_than_there_will_ever_be() {
        let demand = Demand { orders: 12_000 };
        let mut wanted: HashMap<SaleId, u32> = HashMap::new();
        let mut bought: HashMap<(SaleId, UserId), u32> = HashMap::new();
        for number in 0..demand.orders {
            let order = demand.order(number);
            assert_eq!(demand.number(&order.key()), Some(number));
            let units = bought.entry((order.sale_id.clone(), order.user_id.clone())).or_default();
            *units += order.quantity.get();
            let is_within = Kind::of(number % SALES) != Kind::Limited || *units <= 2;
            *wanted.entry(order.sale_id).or_default() +=
                if is_within { order.quantity.get() } else { 0 };
        }
        let mut stock: HashMap<SaleId, u32> =
            demand.sales().into_iter().map(|sale| (sale.id, sale.stock)).collect();
        assert_eq!(stock.len(), SALES as usize);
        let restocks: Vec<_> = (0..).map_while(|number| demand.restock(number)).collect();
        assert_eq!(restocks.len(), (SALES * RESTOCKS) as usize);
        for (sale, units) in restocks {
            *stock.get_mut(&sale).unwrap() += units.get();
        }
        for (sale, units) in stock {
            assert!(units * 2 <= wanted[&sale], "{sale}: {units} of {}", wanted[&sale]);
        }
    }
}
