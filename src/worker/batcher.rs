//! Batches of what is ready in the two queues that a worker consumes.

use std::collections::VecDeque;

use super::batch::{Batch, Item};
use crate::broker::{Broker, BrokerError, Deliveries, Delivery, Queue};

/// Makes batches: returned intents first, but in at most half of a batch while new ones are ready, so
/// that neither queue waits for the other. Holds no more than one message that is parsed.
pub(super) struct Batcher<F> {
    /// Deferred intents, whose delay has passed.
    returned: Deliveries,
    intents: Deliveries,
    max_batch: usize,
    /// Parses a message.
    parse: F,
    /// Items of a message that was larger than the room left in its batch.
    left_over: VecDeque<Item>,
    /// The last batch had returned ones.
    had_returned: bool,
    /// Items of the message that was parsed last.
    per_message: usize,
}

impl<F: Fn(Delivery) -> VecDeque<Item>> Batcher<F> {
    /// Consumes both queues: up to `prefetch` intents at a time, and half as many returned ones.
    pub(super) async fn consume(
        broker: &dyn Broker,
        prefetch: u16,
        max_batch: usize,
        parse: F,
    ) -> Result<Self, BrokerError> {
        let returned = broker.consume(Queue::Returned, (prefetch / 2).max(1)).await?;
        let intents = broker.consume(Queue::Intents, prefetch).await?;
        Ok(Self::new(returned, intents, max_batch, parse))
    }

    fn new(returned: Deliveries, intents: Deliveries, max_batch: usize, parse: F) -> Self {
        let left_over = VecDeque::new();
        Self { returned, intents, max_batch, parse, left_over, had_returned: false, per_message: 1 }
    }

