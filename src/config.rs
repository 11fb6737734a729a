//! Settings: `config/floodgate.toml` is their documentation and holds the defaults.

mod check;
mod sources;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::intent::Limits;

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
    pub jwt_secret: SecretString,
    pub jwt_public_key: String,
    pub jwt_issuer: String,
    pub jwt_audience: String,
    pub max_body_bytes: usize,
    pub max_header_bytes: usize,
    request_timeout_ms: u64,
    max_wait_s: u64,
    pub max_in_flight: usize,
    pub max_connections: usize,
    pub buyer_orders_per_s: NonZeroU32,
    pub buyer_burst: NonZeroU32,
    drain_deadline_s: u64,
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
            .map(|server| match server {
                Server::Amqp => "FLOODGATE_AMQP_URL",
                Server::Redis => "FLOODGATE_REDIS_URL",
                Server::Database => "FLOODGATE_DATABASE_URL",
            })
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
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Sources::of(None, variables)?.settings()
    }

    #[test]
    fn the_documented_defaults_are_valid() {
        let settings = with(&[]).unwrap();
        assert_eq!(settings.namespace, "floodgate");
        assert_eq!(settings.worker.max_batch, 512);
    }

    #[test]
    fn the_environment_wins() {
        let settings = with(&[
            ("FLOODGATE_WORKER__MAX_BATCH", "7"),
            ("FLOODGATE_INVENTORY__WHEN_UNAVAILABLE", "wait"),
            ("FLOODGATE_NAMESPACE", "7"),
            ("FLOODGATE_AMQP_URL", ""),
            ("FLOODGATE_SERVICE_HOST", "10.0.0.1"),
        ])
        .unwrap();
        assert_eq!(settings.worker.max_batch, 7);
        assert_eq!(settings.inventory.when_unavailable, WhenUnavailable::Wait);
        assert_eq!(settings.namespace, "7");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_what_is_accepted() {
        let error = with(&[("FLOODGATE_WORKER__MAX_BATCH", "0")]).unwrap_err();
        assert_eq!(error.to_string(), "settings: worker.max_batch is 0; accepted: 1 to 1000");
        assert!(with(&[("FLOODGATE_NAMESPACE", "a.b")]).is_err());
        let error = with(&[("FLOODGATE_WORKER__MAXBATCH", "5")]).unwrap_err().to_string();
        assert!(error.contains("did you mean FLOODGATE_WORKER__MAX_BATCH?"), "{error}");
        let error = with(&[("FLOODGATE_WORKER__MAX_BATCH", "many")]).unwrap_err().to_string();
        assert_eq!(error, "settings: FLOODGATE_WORKER__MAX_BATCH: the value is not a whole number");
    }

    #[test]
    fn text_stays_text_and_other_types_are_refused_without_their_values() {
        let settings = with(&[
            ("FLOODGATE_API__JWT_SECRET", "01234567890123456789012345678901"),
            ("FLOODGATE_NAMESPACE", "0123"),
            ("FLOODGATE_API__JWT_AUDIENCE", "1.50"),
            ("FLOODGATE_API__JWT_ISSUER", "true"),
        ])
        .unwrap();
        assert_eq!(settings.api.jwt_secret.expose_secret(), "01234567890123456789012345678901");
        assert_eq!(settings.namespace, "0123");
        assert_eq!((&*settings.api.jwt_audience, &*settings.api.jwt_issuer), ("1.50", "true"));
    }

    #[test]
    fn a_misspelt_variable_is_named_with_the_one_that_was_meant() {
        for (given, meant) in [
            ("FLOODGATE_API_JWT_SECRET", "FLOODGATE_API__JWT_SECRET"),
            ("FLOODGATE_AMPQ_URL", "FLOODGATE_AMQP_URL"),
            ("FLOODGATE_WORKERS__MAX_BATCH", "FLOODGATE_WORKER__MAX_BATCH"),
            ("FLOODGATE_DATABASE__URL", "FLOODGATE_DATABASE_URL"),
        ] {
            let error = with(&[(given, "hush")]).unwrap_err().to_string();
            assert!(error.contains(given) && error.contains(&format!("mean {meant}?")), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let error = with(&[("FLOODGATE_ZZZ", "1")]).unwrap_err().to_string();
        assert!(error.contains("`floodgate settings` prints all"), "{error}");
        for of_kubernetes in [
            "FLOODGATE_SERVICE_HOST",
            "FLOODGATE_SERVICE_PORT",
            "FLOODGATE_API_SERVICE_PORT_HTTP",
            "FLOODGATE_PORT",
            "FLOODGATE_API_PORT_8080_TCP_ADDR",
        ] {
            with(&[(of_kubernetes, "tcp://10.0.0.1:8080")]).unwrap();
        }
    }

    #[test]
    fn a_value_can_stand_in_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "a secret of more than 32 bytes ...\n").unwrap();
        let file = path.to_str().unwrap();
        let settings = with(&[("FLOODGATE_API__JWT_SECRET_FILE", file)]).unwrap();
        assert_eq!(settings.api.jwt_secret.expose_secret(), "a secret of more than 32 bytes ...");
        let both = [("FLOODGATE_API__JWT_SECRET_FILE", file), ("FLOODGATE_API__JWT_SECRET", "s")];
        assert!(with(&both).unwrap_err().to_string().contains("one of them"));
        let missing = with(&[("FLOODGATE_AMQP_URL_FILE", "/nowhere")]).unwrap_err().to_string();
        assert!(missing.contains("FLOODGATE_AMQP_URL_FILE=/nowhere: can't be read"), "{missing}");
    }

    #[test]
    fn a_file_that_is_wrong_is_told_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        for (text, wanted) in [
            ("amqp_url = \"hush", "line 1 is not TOML"),
            ("namespace = \"x\"\nredis_url = hush", "line 2 is not TOML"),
            (
                "[api]\njwt_secret = 4815162342",
                "api.jwt_secret is of type integer; accepted: a text",
            ),
            ("redis_url = [\"hush\"]", "redis_url is of type array"),
            ("ampq_url = \"hush\"", "did you mean amqp_url?"),
            ("[log]\nformat = \"xml\"", "log.format: unknown variant `xml`"),
            ("[broker]\nprefetch = 70000", "broker.prefetch"),
        ] {
            std::fs::write(&path, text).unwrap();
            let result = Sources::of(Some(&path), std::iter::empty());
            let error = result.and_then(|sources| sources.settings()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            assert!(error.contains("settings.toml"), "{error}");
            assert!(!error.contains("hush") && !error.contains("4815162342"), "{error}");
        }
    }

    #[test]
    fn secrets_are_hidden_and_nothing_else_is() {
        let names: Vec<String> = Sources::of(None, std::iter::empty())
            .unwrap()
            .shown()
            .into_iter()
            .map(|s| s.name)
            .collect();
        for name in names {
            let variable = format!("FLOODGATE_{}", name.replace('.', "__").to_uppercase());
            let variables = [(variable.into(), "a-marked-text".into())].into_iter();
            // Numbers and the like can't be secrets.
            let Ok(sources) = Sources::of(None, variables) else { continue };
            let Ok(settings) = sources.settings() else { continue };
            let is_secret = !format!("{settings:?}").contains("a-marked-text");
            let shown = sources.shown().into_iter().find(|shown| shown.name == name).unwrap();
            assert_eq!(shown.value == "(hidden)", is_secret, "{name} = {}", shown.value);
        }
    }

    #[test]
    fn missing_servers_are_all_named() {
        let settings = with(&[("FLOODGATE_REDIS_URL", "redis://:hush@host/")]).unwrap();
        let error = settings.require(&[Server::Amqp, Server::Redis, Server::Database]).unwrap_err();
        assert!(error.to_string().contains("FLOODGATE_AMQP_URL, FLOODGATE_DATABASE_URL"));
        assert!(!format!("{settings:?}").contains("hush"), "secrets are never shown");
    }
}
