//! Deliveries: an event on its way to a webhook.

use serde::{Deserialize, Serialize};

use crate::domain::digest::digest;

/// The most characters that are kept of an endpoint's answer.
pub const MAX_ANSWER_CHARS: usize = 256;

/// An event that goes to a webhook, with the result of its attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The event's id.
    pub event_id: String,
    /// Its type.
    pub event_type: String,
    /// The event as JSON, a CloudEvent in structured mode; empty once the delivery is over.
    pub event: String,
    /// What has become of it.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was first tried, in milliseconds since 1970.
    pub first_ms: i64,
    /// When it was last tried.
    pub last_ms: i64,
    /// When it is tried again, if it is.
    pub next_ms: Option<i64>,
    /// The status of the last answer, if there was one.
    pub status: Option<u16>,
    /// The beginning of the last answer, or why there was none.
    pub answer: String,
}

/// What has become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// The endpoint has accepted it.
    Delivered,
    /// It is tried again.
    Waiting,
    /// It was tried for `webhooks.give_up_after_s`.
    GivenUp,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Delivered, Self::Waiting, Self::GivenUp];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Waiting => "waiting",
            Self::GivenUp => "given_up",
        }
    }

    /// The state with that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl Delivery {
    /// An event that was not tried yet.
    pub fn new(event_id: String, event_type: &str, event: String) -> Self {
        Self {
            event_id,
            event_type: event_type.to_owned(),
            event,
            state: DeliveryState::Waiting,
            attempts: 0,
            first_ms: 0,
            last_ms: 0,
            next_ms: None,
            status: None,
            answer: String::new(),
        }
    }

    /// The header `webhook-id`: the same whenever the event is sent. Signatures have a dot behind it, which the event's
    /// id may have in it.
    pub fn message_id(&self) -> String {
        format!("msg_{}", digest([self.event_id.as_bytes()]))
    }
}
