//! The broker's port: intents come in, decisions go out.

mod embedded;
mod rabbitmq;
pub mod topology;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Settings;
use crate::event::Event;

pub use embedded::EmbeddedBroker;
pub use rabbitmq::{RabbitBroker, UNLOGGED};

/// A message broker that delivers at least once.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Takes messages from `queue`, up to `prefetch` of them unsettled at any time. Goes on through
    /// lost connections until [`Deliveries::stop`].
    async fn consume(&self, queue: Queue, prefetch: u16) -> Result<Deliveries, BrokerError> {
        self.subscribe(queue, &[], prefetch).await
    }

    /// The same, and has `queue`, if it is a subscriber's or a private one, get every event that
    /// matches one of `routing_keys` (of a topic exchange: `*` stands for one word, `#` for any
    /// number). Makes such a queue if it isn't there.
    async fn subscribe(
        &self,
        queue: Queue,
        routing_keys: &[&str],
        prefetch: u16,
    ) -> Result<Deliveries, BrokerError>;

    /// Publishes `messages` and waits until the broker has taken charge of each, or has not in time.
    async fn publish(&self, messages: &[Message<'_>]) -> Published;

    /// Sends a decision to the one who asked for it. Never waits and never fails: a reply that cannot
    /// be sent soon, or whose queue is gone, full or one of floodgate's own, is dropped and counted.
    fn reply(&self, reply: Reply);

    /// Replies that were dropped so far.
    fn dropped_replies(&self) -> u64;

    /// What `queue` is called where a reply is wanted.
    fn address(&self, queue: &Queue) -> String;

    /// How much waits in `queue`, and for how many.
    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError>;
}

/// Bounds on what is taken from queues.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How often a message may come back to a queue of intents before it becomes a dead letter.
    pub delivery_limit: u32,
    /// The largest body of an intent message, in bytes. Of a larger one only the beginning is held.
    pub max_body_bytes: usize,
    /// The most bytes of unsettled intent messages that a consumer holds.
    pub prefetch_bytes: u64,
}

impl Bounds {
    /// Those of `settings`.
    pub fn of(settings: &Settings) -> Self {
        Self {
            delivery_limit: settings.intent.delivery_limit,
            max_body_bytes: settings.intent.max_body_bytes,
            prefetch_bytes: settings.broker.prefetch_bytes,
        }
    }

    /// How many messages of `queue` may be in hand where `prefetch` are wanted: so few that the largest
    /// would not exceed the bytes. Only intents come from others; what else there is, is small.
    fn window(&self, queue: &Queue, prefetch: u16) -> u16 {
        let (Queue::Intents | Queue::Returned) = queue else { return prefetch.max(1) };
        let fitting = self.prefetch_bytes / (self.max_body_bytes as u64).max(1);
        prefetch.min(u16::try_from(fitting).unwrap_or(u16::MAX)).max(1)
    }

    /// The largest body that is taken from `queue` as a whole.
    fn largest(&self, queue: &Queue) -> usize {
        match queue {
            Queue::Intents | Queue::Returned => self.max_body_bytes,
            _ => usize::MAX,
        }
    }
}

/// The queues of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Queue {
    /// Intents that wait for a decision.
    Intents,
    /// Intents whose delay has passed. They have a queue of their own, so that a delay of a second
    /// does not become one behind the whole backlog.
    Returned,
    /// Messages that could not be decided.
    DeadLetters,
    /// Events for a subscriber, by its name. They are kept while it is away.
    Subscriber(String),
    /// Events and replies for one consumer of this process, by a name that no other has. They are
    /// gone with it, and those of a moment in which the broker is away are missed.
    Private(String),
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

/// Something to publish.
#[derive(Debug, Clone)]
pub enum Message<'a> {
    /// One or more intents, as JSON.
    Intent {
        /// The sale, as far as it is known: one word of the routing key.
        routing_key: &'a str,
        /// The body.
        body: &'a [u8],
        /// What it came with, when it is sent on; or where its reply is wanted.
        properties: Option<&'a Properties>,
        /// Defer it: after this time it comes to [`Queue::Returned`]. Without a delay it comes to
        /// [`Queue::Intents`] at once.
        delay: Option<Delay>,
    },
    /// A decision for subscribers.
    Event(&'a Event),
    /// A message that can't be decided.
    DeadLetter(&'a DeadLetter),
}

impl<'a> Message<'a> {
    /// A new message with intents, without anything special.
    pub fn intent(routing_key: &'a str, body: &'a [u8]) -> Self {
        Self::Intent { routing_key, body, properties: None, delay: None }
    }
}

/// A look at a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages waiting, not counting those handed out.
    pub messages: u32,
    /// Consumers, of all processes.
    pub consumers: u32,
}