    /// The next batch, of at least one item; waits for a delivery if there is none. `None` after
    /// [`Batcher::stop`], once all that was delivered is taken. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Batch> {
        loop {
            let batch = self.ready();
            if !batch.is_empty() {
                return Some(batch);
            }
            let delivery = tokio::select! {
                biased;
                Some(delivery) = self.returned.next() => delivery,
                Some(delivery) = self.intents.next() => delivery,
                else => return None,
            };
            self.open(delivery);
        }
    }

    fn open(&mut self, delivery: Delivery) {
        self.left_over = (self.parse)(delivery);
        self.per_message = self.left_over.len();
    }

    /// Whether the next batch is likely to be as large as allowed: if the messages that are ready are like the one
    /// that was parsed last.
    pub(super) fn is_full(&self) -> bool {
        let messages = self.returned.waiting() + self.intents.waiting();
        self.left_over.len() + messages * self.per_message >= self.max_batch
    }

    /// What is ready.
    fn ready(&mut self) -> Batch {
        let half = match self.max_batch {
            // Half of one is every second batch.
            1 => usize::from(!self.had_returned),
            most => most / 2,
        };
        let (mut batch, mut returned) = (Batch::default(), 0);
        while batch.len() < self.max_batch {
            match self.left_over.pop_front() {
                Some(Item::Entry(entry)) => batch.entries.push(entry),
                Some(Item::DeadLetter(letter)) => batch.dead_letters.push(*letter),
                Some(Item::Elsewhere(orders)) => batch.deferred.push(*orders),
                None => {
                    let come_back = if returned < half { self.returned.ready() } else { None };
                    returned += usize::from(come_back.is_some());
                    let next = come_back.or_else(|| self.intents.ready());
                    let Some(delivery) = next.or_else(|| self.returned.ready()) else { break };
                    self.open(delivery);
                }
            }
        }
        if !batch.is_empty() {
            self.had_returned = returned > 0;
        }
        batch
    }

    /// Takes no more from either queue.
    pub(super) fn stop(&self) {
        self.returned.stop();
        self.intents.stop();
    }

    /// Waits until all that was delivered is settled and the broker was told.
    pub(super) async fn finished(self) {
        tokio::join!(self.returned.finished(), self.intents.finished());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio_util::sync::CancellationToken;

    use super::super::batch::{AckHandle, PendingDeadLetter};
    use super::*;
    use crate::broker::Properties;

    type Letters = Batcher<fn(Delivery) -> VecDeque<Item>>;
    type Queues = [UnboundedSender<Delivery>; 2];

    /// A batcher of messages in which every letter is an intent, and where messages are put in: returned
    /// ones, and new ones.
    fn batcher(max_batch: usize) -> (Letters, Queues) {
        let queue = || {
            let (deliver, incoming) = unbounded_channel();
            let consumer = tokio::spawn(async {});
            (
                deliver,
                Deliveries::new(
                    incoming,
                    CancellationToken::new(),
                    consumer,
                    std::sync::Arc::default(),
                ),
            )
        };
        let ((to_returned, returned), (to_intents, intents)) = (queue(), queue());
        let batcher = Batcher::new(returned, intents, max_batch, parse as fn(_) -> _);
        (batcher, [to_returned, to_intents])
    }

    fn parse(delivery: Delivery) -> VecDeque<Item> {
        let handle = AckHandle::new(delivery);
        let letter =
            |n| PendingDeadLetter::new(handle.clone(), n..n + 1, "a letter", String::new());
        (0..handle.body().len()).map(|n| Item::DeadLetter(Box::new(letter(n)))).collect()
    }

    fn delivery(body: &str) -> Delivery {
        Delivery::new(body.into(), Properties::default(), false, Box::new(|_| ()))
    }

    fn letters(batch: &Batch) -> String {
        let bodies = batch.dead_letters.iter().map(|dead| dead.letter.body.as_slice());
        String::from_utf8(bodies.collect::<Vec<_>>().concat()).unwrap()
    }

    /// The batches, of up to `max_batch`, of messages that are ready in both queues.
    async fn batches(max_batch: usize, returned: &[&str], intents: &[&str]) -> Vec<String> {
        let (mut batcher, queues) = batcher(max_batch);
        for (queue, bodies) in queues.into_iter().zip([returned, intents]) {
            for body in bodies {
                queue.send(delivery(body)).unwrap();
            }
        }
        let mut all = Vec::new();
        while let Some(batch) = batcher.next().await {
            all.push(letters(&batch));
        }
        all
    }

    #[tokio::test]
    async fn returned_intents_get_half_of_a_batch_while_others_are_ready_and_else_all_of_it() {
        assert_eq!(batches(4, &["r"; 5], &["i"; 5]).await, ["rrii", "rrii", "ri"]);
        assert_eq!(batches(4, &["r"; 1], &["i"; 5]).await, ["riii", "ii"]);
        assert_eq!(batches(4, &["r"; 7], &["i"; 1]).await, ["rrir", "rrrr"]);
        assert_eq!(batches(4, &["r"; 5], &[]).await, ["rrrr", "r"]);
        assert_eq!(batches(4, &["r"; 3], &["ijklm"]).await, ["rrij", "klmr"]);
        assert_eq!(batches(1, &["r"; 3], &["i"; 2]).await, ["r", "i", "r", "i", "r"]);
    }

    #[tokio::test]
    async fn a_batch_is_full_when_what_is_ready_would_fill_it() {
        let (mut batcher, [to_returned, to_intents]) = batcher(4);
        let send = |queue: &UnboundedSender<Delivery>, body| queue.send(delivery(body)).unwrap();
        for _ in 0..2 {
            send(&to_intents, "i");
        }
        send(&to_returned, "r");
        assert!(!batcher.is_full());
        send(&to_intents, "i");
        assert!(batcher.is_full());
        assert_eq!(letters(&batcher.next().await.unwrap()), "riii");
        assert!(!batcher.is_full());
        send(&to_intents, "ijk");
        assert_eq!(letters(&batcher.next().await.unwrap()), "ijk");
        // Two messages with three each.
        send(&to_intents, "ijk");
        assert!(!batcher.is_full());
        send(&to_intents, "ijk");
        assert!(batcher.is_full());
    }

    #[tokio::test]
    async fn a_batch_that_is_not_waited_for_any_more_loses_nothing() {
        let (mut batcher, [to_returned, to_intents]) = batcher(2);
        assert!(batcher.next().now_or_never().is_none());
        to_intents.send(delivery("ijk")).unwrap();
        assert_eq!(letters(&batcher.next().await.unwrap()), "ij");
        to_returned.send(delivery("r")).unwrap();
        assert_eq!(letters(&batcher.next().await.unwrap()), "kr");
        assert!(batcher.next().now_or_never().is_none());
    }
}
