//! The names of exchanges, queues and headers: the only place that spells them.

use super::{Delay, Queue, Topic};

/// Headers: of an intent, and of a dead letter.
pub mod header {
    /// An intent's: the media type of a batch of events, if its reply may be in one.
    pub const ACCEPT: &str = "accept";
    /// The trace that a message belongs to, as W3C has it.
    pub const TRACEPARENT: &str = "traceparent";
    /// What else those who record the trace say of it, likewise.
    pub const TRACESTATE: &str = "tracestate";
    /// Why it can't be decided: one word.
    pub const REASON: &str = "floodgate-reason";
    /// The same for a person to read.
    pub const DETAIL: &str = "floodgate-detail";
    /// The queue it came from.
    pub const QUEUE: &str = "floodgate-queue";
    /// When it was dead-lettered, RFC 3339.
    pub const AT: &str = "floodgate-at";
    /// By which a repeat can be recognised.
    pub const ID: &str = "floodgate-id";
    /// The message's `priority` property; a dead letter has none, so that none jumps the queue.
    pub const PRIORITY: &str = "floodgate-priority";
    /// The message's `expiration` property; a dead letter has none, so that none vanishes.
    pub const EXPIRATION: &str = "floodgate-expiration";
    /// What of the message is not kept: the length of its body, names of headers.
    pub const CUT: &str = "floodgate-cut";
    /// What every header of a dead letter begins with.
    pub const PREFIX: &str = "floodgate-";
}

/// How often a dead letter may come back. They are browsed by taking and giving back, and each giving back counts as
/// an attempt; since RabbitMQ 4.0 a queue without a limit drops messages after 20.
pub const DEAD_LETTER_DELIVERY_LIMIT: u32 = 1_000_000;

/// The routing key of what a worker says of itself.
pub(super) const WORKER: &str = "worker";

/// Names within one namespace.
#[derive(Debug, Clone)]
pub struct Topology {
    namespace: String,
}

impl Topology {
    /// The names that begin with `namespace`.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// Topic exchange that producers post to; routing key: the sale id.
    pub fn intents_exchange(&self) -> String {
        format!("{}.intents", self.namespace)
    }

    /// Topic exchange that subscribers bind to; routing keys: `order.<outcome>.<sale>`,
    /// `sale.sold_out.<sale>`, `sale.restocked.<sale>`.
    pub fn events_exchange(&self) -> String {
        format!("{}.events", self.namespace)
    }

    /// The stream of the feed.
    pub fn feed(&self) -> String {
        format!("{}.feed", self.namespace)
    }

    /// Topic exchange for events in batches; routing keys: the sale id, or [`MIXED`](super::MIXED).
    pub fn event_batches_exchange(&self) -> String {
        format!("{}.event-batches", self.namespace)
    }

    /// Topic exchange for what workers say of themselves; routing key: `worker`.
    pub fn status_exchange(&self) -> String {
        format!("{}.status", self.namespace)
    }

    /// The exchange that has a topic, and the routing key to bind a queue to it with.
    pub fn binding(&self, topic: Topic<'_>) -> (String, String) {
        match topic {
            Topic::Events(routing_key) => (self.events_exchange(), routing_key.to_owned()),
            Topic::Batches(routing_key) => (self.event_batches_exchange(), routing_key.to_owned()),
            Topic::Status => (self.status_exchange(), WORKER.to_owned()),
        }
    }

    /// Topic exchange for messages that can't be decided; routing key: as they came.
    pub fn dead_exchange(&self) -> String {
        format!("{}.dead", self.namespace)
    }

    /// Topic exchange for intents whose delay has passed; routing key: as they came.
    pub fn returned_exchange(&self) -> String {
        format!("{}.returned", self.namespace)
    }

    /// Topic exchange for deferred intents, and the queue behind it in which they wait; routing key:
    /// as they came.
    pub fn delay(&self, delay: Delay) -> String {
        format!("{}.delay.{}", self.namespace, delay.ms())
    }

    /// Consistent-hash exchange that gives each sale's messages of `exchange` to one shard; routing key: as they
    /// came.
    pub fn sharded(&self, exchange: &str) -> String {
        format!("{exchange}.sharded")
    }

    /// An exchange that is there while the intake is sharded, and that no message goes through: who
    /// declares what is missing sees by it that the queues without a number are not bound.
    pub fn sharded_mark(&self) -> String {
        format!("{}.is-sharded", self.namespace)
    }

    /// All exchanges, but those for shards.
    pub fn exchanges(&self) -> Vec<String> {
        let mut all = vec![
            self.intents_exchange(),
            self.returned_exchange(),
            self.events_exchange(),
            self.event_batches_exchange(),
            self.status_exchange(),
            self.dead_exchange(),
        ];
        all.extend(Delay::ALL.map(|delay| self.delay(delay)));
        all
    }

    /// The name of a queue.
    pub fn queue(&self, queue: &Queue) -> String {
        match queue {
            Queue::Intents => format!("{}.intents", self.namespace),
            Queue::IntentsShard(number) => format!("{}.intents.{number}", self.namespace),
            Queue::Returned => format!("{}.returned", self.namespace),
            Queue::ReturnedShard(number) => format!("{}.returned.{number}", self.namespace),
            Queue::DeadLetters => format!("{}.dead", self.namespace),
            Queue::Subscriber(name) => format!("{}.subscriber.{name}", self.namespace),
            Queue::Private(name) => format!("{}.private.{name}", self.namespace),
            Queue::Named(name) => name.clone(),
        }
    }

    /// Whether a queue is floodgate's own, and therefore no place for a reply. One of a process that
    /// waits for replies is.
    pub fn is_own(&self, queue: &str) -> bool {
        let name = queue.strip_prefix(&self.namespace).and_then(|name| name.strip_prefix('.'));
        name.is_some_and(|name| !name.starts_with("private."))
    }

    /// `source` of every event.
    pub fn event_source(&self) -> String {
        format!("/{}", self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_go_to_no_queue_of_floodgate_but_those_that_wait_for_them() {
        let names = Topology::new("shop");
        let own = [Queue::Intents, Queue::Returned, Queue::DeadLetters];
        let own = own.map(|queue| names.queue(&queue)).into_iter();
        let delays = Delay::ALL.map(|delay| names.delay(delay));
        let subscriber = names.queue(&Queue::Subscriber("mail".into()));
        for queue in own.chain(delays).chain([subscriber]) {
            assert!(names.is_own(&queue), "{queue}");
        }
        let private = names.queue(&Queue::Private("api-7".into()));
        for queue in [private.as_str(), "shop", "shopping.replies", "amq.gen-x", ""] {
            assert!(!names.is_own(queue), "{queue}");
        }
    }
}
