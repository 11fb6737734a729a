//! Batches: whatever is ready, without waiting for more.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::broker::{DeadLetter, Delay, Delivery, Properties};
use crate::domain::intent;
use crate::domain::order::Candidate;

/// One intent's share of a delivery. A delivery is acknowledged when all its shares are done; a
/// share that is given back sends the whole delivery back to the queue, and so does one that is
/// dropped, as one that failed.
#[derive(Debug)]
pub(super) struct Ticket(Option<Arc<Share>>);

#[derive(Debug)]
struct Share {
    delivery: Delivery,
    given_back: AtomicBool,
    failed: AtomicBool,
}

impl Ticket {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self(Some(Arc::new(Share {
            delivery,
            given_back: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        })))
    }

    /// Another share of the same delivery.
    pub(super) fn share(&self) -> Self {
        Self(self.0.clone())
    }

    fn delivery(&self) -> &Delivery {
        let Some(share) = &self.0 else { unreachable!("taken only by done and drop") };
        &share.delivery
    }

    /// What the delivery came with.
    pub(super) fn properties(&self) -> &Properties {
        &self.delivery().properties
    }

    /// It may have been delivered before.
    pub(super) fn redelivered(&self) -> bool {
        self.delivery().redelivered
    }

    /// The whole body of the delivery.
    pub(super) fn body(&self) -> &[u8] {
        &self.delivery().body
    }

    /// This share needs no more work.
    pub(super) fn done(mut self) {
        Self::settle(self.0.take());
    }

    /// This share is to be done by somebody else, by no fault of its own.
    pub(super) fn give_back(mut self) {
        let share = self.0.take();
        if let Some(share) = &share {
            share.given_back.store(true, Ordering::Relaxed);
        }
        Self::settle(share);
    }

    fn settle(share: Option<Arc<Share>>) {
        if let Some(Share { delivery, given_back, failed }) = share.and_then(Arc::into_inner) {
            if failed.into_inner() {
                delivery.reject();
            } else if given_back.into_inner() {
                delivery.requeue();
            } else {
                delivery.ack();
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(share) = self.0.take() {
            share.failed.store(true, Ordering::Relaxed);
            Self::settle(Some(share));
        }
    }
}

/// An order on its way, with its share of the delivery it came in.
#[derive(Debug)]
pub(super) struct Entry {
    pub candidate: Candidate,
    pub ticket: Ticket,
    /// Where in the body of the delivery it stands.
    pub place: Range<usize>,
    /// Its time was given by the ledger, and is not in its message.
    pub has_ledger_time: bool,
}

impl Entry {
    /// Turns it into a dead letter with its own bytes.
    pub(super) fn park(self, reason: &'static str, detail: String) -> Parked {
        Parked::new(self.ticket, self.place, reason, detail)
    }
}

/// A dead letter to be published, with its share of the delivery.
#[derive(Debug)]
pub(super) struct Parked {
    pub letter: DeadLetter,
    pub ticket: Ticket,
}

impl Parked {
    pub(super) fn new(
        ticket: Ticket,
        place: Range<usize>,
        reason: &'static str,
        detail: String,
    ) -> Self {
        let start = place.start;
        let body = ticket.body()[place].to_vec();
        let properties = ticket.properties().clone();
        let id = DeadLetter::id_of(&properties, start, &body);
        Self { letter: DeadLetter { body, properties, reason: reason.into(), detail, id }, ticket }
    }
}

/// A message that comes again later, by way of a delay queue, with its share of the delivery.
#[derive(Debug)]
pub(super) struct Deferred {
    pub ticket: Ticket,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub delay: Delay,
}

impl Deferred {
    /// An order, in the bytes it came in. One whose time was given by the ledger gets that written in, or
    /// it would never expire.
    pub(super) fn order(entry: Entry, delay: Delay) -> Self {
        let Entry { candidate: Candidate { order, submitted_at, .. }, ticket, place, .. } = entry;
        let body = match submitted_at {
            Some(submitted_at) if entry.has_ledger_time => intent::to_json(&order, submitted_at),
            _ => ticket.body()[place].to_vec(),
        };
        Self { ticket, routing_key: order.sale_id.to_string(), body, delay }
    }

    /// A dead letter that found no place.
    pub(super) fn letter(Parked { letter, ticket }: Parked, delay: Delay) -> Self {
        Self { ticket, routing_key: letter.properties.routing_key, body: letter.body, delay }
    }
}

/// What is taken through the stages together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In queue order.
    pub entries: Vec<Entry>,
    pub parked: Vec<Parked>,
    pub deferred: Vec<Deferred>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out as much as a batch of up to `most` may have.
    pub(super) fn split_off_first(&mut self, most: usize) -> Self {
        let entries = self.entries.drain(..self.entries.len().min(most)).collect();
        let parked = self.parked.drain(..self.parked.len().min(most)).collect();
        let deferred = self.deferred.drain(..self.deferred.len().min(most)).collect();
        Self { entries, parked, deferred }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.parked.len() + self.deferred.len()
    }
}

/// One intent of a message, or the reason why it is none.
#[derive(Debug)]
pub(super) enum Item {
    Entry(Entry),
    Parked(Box<Parked>),
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::broker::Settlement;

    fn ticket() -> (Ticket, mpsc::Receiver<Settlement>) {
        let (told, heard) = mpsc::channel();
        let settle = Box::new(move |settlement| {
            let _ = told.send(settlement);
        });
        (Ticket::new(Delivery::new(Vec::new(), Properties::default(), false, settle)), heard)
    }

    #[test]
    fn a_delivery_is_acknowledged_with_its_last_share() {
        let (first, heard) = ticket();
        let second = first.share();
        first.done();
        assert!(heard.try_recv().is_err());
        second.done();
        assert_eq!(heard.try_recv(), Ok(Settlement::Ack));
    }

    #[test]
    fn a_share_that_is_not_done_sends_the_delivery_back_once_the_others_are_done() {
        for (give_back, expected) in [(true, Settlement::Requeue), (false, Settlement::Reject)] {
            let (first, heard) = ticket();
            let second = first.share();
            if give_back {
                first.give_back();
            } else {
                drop(first);
            }
            assert!(heard.try_recv().is_err());
            second.done();
            assert_eq!(heard.try_recv(), Ok(expected));
        }
    }
}
