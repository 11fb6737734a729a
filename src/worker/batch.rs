//! Batches of intents, and how their deliveries are acknowledged.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Utc};

use crate::broker::{DeadLetter, Delay, Delivery, Properties};
use crate::domain::intent;
use crate::domain::order::{Candidate, SaleId};
use crate::traces::Traced;

/// Acknowledges a delivery for one of its intents. The delivery is acknowledged when all its handles are; a handle
/// that is requeued returns the whole delivery to the queue once the others are settled, and so does one that is
/// dropped, as one that failed. A clone is the handle of another intent.
#[derive(Debug, Clone)]
pub(super) struct AckHandle(Option<Arc<SharedDelivery>>);

#[derive(Debug)]
struct SharedDelivery {
    delivery: Delivery,
    requeued: AtomicBool,
    failed: AtomicBool,
}

impl AckHandle {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self(Some(Arc::new(SharedDelivery {
            delivery,
            requeued: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        })))
    }

    fn delivery(&self) -> &Delivery {
        let Some(shared) = &self.0 else { unreachable!("taken only when it is settled") };
        &shared.delivery
    }

    /// What the delivery came with.
    pub(super) fn properties(&self) -> &Properties {
        &self.delivery().properties
    }

    /// It may have been delivered before.
    pub(super) fn redelivered(&self) -> bool {
        self.delivery().redelivered
    }

    /// Its oldest order is from `time`, if that is known.
    pub(super) fn is_since(&self, time: Option<DateTime<Utc>>) {
        if let Some(time) = time {
            self.delivery().is_since(time);
        }
    }

    /// The whole body of the delivery.
    pub(super) fn body(&self) -> &[u8] {
        &self.delivery().body
    }

    /// This intent needs no more work.
    pub(super) fn ack(mut self) {
        Self::settle(self.0.take());
    }

    /// This intent is left to another worker. Its message has not failed.
    pub(super) fn requeue(mut self) {
        let shared = self.0.take();
        if let Some(shared) = &shared {
            shared.requeued.store(true, Ordering::Relaxed);
        }
        Self::settle(shared);
    }

    fn settle(shared: Option<Arc<SharedDelivery>>) {
        if let Some(SharedDelivery { delivery, requeued, failed }) =
            shared.and_then(Arc::into_inner)
        {
            if failed.into_inner() {
                delivery.reject();
            } else if requeued.into_inner() {
                delivery.requeue();
            } else {
                delivery.ack();
            }
        }
    }
}

impl Drop for AckHandle {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.failed.store(true, Ordering::Relaxed);
            Self::settle(Some(shared));
        }
    }
}

/// An order on its way, with the handle that acknowledges it.
#[derive(Debug)]
pub(super) struct Entry {
    pub candidate: Candidate,
    pub handle: AckHandle,
    /// Its bytes in the body of the delivery.
    pub span: Range<usize>,
    /// Its time was given by the ledger, and is not in its message.
    pub has_ledger_time: bool,
    /// From its delivery to when it is settled.
    pub traced: Traced,
}

impl Entry {
    /// Turns it into a dead letter with its own bytes.
    pub(super) fn dead_letter(self, reason: &'static str, detail: String) -> PendingDeadLetter {
        PendingDeadLetter::new(self.handle, self.span, reason, detail)
    }
}

/// A dead letter to be published, with the handle that acknowledges it.
#[derive(Debug)]
pub(super) struct PendingDeadLetter {
    pub letter: DeadLetter,
    pub handle: AckHandle,
}

impl PendingDeadLetter {
    pub(super) fn new(
        handle: AckHandle,
        span: Range<usize>,
        reason: &'static str,
        detail: String,
    ) -> Self {
        let start = span.start;
        let body = handle.body()[span].to_vec();
        let properties = handle.properties().clone();
        let id = DeadLetter::id_of(&properties, start, &body);
        Self { letter: DeadLetter { body, properties, reason: reason.into(), detail, id }, handle }
    }
}

