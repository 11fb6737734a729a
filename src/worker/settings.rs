//! What a worker is told.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_with::{DurationSeconds, serde_as};

use crate::broker::EventSettings;
use crate::domain::intent::Limits;
use crate::inventory::InventorySettings;
use crate::verification::VerificationSettings;

/// Section `worker` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct WorkerSettings {
    pub max_batch: usize,
    pub batches_in_flight: usize,
    #[serde(rename = "drain_deadline_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub drain_deadline: Duration,
    #[serde(deserialize_with = "address_or_off")]
    pub listen: Option<SocketAddr>,
}

/// An address, or `off`.
fn address_or_off<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        D::Error::custom(format!(
            "{text:?} is no address; accepted: for example 127.0.0.1:9091, or off"
        ))
    })
}

/// All that a worker is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its own section.
    pub worker: WorkerSettings,
    /// When to go on without the inventory.
    pub inventory: InventorySettings,
    /// How users are checked.
    pub verification: VerificationSettings,
    /// How decisions are published.
    pub events: EventSettings,
    /// Unsettled messages at most, of each queue.
    pub prefetch: u16,
    /// Age at which an intent expires.
    pub max_age: Duration,
    /// Bounds on one message.
    pub limits: Limits,
}
