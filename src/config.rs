//! Settings: `config/floodgate.toml` is their documentation and holds the defaults.

mod check;
mod sources;
mod tls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_with::{DurationSeconds, serde_as};

use crate::api::ApiSettings;
use crate::broker::{Bounds, BrokerSettings, EventSettings, FeedBounds, FeedSettings};
use crate::domain::intent::Limits;
use crate::inventory::InventorySettings;
use crate::ledger::LedgerSettings;
use crate::telemetry::LogSettings;
use crate::traces::TraceSettings;
use crate::verification::VerificationSettings;
use crate::webhooks::WebhookSettings;
use crate::worker::{Options, WorkerSettings};

pub use check::InvalidSettings;
pub use sources::{Origin, Shown, Sources};

/// The documented defaults, as they stand in the repository.
pub const DEFAULTS: &str = include_str!("../config/floodgate.toml");

/// All settings. Every field is described in `config/floodgate.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub namespace: String,
    pub amqp_url: SecretString,
    pub redis_url: SecretString,
    pub database_url: SecretString,
    pub amqp_ca_file: PathBuf,
    pub amqp_client_cert_file: PathBuf,
    pub amqp_client_key_file: PathBuf,
    pub redis_ca_file: PathBuf,
    pub redis_client_cert_file: PathBuf,
    pub redis_client_key_file: PathBuf,
    pub database_ca_file: PathBuf,
    pub database_client_cert_file: PathBuf,
    pub database_client_key_file: PathBuf,
    pub embedded: EmbeddedSettings,
    pub intent: IntentSettings,
    pub broker: BrokerSettings,
    pub events: EventSettings,
    pub feed: FeedSettings,
    pub webhooks: WebhookSettings,
    pub inventory: InventorySettings,
    pub ledger: LedgerSettings,
    pub verification: VerificationSettings,
    pub worker: WorkerSettings,
    pub api: ApiSettings,
    pub log: LogSettings,
    pub traces: TraceSettings,
}

/// Section `embedded`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EmbeddedSettings {
    pub file: PathBuf,
}

/// Section `intent`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct IntentSettings {
    #[serde(rename = "max_age_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub max_age: Duration,
    pub max_body_bytes: usize,
    pub max_per_message: usize,
    pub delivery_limit: u32,
}

impl Settings {
    /// Defaults, then `file`, then the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, InvalidSettings> {
        Sources::read(file)?.settings()
    }

    /// Bounds on what brokers deliver.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            delivery_limit: self.intent.delivery_limit,
            max_body_bytes: self.intent.max_body_bytes,
            prefetch_bytes: self.broker.prefetch_bytes,
            feed: FeedBounds::of(self.feed, self.events.publish),
        }
    }

    /// What a worker is told.
    pub fn worker_options(&self) -> Options {
        Options {
            worker: self.worker.clone(),
            inventory: self.inventory.clone(),
            verification: self.verification.clone(),
            events: self.events,
            prefetch: self.broker.prefetch,
            max_age: self.intent.max_age,
            limits: self.intent.limits(),
        }
    }

    /// Whether floodgate runs without servers, on one file: when none is configured.
    pub fn is_embedded(&self) -> bool {
        [&self.amqp_url, &self.redis_url, &self.database_url]
            .iter()
            .all(|url| url.expose_secret().is_empty())
    }

    /// Checks that the servers a command needs are configured, and names all that are not.
    pub fn require(&self, servers: &[Server]) -> Result<(), InvalidSettings> {
        let missing: Vec<_> = servers
            .iter()
            .filter(|server| match server {
                Server::Amqp => self.amqp_url.expose_secret().is_empty(),
                Server::Redis => self.redis_url.expose_secret().is_empty(),
                Server::Database => self.database_url.expose_secret().is_empty(),
            })
            .map(|server| format!("{}URL", server.prefix()))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(InvalidSettings::MissingServers { missing: missing.join(", ") })
        }
    }
}

/// A server that a command may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Server {
    Amqp,
    Redis,
    Database,
}

impl Server {
    /// The product's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amqp => "RabbitMQ",
            Self::Redis => "Redis",
            Self::Database => "PostgreSQL",
        }
    }

    /// What the names of its variables begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Amqp => "FLOODGATE_AMQP_",
            Self::Redis => "FLOODGATE_REDIS_",
            Self::Database => "FLOODGATE_DATABASE_",
        }
    }
}

impl IntentSettings {
    /// Bounds on one message.
    pub fn limits(&self) -> Limits {
        Limits { max_body_bytes: self.max_body_bytes, max_intents: self.max_per_message }
    }
}

#[cfg(test)]
mod tests;
