//! Waiting for decisions: each API process has a queue of its own to which workers reply.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Deliveries, Properties, Queue};

/// Replies taken from the broker at once.
const PREFETCH: u16 = 1000;

/// The requests that wait for their decision, by correlation id.
pub(super) struct Replies {
    address: String,
    waiting: Mutex<HashMap<String, oneshot::Sender<Vec<u8>>>>,
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
            if let Some(waiting) = self.lock().remove(id) {
                // Whoever left in this moment finds the decision by its order id.
                let _ = waiting.send(delivery.body.clone());
            }
            delivery.ack();
        }
        deliveries.stop();
        deliveries.finished().await;
    }

    /// Begins to wait, before the request is sent.
    pub(super) fn expect(self: &Arc<Self>) -> Waiting {
        let correlation_id = Uuid::now_v7().to_string();
        let (sender, reply) = oneshot::channel();
        self.lock().insert(correlation_id.clone(), sender);
        Waiting { replies: self.clone(), correlation_id, reply }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Vec<u8>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
