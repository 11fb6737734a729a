//! Section `webhooks` of the settings.

use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, DurationSeconds, serde_as};

use super::Networks;

/// Section `webhooks` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct WebhookSettings {
    #[serde(deserialize_with = "crate::hosts::networks")]
    pub allowed_networks: Vec<IpNet>,
    #[serde(rename = "timeout_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub timeout: Duration,
    pub max_in_flight: usize,
    #[serde(rename = "give_up_after_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub give_up_after: Duration,
    #[serde(rename = "disable_after_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub disable_after: Duration,
    #[serde(rename = "old_secret_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub old_secret: Duration,
    pub keep_deliveries: u32,
}

impl WebhookSettings {
    /// Where endpoints may be.
    pub fn networks(&self) -> Networks {
        Networks::besides_public(self.allowed_networks.clone())
    }
}
