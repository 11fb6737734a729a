//! Batches: whatever is ready, without waiting for more.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::sources::{Origin, Sources};
use crate::broker::{DeadLetter, Delay, Delivery, Properties};
use crate::order::Candidate;

/// One intent's share of a delivery. A delivery is acknowledged when all its shares are done; a
/// share that is dropped before sends the whole delivery back to the queue.
#[derive(Debug)]
pub(super) struct Ticket(Option<Arc<Share>>);

#[derive(Debug)]
struct Share {
    delivery: Delivery,
    given_up: AtomicBool,
}

impl Ticket {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self(Some(Arc::new(Share { delivery, given_up: AtomicBool::new(false) })))
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

    fn settle(share: Option<Arc<Share>>) {
        if let Some(Share { delivery, given_up }) = share.and_then(Arc::into_inner) {
            if given_up.into_inner() {
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
            share.given_up.store(true, Ordering::Relaxed);
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
        let body = ticket.body()[place].to_vec();
        let properties = ticket.properties().clone();
        Self { letter: DeadLetter { body, properties, reason, detail }, ticket }
    }
}

/// An order that comes again later, by way of a delay queue.
#[derive(Debug)]
pub(super) struct Deferred {
    pub entry: Entry,
    pub delay: Delay,
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
    Parked(Parked),
}

/// Makes batches of deliveries: returned intents first, but in at most half of the places of a batch
/// while new ones are ready, so that neither queue waits for the other. Of each queue it holds no more
/// than one message that is taken apart.
pub(super) struct Batcher<F> {
    max_batch: usize,
    /// Takes a message apart.
    take_apart: F,
    /// Items of a message that was larger than the room left in its batch.
    returned: VecDeque<Item>,
    intents: VecDeque<Item>,
    /// The last batch had returned ones.
    had_returned: bool,
}

impl<F: Fn(Delivery) -> VecDeque<Item>> Batcher<F> {
    pub(super) fn new(max_batch: usize, take_apart: F) -> Self {
        let (returned, intents) = (VecDeque::new(), VecDeque::new());
        Self { max_batch, take_apart, returned, intents, had_returned: false }
    }

    /// The next batch, of at least one item; waits for a delivery if there is none. `None` when
    /// no more will come. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, sources: &mut Sources) -> Option<Batch> {
        loop {
            let batch = self.ready(sources);
            if !batch.is_empty() {
                return Some(batch);
            }
            let (origin, delivery) = sources.next().await?;
            *self.left_over(origin) = (self.take_apart)(delivery);
        }
    }

    /// What is ready.
    fn ready(&mut self, sources: &mut Sources) -> Batch {
        let half = match self.max_batch {
            // Half of one place is every second batch.
            1 => usize::from(!self.had_returned),
            places => places / 2,
        };
        let (mut batch, mut returned) = (Batch::default(), 0);
        while batch.len() < self.max_batch {
            let order = if returned < half {
                [Origin::Returned, Origin::Intents]
            } else {
                [Origin::Intents, Origin::Returned]
            };
            let item =
                order.into_iter().find_map(|origin| Some((origin, self.item(origin, sources)?)));
            let Some((origin, item)) = item else { break };
            returned += usize::from(origin == Origin::Returned);
            match item {
                Item::Entry(entry) => batch.entries.push(entry),
                Item::Parked(parked) => batch.parked.push(parked),
            }
        }
        if !batch.is_empty() {
            self.had_returned = returned > 0;
        }
        batch
    }

    /// The next item of a queue, if it is here.
    fn item(&mut self, origin: Origin, sources: &mut Sources) -> Option<Item> {
        if self.left_over(origin).is_empty() {
            *self.left_over(origin) = (self.take_apart)(sources.ready(origin)?);
        }
        self.left_over(origin).pop_front()
    }

    fn left_over(&mut self, origin: Origin) -> &mut VecDeque<Item> {
        match origin {
            Origin::Returned => &mut self.returned,
            Origin::Intents => &mut self.intents,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::super::sources::tests::{delivery, sources};
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
    fn a_share_that_is_given_up_sends_the_delivery_back_once_the_others_are_done() {
        let (first, heard) = ticket();
        let second = first.share();
        drop(first);
        assert!(heard.try_recv().is_err());
        second.done();
        assert_eq!(heard.try_recv(), Ok(Settlement::Requeue));
    }

    /// A batcher of messages in which every letter is an intent.
    fn batcher(max_batch: usize) -> Batcher<impl Fn(Delivery) -> VecDeque<Item>> {
        Batcher::new(max_batch, |delivery| {
            let ticket = Ticket::new(delivery);
            let letter = |n| Parked::new(ticket.share(), n..n + 1, "a letter", String::new());
            (0..ticket.body().len()).map(|n| Item::Parked(letter(n))).collect()
        })
    }

    /// The batches, of up to `max_batch`, of messages that are ready in both queues.
    async fn batches(max_batch: usize, returned: &[&str], intents: &[&str]) -> Vec<String> {
        let (mut sources, to_returned, to_intents) = sources();
        for (queue, bodies) in [(to_returned, returned), (to_intents, intents)] {
            for body in bodies {
                queue.send(delivery(body)).unwrap();
            }
        }
        let mut batcher = batcher(max_batch);
        let mut all = Vec::new();
        while let Some(batch) = batcher.next(&mut sources).await {
            all.push(letters(&batch));
        }
        all
    }

    fn letters(batch: &Batch) -> String {
        let bodies: Vec<&[u8]> =
            batch.parked.iter().map(|parked| parked.letter.body.as_slice()).collect();
        String::from_utf8(bodies.concat()).unwrap()
    }

    #[tokio::test]
    async fn returned_intents_get_half_of_a_batch_while_others_are_ready_and_else_all_of_it() {
        assert_eq!(batches(4, &["r"; 5], &["i"; 5]).await, ["rrii", "rrii", "ri"]);
        assert_eq!(batches(4, &["r"; 1], &["i"; 5]).await, ["riii", "ii"]);
        assert_eq!(batches(4, &["r"; 7], &["i"; 1]).await, ["rrir", "rrrr"]);
        assert_eq!(batches(5, &["r"; 4], &["i"; 4]).await, ["rriii", "rri"]);
        assert_eq!(batches(4, &["r"; 5], &[]).await, ["rrrr", "r"]);
        assert_eq!(batches(4, &[], &["i"; 5]).await, ["iiii", "i"]);
    }

    #[tokio::test]
    async fn a_large_message_of_either_queue_leaves_the_other_its_places() {
        assert_eq!(batches(4, &["rstuv"], &["i"; 5]).await, ["rsii", "tuii", "vi"]);
        assert_eq!(batches(4, &["r"; 3], &["ijklm"]).await, ["rrij", "rklm"]);
    }

    #[tokio::test]
    async fn in_batches_of_one_place_the_queues_take_turns() {
        assert_eq!(batches(1, &["r"; 3], &["i"; 3]).await, ["r", "i", "r", "i", "r", "i"]);
        assert_eq!(batches(1, &["r"; 3], &["i"; 1]).await, ["r", "i", "r", "r"]);
    }

    #[tokio::test]
    async fn a_batch_that_is_not_waited_for_any_more_loses_nothing() {
        let (mut sources, to_returned, to_intents) = sources();
        let mut batcher = batcher(2);
        assert!(batcher.next(&mut sources).now_or_never().is_none());
        to_intents.send(delivery("ijk")).unwrap();
        assert_eq!(letters(&batcher.next(&mut sources).await.unwrap()), "ij");
        to_returned.send(delivery("r")).unwrap();
        assert_eq!(letters(&batcher.next(&mut sources).await.unwrap()), "rk");
        assert!(batcher.next(&mut sources).now_or_never().is_none());
    }
}
