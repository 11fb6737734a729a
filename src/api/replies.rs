//! Waiting for decisions: each API process has a private queue to which workers reply.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Deliveries, Properties, Queue};
use crate::domain::event::order_key_of;
use crate::domain::order::OrderKey;

/// Replies taken from the broker at once.
const PREFETCH: u16 = 1000;

/// The requests that wait for their decision, by correlation id.
pub(super) struct Replies {
    address: String,
    waiting: Mutex<HashMap<String, Expected>>,
}

/// The reply that a request waits for.
struct Expected {
    /// The order that it must be about.
    order: OrderKey,
    sender: oneshot::Sender<Vec<u8>>,
}

/// One request that waits. Dropped, it waits no longer.
pub(super) struct Waiting {
    replies: Arc<Replies>,
    correlation_id: String,
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
        Ok((Arc::new(Self { address, waiting: Mutex::default() }), deliveries))
    }

    /// Hands replies to those who wait for them, until `stop`.
    pub(super) async fn run(self: Arc<Self>, mut deliveries: Deliveries, stop: CancellationToken) {
        loop {
            let delivery = tokio::select! {
                Some(delivery) = deliveries.next() => delivery,
                () = stop.cancelled() => break,
            };
            let id = delivery.properties.correlation_id.as_deref().unwrap_or_default();
            self.hand_over(id, &delivery.body);
            delivery.ack();
        }
        deliveries.stop();
        deliveries.finished().await;
    }

    /// Hands a reply to the request with this correlation id, if it is about the order of that request.
    fn hand_over(&self, correlation_id: &str, reply: &[u8]) {
        let mut waiting = self.lock();
        let Some(expected) = waiting.get(correlation_id) else { return };
        if order_key_of(reply).as_ref() != Some(&expected.order) {
            let OrderKey { sale_id, order_id } = &expected.order;
            tracing::warn!(%sale_id, %order_id, "reply ignored: it is not about this order");
            return;
        }
        if let Some(expected) = waiting.remove(correlation_id) {
            // A client that left in this moment finds the decision by its sale and order id.
            let _ = expected.sender.send(reply.to_vec());
        }
    }

    /// Begins to wait for the decision of `order`, before the request is sent.
    pub(super) fn expect(self: &Arc<Self>, order: OrderKey) -> Waiting {
        let correlation_id = Uuid::now_v7().to_string();
        let (sender, reply) = oneshot::channel();
        self.lock().insert(correlation_id.clone(), Expected { order, sender });
        Waiting { replies: self.clone(), correlation_id, reply }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Expected>> {
        self.waiting.lock()
    }
}

impl Waiting {
    /// What the request must come with.
    pub(super) fn properties(&self) -> Properties {
        Properties {
            reply_to: Some(self.replies.address.clone()),
            correlation_id: Some(self.correlation_id.clone()),
            ..Properties::default()
        }
    }

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
        self.replies.lock().remove(&self.correlation_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::{OrderId, SaleId};

    #[tokio::test]
    async fn only_a_reply_about_its_own_order_ends_the_wait() {
        let replies = Arc::new(Replies { address: "here".into(), waiting: Mutex::default() });
        let order = OrderKey {
            sale_id: SaleId::parse("s").unwrap(),
            order_id: OrderId::parse("o").unwrap(),
        };
        let mut waiting = replies.expect(order);
        let id = waiting.properties().correlation_id.unwrap();
        for other in
            [r#"{"order_id":"o","sale_id":"t"}"#, r#"{"order_id":"p","sale_id":"s"}"#, "{}"]
        {
            replies.hand_over(&id, other.as_bytes());
        }
        let own = br#"{"order_id":"o","sale_id":"s","outcome":"created"}"#;
        replies.hand_over("another request", own);
        replies.hand_over(&id, own);
        assert_eq!(waiting.decision().await, own);
        drop(waiting);
        assert!(replies.lock().is_empty());
    }
}
