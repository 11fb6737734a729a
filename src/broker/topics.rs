//! How decisions are published: as single events, in batches, or both.

use serde::Deserialize;

use crate::domain::event::Event;

/// Section `events` of the settings, described in `config/floodgate.toml`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EventSettings {
    pub publish: PublishedAs,
    pub max_batch_bytes: usize,
}

/// The form in which the events of orders are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishedAs {
    /// A message each.
    Single,
    /// Many in a message.
    Batch,
    /// Both.
    Both,
}

impl PublishedAs {
    /// What the settings call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Batch => "batch",
            Self::Both => "both",
        }
    }

    /// Whether each event has a message.
    pub fn has_single(self) -> bool {
        self != Self::Batch
    }

    /// Whether there are batches.
    pub fn has_batches(self) -> bool {
        self != Self::Single
    }

    /// What gets each event of an order once.
    pub fn orders(self) -> Topic<'static> {
        if self.has_single() { Topic::Events("order.#") } else { Topic::Batches("#") }
    }
}

/// What a queue gets: all with a routing key that matches (of a topic exchange: `*` stands for one word, `#` for any
/// number).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic<'a> {
    /// Single events.
    Events(&'a str),
    /// Batches of events of orders.
    Batches(&'a str),
    /// What workers say of themselves.
    Status,
}

/// The routing key of a batch whose events are of several sales.
pub const MIXED: &str = "_mixed";

/// Events of orders in one message.
#[derive(Debug, Clone)]
pub struct EventBatch<'a> {
    /// The sale that all of them are of, or [`MIXED`].
    pub routing_key: &'a str,
    /// At least one.
    pub events: Vec<&'a Event>,
}
