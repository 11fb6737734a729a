//! Browsing the dead letters.

use std::time::Duration;

use super::CHUNK;
use crate::broker::{Broker, Deliveries, Delivery, Properties, Queue};

/// How long to wait for the next dead letter before taking the queue as read.
const QUIET: Duration = Duration::from_secs(10);
/// Dead letters that one consumer holds: some less than AMQP's bound on unsettled deliveries.
/// All are held until the walk is over, so that none is met twice; for more there are more
/// consumers.
const HELD_BY_ONE: u16 = 60_000;

/// A walk over the dead letters that are in the queue at its beginning. When the broker is lost meanwhile, what
/// was kept or not settled yet comes again, so that another walk has to begin.
pub(super) struct Walk<'a> {
    broker: &'a dyn Broker,
    letters: Deliveries,
    /// Consumers that hold as much as they can.
    full: Vec<Deliveries>,
    depth: usize,
    seen: usize,
    kept: Vec<Delivery>,
}

impl<'a> Walk<'a> {
    pub(super) async fn begin(broker: &'a dyn Broker) -> anyhow::Result<Self> {
        let depth = broker.depth(Queue::DeadLetters).await?.messages as usize;
        let letters = consume(broker).await?;
        Ok(Self { broker, letters, full: Vec::new(), depth, seen: 0, kept: Vec::new() })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Delivery>> {
        if self.seen == self.depth || self.is_interrupted() {
            return Ok(None);
        }
        if self.kept.len() >= usize::from(HELD_BY_ONE) * (self.full.len() + 1) {
            let more = consume(self.broker).await?;
            self.full.push(std::mem::replace(&mut self.letters, more));
        }
        let here = self.full.iter_mut().find_map(Deliveries::ready);
        let letter = match here {
            Some(letter) => Some(letter),
            None => tokio::time::timeout(QUIET, self.letters.next()).await.ok().flatten(),
        };
        if self.is_interrupted() {
            return Ok(None);
        }
        if letter.is_some() {
            self.seen += 1;
            return Ok(letter);
        }
        let Self { depth, seen, .. } = self;
        eprintln!("Looked at {seen} of {depth}: the others are held by someone else.");
        Ok(None)
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.full.iter().chain([&self.letters]).any(Deliveries::is_interrupted)
    }

    /// Leaves a letter in the queue.
    pub(super) fn keep(&mut self, mut letter: Delivery) {
        // Many may be held until the end; only their settling is needed for that.
        letter.body = Vec::new();
        letter.properties = Properties::default();
        self.kept.push(letter);
    }

    /// Gives back what was kept. Returns whether the walk came to its end; if not, another is to begin.
    pub(super) async fn end(self) -> bool {
        let is_whole = !self.is_interrupted();
        let mut consumers = self.full;
        consumers.push(self.letters);
        consumers.iter().for_each(Deliveries::stop);
        self.kept.into_iter().for_each(Delivery::requeue);
        for consumer in consumers {
            consumer.finished().await;
        }
        is_whole
    }
}

async fn consume(broker: &dyn Broker) -> anyhow::Result<Deliveries> {
    Ok(broker.consume(Queue::DeadLetters, HELD_BY_ONE + u16::try_from(CHUNK)?).await?)
}
