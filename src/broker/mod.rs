//! The broker's port: intents come in, decisions go out.

mod delivery;
mod embedded;
mod feed;
mod message;
mod rabbitmq;
mod topics;
pub mod topology;

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, serde_as};

use crate::domain::event::FeedStart;

pub use delivery::{Deliveries, Delivery, Settlement};
pub use embedded::EmbeddedBroker;
pub use feed::{Fed, FeedBounds, FeedError, FeedReader, FeedSettings};
use message::cut;
pub use message::{
    DeadLetter, DeathInfo, KEPT_BYTES, Message, Original, Properties, Published, Receipt, Reply,
};
pub use rabbitmq::{RabbitBroker, UNLOGGED};
pub use topics::{EventBatch, EventSettings, MIXED, PublishedAs, Topic};

/// A message broker that delivers at least once.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Takes messages from `queue`, up to `prefetch` of them unsettled at any time. Goes on through
    /// lost connections until [`Deliveries::stop`]. An error if the broker can't be reached now; a queue of intents
    /// is taken from when it can.
    async fn consume(&self, queue: Queue, prefetch: u16) -> Result<Deliveries, BrokerError> {
        self.subscribe(queue, &[], prefetch).await
    }

    /// The same, and has `queue`, if it is a subscriber's or a private one, get what `topics` say.
    /// Makes such a queue if it isn't there.
    async fn subscribe(
        &self,
        queue: Queue,
        topics: &[Topic<'_>],
        prefetch: u16,
    ) -> Result<Deliveries, BrokerError>;

    /// Has the consumers of intents and of returned ones take those of these shards besides, and of no others. A
    /// shard has one consumer at a time: another one gets its first message when this one has settled all it had.
    fn take_shards(&self, _shards: &[u16]) {}

    /// Publishes `messages` and waits until the broker has taken charge of each, or has not in time.
    async fn publish(&self, messages: &[Message<'_>]) -> Published;

    /// Sends a decision to the one who asked for it. Never waits and never fails: a reply that cannot
    /// be sent soon, or whose queue is gone, full or one of floodgate's own, is dropped and counted.
    fn reply(&self, reply: Reply);

    /// Reads the feed. A place that is not kept any more, or that the feed never had, is refused.
    async fn feed(&self, start: FeedStart) -> Result<FeedReader, FeedError>;

    /// What `queue` is called where a reply is wanted.
    fn address(&self, queue: &Queue) -> String;

    /// Deferred intents whose delay has not passed.
    async fn deferred(&self) -> Result<u64, BrokerError>;

    /// How much waits in `queue`, and for how many.
    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError>;
}

/// Section `broker` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct BrokerSettings {
    pub prefetch: u16,
    pub prefetch_bytes: u64,
    #[serde(rename = "confirm_timeout_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub confirm_timeout: Duration,
    pub heartbeat_s: u16,
}

/// Bounds on what is taken from queues, and on what is kept for the feed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How often a message may come back to a queue of intents before it becomes a dead letter.
    pub delivery_limit: u32,
    /// The largest body of an intent message, in bytes. Of a larger one only the beginning is held.
    pub max_body_bytes: usize,
    /// The most bytes of unsettled intent messages that a consumer holds.
    pub prefetch_bytes: u64,
    /// The feed; `None`: there is none.
    pub feed: Option<FeedBounds>,
}

impl Bounds {
    /// The prefetch to use for `queue`: at most `prefetch`, and for intents at most as many messages as fit
    /// into [`Bounds::prefetch_bytes`] at the largest size. Other queues hold messages of floodgate's own,
    /// which are small.
    fn window(&self, queue: &Queue, prefetch: u16) -> u16 {
        if !queue.has_intents() {
            return prefetch.max(1);
        }
        let fitting = self.prefetch_bytes / (self.max_body_bytes as u64).max(1);
        prefetch.min(u16::try_from(fitting).unwrap_or(u16::MAX)).max(1)
    }

    /// The largest body that is taken from `queue` as a whole.
    fn largest(&self, queue: &Queue) -> usize {
        if queue.has_intents() { self.max_body_bytes } else { usize::MAX }
    }
}

/// The queues of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Queue {
    /// Intents that wait for a decision.
    Intents,
    /// The same, of one shard. A sale's orders are all in one shard.
    IntentsShard(u16),
    /// Intents whose delay has passed. They have a queue of their own, so that a delay of a second
    /// does not become one behind the whole backlog.
    Returned,
    /// The same, of one shard.
    ReturnedShard(u16),
    /// Messages that could not be decided.
    DeadLetters,
    /// Events for a subscriber, by its name. They are kept while it is away.
    Subscriber(String),
    /// Events and replies for one consumer of this process, by a name that no other has. They are
    /// gone with it, and those of a moment in which the broker is away are missed.
    Private(String),
    /// A subscriber's queue that it has made itself, by its whole name.
    Named(String),
}

impl Queue {
    /// The queue's shard, if it is one of intents or of returned ones that is not sharded.
    fn shard(&self, number: u16) -> Option<Self> {
        match self {
            Self::Intents => Some(Self::IntentsShard(number)),
            Self::Returned => Some(Self::ReturnedShard(number)),
            _ => None,
        }
    }

    /// Whether it is a shard.
    fn is_shard(&self) -> bool {
        matches!(self, Self::IntentsShard(_) | Self::ReturnedShard(_))
    }

    /// Whether what is in it comes from producers.
    fn has_intents(&self) -> bool {
        self.is_shard() || matches!(self, Self::Intents | Self::Returned)
    }
}

/// How long a deferred intent waits before it is delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Delay {
    OneSecond,
    FiveSeconds,
    ThirtySeconds,
}

impl Delay {
    /// Every delay, shortest first.
    pub const ALL: [Self; 3] = [Self::OneSecond, Self::FiveSeconds, Self::ThirtySeconds];

    /// Its length in milliseconds.
    pub fn ms(self) -> u32 {
        match self {
            Self::OneSecond => 1_000,
            Self::FiveSeconds => 5_000,
            Self::ThirtySeconds => 30_000,
        }
    }
}

/// A look at a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages waiting, not counting unsettled ones.
    pub messages: u32,
    /// Consumers, of all processes.
    pub consumers: u32,
}

/// Why the broker didn't do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It can't be reached or didn't answer in time.
    #[error("broker unavailable: {0}")]
    Transient(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It takes no messages for now.
    #[error("broker takes no messages for now: {0}")]
    Full(&'static str),
    /// A queue to publish to is missing.
    #[error("broker has no queue for it")]
    NoQueue,
    /// It won't do this however often it is asked.
    #[error("broker refused: {0}")]
    Permanent(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BrokerError {
    /// Whether the broker can't be reached, or didn't answer in time.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}
