//! Browsing a queue.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::CHUNK;
use crate::broker::{Broker, Deliveries, Delivery, Depth, Properties, Queue};

/// How long to wait for the next dead letter before taking the queue as read.
const QUIET: Duration = Duration::from_secs(10);
/// How long the broker may take to put back what was given back.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(2);
/// Dead letters that one consumer holds: some less than AMQP's bound on unsettled deliveries.
/// All are held until the walk is over, so that none is met twice; for more there are more
/// consumers.
const HELD_BY_ONE: u16 = 60_000;

/// How often to begin again when the broker is lost meanwhile.
const RESTARTS: usize = 5;

/// A walk over the messages, dead letters mostly, that are in a queue at its beginning.
pub(in crate::cli) struct Walk<'a> {
    broker: &'a dyn Broker,
    queue: Queue,
    letters: Deliveries,
    /// Consumers that hold as much as they can.
    full: Vec<Deliveries>,
    depth: usize,
    seen: usize,
    kept: Vec<Delivery>,
    /// Letters that are acknowledged.
    gone: usize,
    restarts: usize,
    /// Consumers of others at its beginning. What they hold is not in `depth`.
    others: u32,
}

/// What a walk comes to.
pub(in crate::cli) enum Step {
    /// The next letter.
    Letter(Box<Delivery>),
    /// The broker was lost, and is there again: every letter that is not acknowledged comes again.
    Restart,
    /// There are no more.
    End,
}

impl<'a> Walk<'a> {
    pub(in crate::cli) async fn begin(
        broker: &'a dyn Broker,
        queue: Queue,
    ) -> anyhow::Result<Self> {
        let Depth { messages, consumers: others } = broker.depth(queue.clone()).await?;
        let (letters, depth) = (consume(broker, &queue).await?, messages as usize);
        let (full, kept) = (Vec::new(), Vec::new());
        let (seen, gone, restarts) = (0, 0, 0);
        Ok(Self { broker, queue, letters, full, depth, seen, kept, gone, restarts, others })
    }

    /// Whether it has met every message that was in the queue, and nobody else held any.
    pub(in crate::cli) fn is_whole(&self) -> bool {
        self.others == 0 && self.seen == self.depth
    }

    pub(in crate::cli) async fn next(&mut self) -> anyhow::Result<Step> {
        if self.is_interrupted() {
            return self.restart().await;
        }
        if self.seen == self.depth {
            return Ok(Step::End);
        }
        if self.kept.len() >= usize::from(HELD_BY_ONE) * (self.full.len() + 1) {
            let more = consume(self.broker, &self.queue).await?;
            self.full.push(std::mem::replace(&mut self.letters, more));
        }
        let here = self.full.iter_mut().find_map(Deliveries::ready);
        let letter = match here {
            Some(letter) => Some(letter),
            None => tokio::time::timeout(QUIET, self.letters.next()).await.ok().flatten(),
        };
        if self.is_interrupted() {
            // Until it is settled or dropped, its consumer does not end.
            drop(letter);
            return self.restart().await;
        }
        if let Some(letter) = letter {
            self.seen += 1;
            return Ok(Step::Letter(Box::new(letter)));
        }
        let Self { depth, seen, .. } = self;
        eprintln!("Looked at {seen} of {depth}: the others are held by someone else.");
        Ok(Step::End)
    }

    fn is_interrupted(&self) -> bool {
        self.full.iter().chain([&self.letters]).any(Deliveries::is_interrupted)
    }

    async fn restart(&mut self) -> anyhow::Result<Step> {
        self.restarts += 1;
        if self.restarts > RESTARTS {
            bail!("the broker was lost again and again; no dead letter is");
        }
        let (restarts, gone, earlier) = (self.restarts, self.gone, self.depth - self.gone);
        // The consumers that were lost may count yet.
        let others = self.others;
        let fresh = Self::begin(self.broker, self.queue.clone()).await?;
        std::mem::replace(self, fresh).end().await;
        // While the letters were on their way to another consumer they did not count.
        self.depth = self.depth.max(earlier) + gone;
        (self.seen, self.gone, self.restarts) = (gone, gone, restarts);
        self.others = others;
        Ok(Step::Restart)
    }

    /// Acknowledges a letter.
    pub(in crate::cli) fn done(&mut self, letter: Delivery) {
        self.gone += 1;
        letter.ack();
    }

    /// Leaves a letter in the queue.
    pub(in crate::cli) fn keep(&mut self, letter: Delivery) {
        self.kept.push(without_contents(letter));
    }

    /// Gives back what was kept.
    pub(in crate::cli) async fn end(self) {
        let mut consumers = self.full;
        consumers.push(self.letters);
        consumers.iter().for_each(Deliveries::stop);
        let kept = self.kept.len();
        self.kept.into_iter().for_each(Delivery::requeue);
        for consumer in consumers {
            consumer.finished().await;
        }
        // The broker may take a moment to put them back; a walk that begins before would miss them, or take these
        // consumers for others.
        let back = async || {
            let depth = self.broker.depth(self.queue.clone()).await;
            depth.map_or(true, |depth| {
                depth.messages as usize >= kept && depth.consumers <= self.others
            })
        };
        let deadline = Instant::now() + GIVEN_BACK_WITHIN;
        while !back().await && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A letter of which only the settling is needed: many may be held until the end.
pub(super) fn without_contents(mut letter: Delivery) -> Delivery {
    letter.body = Vec::new();
    letter.properties = Properties::default();
    letter
}

async fn consume(broker: &dyn Broker, queue: &Queue) -> anyhow::Result<Deliveries> {
    Ok(broker.consume(queue.clone(), HELD_BY_ONE + u16::try_from(CHUNK)?).await?)
}