/// A message that comes again later, by way of a delay queue, with the handle that acknowledges this delivery.
#[derive(Debug)]
pub(super) struct Deferred {
    pub handle: AckHandle,
    pub routing_key: String,
    pub body: Vec<u8>,
    /// None: it is to be decided by the worker that has its shard.
    pub delay: Option<Delay>,
    /// When its order was submitted, as far as that is known.
    pub since: Option<DateTime<Utc>>,
}

impl Deferred {
    /// An order, in the bytes it came in. One whose time was given by the ledger gets that written in, or
    /// it would never expire.
    pub(super) fn order(mut entry: Entry, delay: Delay) -> Self {
        if let Some(traced) = &mut entry.traced {
            traced.event("deferred", [("delay_ms", delay.ms().to_string())]);
        }
        let Entry { candidate: Candidate { order, submitted_at, .. }, handle, span, .. } = entry;
        let body = match submitted_at {
            Some(submitted_at) if entry.has_ledger_time => intent::to_json(&order, submitted_at),
            _ => handle.body()[span].to_vec(),
        };
        let routing_key = order.sale_id.to_string();
        Self { handle, routing_key, body, delay: Some(delay), since: submitted_at }
    }

    /// Orders of a sale, in the bytes they came in, for the shard of that sale.
    pub(super) fn elsewhere(handle: &AckHandle, sale: &SaleId, entries: Vec<Entry>) -> Self {
        let bodies: Vec<&[u8]> =
            entries.iter().map(|entry| &handle.body()[entry.span.clone()]).collect();
        let body = match bodies.as_slice() {
            [one] => one.to_vec(),
            many => [b"[", many.join(&b","[..]).as_slice(), b"]"].concat(),
        };
        // The message is acknowledged by one handle for all of them.
        for entry in entries {
            entry.handle.ack();
        }
        Self {
            handle: handle.clone(),
            routing_key: sale.to_string(),
            body,
            delay: None,
            since: None,
        }
    }

    /// A dead letter that a full queue refused.
    pub(super) fn letter(
        PendingDeadLetter { letter, handle }: PendingDeadLetter,
        delay: Delay,
    ) -> Self {
        let delay = Some(delay);
        let routing_key = letter.properties.routing_key;
        Self { handle, routing_key, body: letter.body, delay, since: None }
    }
}

/// What is taken through the stages together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In queue order.
    pub entries: Vec<Entry>,
    pub dead_letters: Vec<PendingDeadLetter>,
    pub deferred: Vec<Deferred>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.dead_letters.len() + self.deferred.len()
    }
}

/// One intent of a message, or the reason why it is none.
#[derive(Debug)]
pub(super) enum Item {
    Entry(Entry),
    DeadLetter(Box<PendingDeadLetter>),
    /// Orders of a sale that another shard may have, as one message.
    Elsewhere(Box<Deferred>),
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::broker::Settlement;

    fn handle() -> (AckHandle, mpsc::Receiver<Settlement>) {
        let (told, heard) = mpsc::channel();
        let settle = Box::new(move |settlement| {
            let _ = told.send(settlement);
        });
        (AckHandle::new(Delivery::new(Vec::new(), Properties::default(), false, settle)), heard)
    }

    #[test]
    fn a_delivery_is_acknowledged_with_its_last_intent() {
        let (first, heard) = handle();
        let second = first.clone();
        first.ack();
        assert!(heard.try_recv().is_err());
        second.ack();
        assert_eq!(heard.try_recv(), Ok(Settlement::Ack));
    }

    #[test]
    fn an_intent_that_is_not_acknowledged_returns_the_delivery_once_the_others_are_settled() {
        for (requeue, expected) in [(true, Settlement::Requeue), (false, Settlement::Reject)] {
            let (first, heard) = handle();
            let second = first.clone();
            if requeue {
                first.requeue();
            } else {
                drop(first);
            }
            assert!(heard.try_recv().is_err());
            second.ack();
            assert_eq!(heard.try_recv(), Ok(expected));
        }
    }
}