/// A decision for the one who asked, by the request/reply convention of AMQP.
#[derive(Debug)]
pub struct Reply {
    /// The queue named by the request.
    pub to: String,
    /// What the request is known by.
    pub correlation_id: String,
    /// The decision.
    pub event: Event,
}

/// What became of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The broker has taken charge of it.
    Confirmed,
    /// Confirmed too, but it is an event that no subscriber has a queue for.
    NoSubscriber,
    /// A queue it goes to takes no more. Others may have taken it.
    Full,
    /// There is no queue for it, though it is no event.
    NoQueue,
    /// Whether the broker has it is unknown.
    Unconfirmed,
}

impl Receipt {
    /// Whether nothing is left to be done.
    pub fn is_done(self) -> bool {
        matches!(self, Self::Confirmed | Self::NoSubscriber)
    }
}

/// What became of published messages.
#[derive(Debug)]
pub struct Published {
    /// One for each message, in order.
    pub receipts: Vec<Receipt>,
    /// Why some are unconfirmed.
    pub error: Option<BrokerError>,
}

impl Published {
    /// All of `count` messages fared alike.
    pub(crate) fn alike(count: usize, receipt: Receipt, error: Option<BrokerError>) -> Self {
        Self { receipts: vec![receipt; count], error }
    }

    /// All or nothing, for a sender that publishes everything again otherwise.
    pub fn all(self) -> Result<(), BrokerError> {
        match self.receipts.iter().find(|receipt| !receipt.is_done()) {
            None => Ok(()),
            Some(Receipt::NoQueue) => Err(BrokerError::NoQueue),
            Some(Receipt::Full) => Err(BrokerError::Full("a queue is full")),
            Some(_) => {
                Err(self.error.unwrap_or_else(|| BrokerError::Transient("not confirmed".into())))
            }
        }
    }
}

/// A message that can't be decided, with the reason.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The original bytes: the whole message, or the element of an array that was at fault.
    pub body: Vec<u8>,
    /// What the original came with.
    pub properties: Properties,
    /// One word.
    pub reason: &'static str,
    /// For a person to read.
    pub detail: String,
    /// The same whenever this message, or this element of it, is dead-lettered again.
    pub id: String,
}

/// What a message carries besides its body. Stored without its routing key, and without what only an adapter
/// can read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Properties {
    /// The routing key it was published with.
    #[serde(skip)]
    pub routing_key: String,
    /// Where a reply is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// What the reply is known by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// What the sender calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Set when the body is compressed or otherwise encoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// When it was sent, in seconds since 1970, as AMQP has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp_s: Option<u64>,
    /// The length of the body in bytes, if only its beginning is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_from: Option<usize>,
    /// Why it was dead-lettered, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead: Option<Obituary>,
    /// All of it, in the adapter's own form.
    #[serde(skip)]
    pub original: Original,
}

/// Everything a message came with, in a form that only the adapter it came from can read, so that
/// it is passed on unchanged.
#[derive(Clone, Default)]
pub struct Original(pub Option<Arc<dyn Any + Send + Sync>>);

impl fmt::Debug for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Original")
    }
}

/// Why and when a message was dead-lettered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Obituary {
    /// One word.
    pub reason: String,
    /// For a person to read.
    pub detail: String,
    /// RFC 3339.
    pub at: String,
    /// By which a repeat can be recognised. Empty if the broker dead-lettered it.
    pub id: String,
}

/// What is kept of a body that is larger than accepted: enough to see what it was.
pub const KEPT_BYTES: usize = 65_536;

/// Cuts a body that is larger than `most` bytes, and notes its length.
fn cut(body: &mut Vec<u8>, properties: &mut Properties, most: usize) {
    if body.len() > most {
        properties.cut_from = Some(body.len());
        body.truncate(KEPT_BYTES);
        body.shrink_to_fit();
    }
}

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
        Self { body, properties, redelivered, settle }
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
}

impl Deliveries {
    /// What task `consumer` hands over, until `stop`.
    pub(crate) fn new(
        incoming: mpsc::UnboundedReceiver<Delivery>,
        stop: CancellationToken,
        consumer: tokio::task::JoinHandle<()>,
    ) -> Self {
        Self { incoming, stop: stop.drop_guard(), consumer }
    }

    /// The next delivery; waits for one. `None` after [`Deliveries::stop`], once all that had been
    /// handed over is taken.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.incoming.recv().await
    }

    /// A delivery that is here already.
    pub fn ready(&mut self) -> Option<Delivery> {
        self.incoming.try_recv().ok()
    }

    /// Takes no more from the queue. What was handed over still comes and can be settled.
    pub fn stop(&self) {
        self.stop.token().cancel();
    }

    /// Waits until all that was handed over is settled and the broker was told.
    pub async fn finished(self) {
        drop(self.incoming);
        // A consumer that panicked has nothing left to tell the broker.
        let _ = self.consumer.await;
    }
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
