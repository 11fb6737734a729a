//! The orders of a bench.

use serde_json::json;

use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::{Broker, Message};
use floodgate::domain::decision::{Decision, Outcome};
use floodgate::domain::event::Event;
use floodgate::domain::order::{Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use floodgate::domain::sale::Sale;

/// Messages in one publish, for who wants no other number.
pub(super) const CHUNK: usize = 1000;

/// As many orders of one unit as asked for, from as many users.
pub(super) struct Load {
    pub run: u16,
    pub orders: u32,
    /// Sales that the orders are for, in turns.
    pub sales: u32,
    /// Orders of one sale that follow each other.
    pub in_a_row: u32,
    /// Units on offer in each sale.
    pub stock: u32,
    /// Units to a buyer. There are as many buyers of a sale as units then, and they order again.
    pub per_user_limit: Option<u32>,
}

impl Load {
    /// Orders for a sale with half the stock, that differ from those of any other `run`.
    pub(super) fn new(run: u16, orders: u32) -> Self {
        Self { run, orders, sales: 1, in_a_row: 1, stock: orders / 2, per_user_limit: None }
    }

    /// The same run with another number of orders.
    pub(super) fn with_orders(&self, orders: u32) -> Self {
        Self { orders, ..*self }
    }

    /// The sale, or the first one.
    pub(super) fn sale_id(&self) -> SaleId {
        self.sale_of(0)
    }

    /// The sale of order `number`.
    pub(super) fn sale_of(&self, number: u32) -> SaleId {
        let id = match self.sales {
            1 => format!("bench-{:05}", self.run),
            sales => format!("bench-{:05}-{:04}", self.run, number / self.in_a_row % sales),
        };
        let Ok(id) = SaleId::parse(id) else { unreachable!("fixed form") };
        id
    }

    pub(super) async fn open_sales(&self, deployment: &TempDeployment) -> anyhow::Result<()> {
        let sales: Vec<Sale> = (0..self.sales)
            .map(|number| Sale {
                id: self.sale_of(number * self.in_a_row),
                stock: self.stock,
                per_user_limit: self.per_user_limit,
                opens_at: None,
                closes_at: None,
                verification: false,
            })
            .collect();
        deployment.app.ledger().await?.open(&sales).await?;
        Ok(())
    }

    /// Order ids have the form of UUIDs, so that they have a usual length, and end in a number.
    fn order_id(&self, number: u32) -> String {
        format!("{:08x}-0000-7000-8000-{number:012x}", self.run)
    }

    fn user_id(&self, number: u32) -> String {
        let buyer = match self.per_user_limit {
            Some(_) => number / self.sales % self.stock.max(1),
            None => number,
        };
        format!("user-{buyer:08}")
    }

    /// The number of `order`, or nothing when it is of another run.
    pub(super) fn number(&self, order: &OrderKey) -> Option<u32> {
        let OrderKey { sale_id, order_id } = order;
        let number = u32::from_str_radix(order_id.as_str().get(24..)?, 16).ok()?;
        let is_ours = self.order_id(number) == order_id.as_str();
        (is_ours && self.sale_of(number) == *sale_id).then_some(number)
    }

    /// Orders `from` up to `to` as the body of one message.
    pub(super) fn body(&self, from: u32, to: u32) -> Vec<u8> {
        let intent = |number| {
            json!({
                "order_id": self.order_id(number), "sale_id": self.sale_of(number),
                "user_id": self.user_id(number), "quantity": 1,
            })
        };
        let body = if to == from + 1 {
            intent(from).to_string()
        } else {
            serde_json::Value::Array((from..to).map(intent).collect()).to_string()
        };
        body.into_bytes()
    }

    /// Order `number` as a request to the HTTP API, with the client's order id, which the API looks up,
    /// or to get one from the server.
    pub(super) fn request(&self, number: u32, with_id: bool) -> Vec<u8> {
        let mut request = json!({ "user_id": self.user_id(number), "quantity": 1 });
        if with_id {
            request["order_id"] = self.order_id(number).into();
        }
        request.to_string().into_bytes()
    }

    /// Publishes all orders, `per_message` in each message and up to `in_flight` messages at once.
    pub(super) async fn publish(
        &self,
        broker: &dyn Broker,
        per_message: u32,
        in_flight: usize,
    ) -> anyhow::Result<()> {
        let firsts: Vec<u32> = (0..self.orders).step_by(per_message as usize).collect();
        for chunk in firsts.chunks(in_flight) {
            let bodies: Vec<(SaleId, Vec<u8>)> = chunk
                .iter()
                .map(|&from| {
                    let body = self.body(from, (from + per_message).min(self.orders));
                    (self.sale_of(from), body)
                })
                .collect();
            let messages: Vec<Message<'_>> =
                bodies.iter().map(|(sale, body)| Message::intent(sale.as_str(), body)).collect();
            broker.publish(&messages).await.all()?;
        }
        Ok(())
    }

    /// An event of the same size as those the orders get.
    pub(super) fn sample_event(&self) -> anyhow::Result<Event> {
        let order = Order {
            id: OrderId::parse(self.order_id(0))?,
            sale_id: self.sale_id(),
            user_id: UserId::parse("user-00000000")?,
            quantity: Quantity::new(1).ok_or_else(|| anyhow::anyhow!("one is a quantity"))?,
        };
        let (submitted_at, decided_at) = (chrono::Utc::now(), chrono::Utc::now());
        let (outcome, version, sold) = (Outcome::SoldOut, 1, 0);
        Ok(Event::of(&Decision { order, outcome, submitted_at, decided_at, version, sold }))
    }
}
