//! Messages, what they come with, and what becomes of them.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{BrokerError, Delay, EventBatch};
use crate::domain::digest::digest;
use crate::domain::event::{Event, rfc3339};
use crate::domain::trace::TraceContext;

/// Something to publish.
#[derive(Debug, Clone)]
pub enum Message<'a> {
    /// What a worker says of itself, as JSON. It is lost where nobody listens.
    Status(&'a [u8]),
    /// One or more intents, as JSON.
    Intent {
        /// The sale, as far as it is known: one word of the routing key.
        routing_key: &'a str,
        /// The body.
        body: &'a [u8],
        /// What it came with, when it is sent on; or where its reply is wanted.
        properties: Option<&'a Properties>,
        /// Defer it: after this time it comes to [`super::Queue::Returned`]. Without a delay it comes to
        /// [`super::Queue::Intents`] at once.
        delay: Option<Delay>,
    },
    /// A decision for subscribers.
    Event(&'a Event),
    /// A decision for those who listen to another exchange, which is theirs. Embedded there is none.
    EventTo {
        /// The decision.
        event: &'a Event,
        /// The name of the exchange.
        exchange: &'a str,
    },
    /// Decisions for subscribers that take many at once.
    EventBatch(&'a EventBatch<'a>),
    /// A message that can't be decided.
    DeadLetter(&'a DeadLetter),
}

impl<'a> Message<'a> {
    /// A new message with intents, without anything special.
    pub fn intent(routing_key: &'a str, body: &'a [u8]) -> Self {
        Self::Intent { routing_key, body, properties: None, delay: None }
    }

    /// Whether it goes to those who listen, of whom there may be none.
    pub fn is_for_subscribers(&self) -> bool {
        matches!(
            self,
            Self::Event(_) | Self::EventTo { .. } | Self::EventBatch(_) | Self::Status(_)
        )
    }
}

/// A decision for the one who asked, by the request/reply convention of AMQP.
#[derive(Debug)]
pub struct Reply {
    /// The queue named by the request.
    pub to: String,
    /// What the request is known by.
    pub correlation_id: String,
    /// It may be sent together with others.
    pub in_batches: bool,
    /// The decision.
    pub event: Event,
}

/// What became of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The broker has taken charge of it.
    Confirmed,
    /// Confirmed too, but no subscriber has a queue for this event or batch of events.
    NoSubscriber,
    /// A queue it goes to takes no more. Others may have taken it.
    Full,
    /// There is no queue for it, though it has no events.
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
    pub reason: Cow<'static, str>,
    /// For a person to read.
    pub detail: String,
    /// The same whenever this message, or this element of it, is dead-lettered again.
    pub id: String,
}

impl DeadLetter {
    /// When it died, RFC 3339: now, unless it is the copy of one that died earlier.
    pub(super) fn died_at(&self) -> String {
        let before = self.properties.dead.as_ref();
        let before = before.filter(|dead| !dead.id.is_empty() && dead.id == self.id);
        before.map_or_else(|| rfc3339(Utc::now()), |dead| dead.at.clone())
    }

    /// The id of what stands in a message with `properties` from byte `start` on.
    pub fn id_of(properties: &Properties, start: usize, body: &[u8]) -> String {
        let message_id = properties.message_id.as_deref().unwrap_or("").as_bytes();
        digest([properties.routing_key.as_bytes(), message_id, &start.to_be_bytes(), body])
    }
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
    /// A reply may come together with others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accepts_batches: bool,
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
    /// The trace that its sender says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
    /// It came from a shard, which has orders of some sales only.
    #[serde(skip)]
    pub is_sharded: bool,
    /// The length of the body in bytes, if only its beginning is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_from: Option<usize>,
    /// Why it was dead-lettered, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead: Option<DeathInfo>,
    /// All of it, in the adapter's own form.
    #[serde(skip)]
    pub original: Original,
}

impl Properties {
    /// When it was sent, as its sender says.
    pub fn sent_at(&self) -> Option<DateTime<Utc>> {
        let seconds = i64::try_from(self.timestamp_s?).ok()?;
        DateTime::from_timestamp(seconds, 0)
    }
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
pub struct DeathInfo {
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
pub(super) fn cut(body: &mut Vec<u8>, properties: &mut Properties, most: usize) {
    if body.len() > most {
        properties.cut_from = Some(body.len());
        body.truncate(KEPT_BYTES);
        body.shrink_to_fit();
    }
}
