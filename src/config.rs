//! Settings: `config/floodgate.toml` is their documentation and holds the defaults.

mod check;
mod sources;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::domain::intent::Limits;

pub use check::InvalidSettings;
pub use sources::{Origin, Shown, Sources};
pub use tls::{ClientCertificate, Tls};

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
    pub inventory: InventorySettings,
    pub ledger: LedgerSettings,
    pub verification: VerificationSettings,
    pub worker: WorkerSettings,
    pub api: ApiSettings,
    pub log: LogSettings,
}

/// Section `embedded`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EmbeddedSettings {
    pub file: PathBuf,
}

/// Section `intent`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct IntentSettings {
    pub max_age_s: u32,
    pub max_body_bytes: usize,
    max_per_message: usize,
    pub delivery_limit: u32,
}

/// Section `broker`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct BrokerSettings {
    pub prefetch: u16,
    pub prefetch_bytes: u64,
    confirm_timeout_ms: u64,
    pub heartbeat_s: u16,
}

/// Section `inventory`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct InventorySettings {
    pub when_unavailable: WhenUnavailable,
    timeout_ms: u64,
    retry_after_ms: u64,
    keep_after_close_s: u32,
}

/// What a worker does while the inventory can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenUnavailable {
    /// Go on without hints.
    Ledger,
    /// Pause.
    Wait,
}

/// Section `ledger`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LedgerSettings {
    pub max_connections: u32,
    pub timeout_ms: u64,
}

/// Section `verification`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VerificationSettings {
    pub url: String,
    pub timeout_ms: u64,
    pub attempts: u32,
    pub max_in_flight_per_sale: usize,
    pub max_in_flight: usize,
    pub breaker_calls: usize,
    breaker_pause_ms: u64,
    remember_s: u64,
}

/// Section `worker`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct WorkerSettings {
    pub max_batch: usize,
    pub batches_in_flight: usize,
    drain_deadline_s: u64,
}

/// Section `api`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ApiSettings {
    pub listen: SocketAddr,
    pub public_url: String,
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    pub cors_origins: Vec<String>,
    pub jwt_secret: SecretString,
    pub jwt_public_key: String,
    pub jwt_jwks: String,
    pub jwt_jwks_refresh_s: u32,
    pub jwt_issuer: String,
    pub jwt_audience: String,
    pub max_body_bytes: usize,
    pub max_header_bytes: usize,
    request_timeout_ms: u64,
    max_wait_s: u64,
    pub max_in_flight: usize,
    pub max_in_flight_per_address: usize,
    pub max_in_flight_per_buyer: usize,
    pub max_slow_bodies_per_address: usize,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_streams: usize,
    pub max_streams_per_address: usize,
    pub buyer_orders_per_s: NonZeroU32,
    pub buyer_burst: NonZeroU32,
    drain_deadline_s: u64,
}

/// Networks, or addresses that stand for themselves.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let network = |text: &String| {
        let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(alone).ok_or_else(|| {
            D::Error::custom(format!(
                "{text} is no network; accepted: for example 10.0.0.0/8, 192.0.2.7 or fd00::/8"
            ))
        })
    };
    texts.iter().map(network).collect()
}

/// Section `log`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LogSettings {
    pub filter: String,
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

impl Settings {
    /// Defaults, then `file`, then the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, InvalidSettings> {
        Sources::read(file)?.settings()
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
    /// Age at which an intent expires.
    pub fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age_s.into())
    }

    /// Bounds on one message.
    pub fn limits(&self) -> Limits {
        Limits { max_body_bytes: self.max_body_bytes, max_intents: self.max_per_message }
    }
}

impl BrokerSettings {
    /// Longest wait for a publisher confirm.
    pub fn confirm_timeout(&self) -> Duration {
        Duration::from_millis(self.confirm_timeout_ms)
    }
}

impl InventorySettings {
    /// Longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Pause after a failure.
    pub fn retry_after(&self) -> Duration {
        Duration::from_millis(self.retry_after_ms)
    }

    /// Life of a closed sale's counters.
    pub fn keep_after_close(&self) -> Duration {
        Duration::from_secs(self.keep_after_close_s.into())
    }
}

impl LedgerSettings {
    /// Longest wait for a connection, and for a statement.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl VerificationSettings {
    /// Longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl VerificationSettings {
    /// How long the breaker stays open.
    pub fn breaker_pause(&self) -> Duration {
        Duration::from_millis(self.breaker_pause_ms)
    }

    /// How long a verdict is good for.
    pub fn remember(&self) -> Duration {
        Duration::from_secs(self.remember_s)
    }
}

impl ApiSettings {
    /// Longest time for a request.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// How often published keys are read again.
    pub fn jwks_refresh(&self) -> Duration {
        Duration::from_secs(self.jwt_jwks_refresh_s.into())
    }

    /// Longest wait for a decision.
    pub fn max_wait(&self) -> Duration {
        Duration::from_secs(self.max_wait_s)
    }

    /// Longest drain.
    pub fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_deadline_s)
    }
}

impl WorkerSettings {
    /// Longest drain.
    pub fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain_deadline_s)
    }
}

#[cfg(test)]
mod tests;
