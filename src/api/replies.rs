//! Waiting for decisions: each API process has a private queue to which workers reply.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Deliveries, Properties, Queue};
use crate::domain::event::order_of;
use crate::domain::event_batch::data_of;
use crate::domain::order::{Order, OrderKey};

/// Replies taken from the broker at once.
const PREFETCH: u16 = 1000;

/// The requests that wait for their decision, by order.
pub(super) struct Replies {
    address: String,
    /// What every reply is known by.
    correlation_id: String,
    waiting: Mutex<HashMap<OrderKey, Vec<Expected>>>,
}

/// The reply that a request waits for.
struct Expected {
    number: u64,
    /// What the decision must be about.
    order: Order,
    sender: oneshot::Sender<Vec<u8>>,
}

/// One request that waits. Dropped, it waits no longer.
pub(super) struct Waiting {
    replies: Arc<Replies>,
    order: OrderKey,
    number: u64,
    reply: oneshot::Receiver<Vec<u8>>,
}

impl Replies {
    /// Makes the queue; [`Replies::run`] then takes what comes.
    pub(super) async fn listen(
        broker: &dyn Broker,
    ) -> Result<(Arc<Self>, Deliveries), BrokerError> {
        let queue = Queue::Private(format!("replies.{}", Uuid::now_v7()));
        let address = broker.address(&queue);
        let deliveries = broker.subscribe(queue, &[], PREFETCH).await?;
        Ok((Arc::new(Self::at(address)), deliveries))
    }

    fn at(address: String) -> Self {
        let correlation_id = Uuid::now_v7().to_string();
        Self { address, correlation_id, waiting: Mutex::default() }
    }

    /// Hands replies to those who wait for them, until `stop`.
    pub(super) async fn run(self: Arc<Self>, mut deliveries: Deliveries, stop: CancellationToken) {
        loop {
            let delivery = tokio::select! {
                Some(delivery) = deliveries.next() => delivery,
                () = stop.cancelled() => break,
            };
            let id = delivery.properties.correlation_id.as_deref();
            if id == Some(self.correlation_id.as_str()) {
                for decision in data_of(&delivery.body).unwrap_or_default() {
                    self.hand_over(decision);
                }
            }
            delivery.ack();
        }
        deliveries.stop();
        deliveries.finished().await;
    }

    /// Hands a decision to the requests that wait for it.
    fn hand_over(&self, decision: &[u8]) {
        let Some(order) = order_of(decision) else { return };
        let mut waiting = self.lock();
        let Some(expected) = waiting.get_mut(&order.key()) else { return };
        for expected in expected.extract_if(.., |expected| expected.order == order) {
            // A client that left in this moment finds the decision by its sale and order id.
            let _ = expected.sender.send(decision.to_vec());
        }
    }

    /// What an order must come with whose decision is wanted here.
    pub(super) fn asking(&self) -> Properties {
        Properties {
            reply_to: Some(self.address.clone()),
            correlation_id: Some(self.correlation_id.clone()),
            accepts_batches: true,
            ..Properties::default()
        }
    }

    /// Begins to wait for the decision of `order`, before the request is sent.
    pub(super) fn expect(self: &Arc<Self>, order: Order) -> Waiting {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let key = order.key();
        let expected = Expected { number, order, sender };
        self.lock().entry(key.clone()).or_default().push(expected);
        Waiting { replies: self.clone(), order: key, number, reply }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OrderKey, Vec<Expected>>> {
        self.waiting.lock()
    }
}

impl Waiting {
    /// The decision, as JSON. Waits for ever if none comes.
    pub(super) async fn decision(&mut self) -> Vec<u8> {
        match (&mut self.reply).await {
            Ok(decision) => decision,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.replies.lock();
        if let Some(expected) = waiting.get_mut(&self.order) {
            expected.retain(|expected| expected.number != self.number);
            if expected.is_empty() {
                waiting.remove(&self.order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::{OrderId, Quantity, SaleId, UserId};

    fn order(user: &str, quantity: i64) -> Order {
        Order {
            id: OrderId::parse("o").unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: UserId::parse(user).unwrap(),
            quantity: Quantity::new(quantity).unwrap(),
        }
    }

    #[tokio::test]
    async fn only_a_decision_of_the_same_order_ends_a_wait() {
        let replies = Arc::new(Replies::at("here".into()));
        let mut waiting = replies.expect(order("u", 1));
        let (mut again, mut other) = (replies.expect(order("u", 1)), replies.expect(order("u", 2)));
        for decision in [
            r#"{"order_id":"o","sale_id":"t","user_id":"u","quantity":1}"#,
            r#"{"order_id":"p","sale_id":"s","user_id":"u","quantity":1}"#,
            r#"{"order_id":"o","sale_id":"s","user_id":"v","quantity":1}"#,
            "{}",
        ] {
            replies.hand_over(decision.as_bytes());
        }
        let own =
            br#"{"order_id":"o","sale_id":"s","user_id":"u","quantity":1,"outcome":"created"}"#;
        replies.hand_over(own);
        assert_eq!(waiting.decision().await, own);
        assert_eq!(again.decision().await, own);
        assert!(other.reply.try_recv().is_err());
        drop((waiting, again));
        assert_eq!(replies.lock().len(), 1);
        drop(other);
        assert!(replies.lock().is_empty());
    }
}
