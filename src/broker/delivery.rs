//! Deliveries and their settlement.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Properties;
use crate::metrics::UnsettledGuard;

/// A message delivered to this consumer. Settling consumes it, so it cannot be settled twice. Dropped
/// unsettled, it goes back to the queue when the consumer ends.
pub struct Delivery {
    /// The body.
    pub body: Vec<u8>,
    /// What came with it.
    pub properties: Properties,
    /// The broker says that this message may have been delivered before. A hint: after a failure of
    /// the broker a second delivery may come without it.
    pub redelivered: bool,
    settle: Settler,
    /// It counts as unsettled, if it has orders.
    unsettled: Option<UnsettledGuard>,
}

type Settler = Box<dyn FnOnce(Settlement) + Send + Sync>;

/// What to tell the broker of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the broker may forget the message.
    Ack,
    /// Not done, by no fault of the message: deliver it again.
    Requeue,
    /// It failed: deliver it again, unless that was tried too often.
    Reject,
}

impl Delivery {
    /// A delivery that is settled by calling `settle`.
    pub fn new(body: Vec<u8>, properties: Properties, redelivered: bool, settle: Settler) -> Self {
        Self { body, properties, redelivered, settle, unsettled: None }
    }

    /// The same, which counts as unsettled until it is settled or dropped.
    #[must_use]
    pub fn counted(self, unsettled: Option<UnsettledGuard>) -> Self {
        Self { unsettled, ..self }
    }

    /// Its oldest order is from `time`.
    pub fn is_since(&self, time: DateTime<Utc>) {
        if let Some(unsettled) = &self.unsettled {
            unsettled.is_since(time);
        }
    }

    /// Tells the broker that the message is done. The telling may get lost; then the message comes
    /// again.
    pub fn ack(self) {
        (self.settle)(Settlement::Ack);
    }

    /// Gives the message back to the queue, because something else stands in its way. From RabbitMQ 4.3 on
    /// that is no attempt of the message; before it counts as one (its page on quorum queues).
    pub fn requeue(self) {
        (self.settle)(Settlement::Requeue);
    }

    /// Gives the message back to the queue as one that failed: after too many attempts it is dead.
    pub fn reject(self) {
        (self.settle)(Settlement::Reject);
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// A running consumer. Dropped, it stops.
#[derive(Debug)]
pub struct Deliveries {
    incoming: mpsc::UnboundedReceiver<Delivery>,
    stop: DropGuard,
    consumer: tokio::task::JoinHandle<()>,
    interrupted: Arc<AtomicBool>,
}

impl Deliveries {
    /// What task `consumer` delivers, until `stop`. It sets `interrupted` before it delivers anything
    /// again.
    pub fn new(
        incoming: mpsc::UnboundedReceiver<Delivery>,
        stop: CancellationToken,
        consumer: tokio::task::JoinHandle<()>,
        interrupted: Arc<AtomicBool>,
    ) -> Self {
        Self { incoming, stop: stop.drop_guard(), consumer, interrupted }
    }

    /// The next delivery; waits for one. `None` after [`Deliveries::stop`], once all that had been
    /// delivered is taken.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.incoming.recv().await
    }

    /// A delivery that is here already.
    pub fn ready(&mut self) -> Option<Delivery> {
        self.incoming.try_recv().ok()
    }

    /// How many are here already.
    pub fn waiting(&self) -> usize {
        self.incoming.len()
    }

    /// Whether the broker was lost meanwhile, and is there again: what was delivered before and not settled
    /// comes again.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Takes no more from the queue. What was delivered still comes and can be settled.
    pub fn stop(&self) {
        self.stop.token().cancel();
    }

    /// Waits until all that was delivered is settled and the broker was told.
    pub async fn finished(self) {
        drop(self.incoming);
        // A consumer that panicked has nothing left to tell the broker.
        let _ = self.consumer.await;
    }
}
