//! What values are accepted.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Origin, Settings};
use crate::broker::FeedSettings;
use crate::domain::order::SaleId;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// A file or a variable can't be read as a setting.
    #[error("settings: {origin}: {problem}")]
    Unreadable {
        /// The file or the variable.
        origin: Origin,
        /// What is wrong with it. Shows no value.
        problem: String,
    },
    /// A value is outside of what is accepted.
    #[error("settings: {name} is {given}; accepted: {accepted}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// What it was set to.
        given: String,
        /// What it may be.
        accepted: &'static str,
    },
    /// A file with a certificate or a key can't be used.
    #[error("settings: {name}: {problem}")]
    Certificate {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Some servers are configured, and others are not.
    #[error(
        "settings: not set: {missing}. Set them in the environment or a file; for servers to try \
         it with: scripts/services up && eval \"$(scripts/services env)\". With no server set at \
         all floodgate runs embedded, on one file"
    )]
    MissingServers {
        /// The variables that name them.
        missing: String,
    },
}

impl Settings {
    /// Checks every value that has bounds.
    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        if SaleId::parse(self.namespace.as_str()).is_err() {
            return Err(InvalidSettings::OutOfRange {
                name: "namespace",
                given: self.namespace.clone(),
                accepted: "1 to 64 of A-Z a-z 0-9 _ -",
            });
        }
        // More would not fit into what times are computed with.
        let seconds = u64::from(u32::MAX);
        let upto_hour = 1..=3_600_000;
        let hour = HOUR;
        let accepted = "1 to 4294967295";
        in_range("intent.max_age_s", self.intent.max_age.as_secs(), 1..=seconds, accepted)?;
        let keep = self.inventory.keep_after_close.as_secs();
        in_range("inventory.keep_after_close_s", keep, 0..=seconds, "0 to 4294967295")?;
        in_range(
            "intent.max_body_bytes",
            self.intent.max_body_bytes as u64,
            1024..=16 << 20,
            "1024 to 16777216 (16 MiB)",
        )?;
        let thousand = "1 to 1000";
        let per_message = self.intent.max_per_message as u64;
        in_range("intent.max_per_message", per_message, 1..=1000, thousand)?;
        in_range(
            "intent.delivery_limit",
            self.intent.delivery_limit.into(),
            1..=1_000_000,
            "1 to 1000000",
        )?;
        in_range("broker.prefetch", self.broker.prefetch.into(), 1..=65_535, "1 to 65535")?;
        in_range(
            "broker.prefetch_bytes",
            self.broker.prefetch_bytes,
            1 << 20..=16 << 30,
            "1048576 (1 MiB) to 17179869184 (16 GiB)",
        )?;
        in_range(
            "broker.confirm_timeout_ms",
            ms(self.broker.confirm_timeout),
            upto_hour.clone(),
            hour,
        )?;
        in_range("broker.heartbeat_s", self.broker.heartbeat_s.into(), 1..=600, "1 to 600")?;
        in_range("inventory.timeout_ms", ms(self.inventory.timeout), upto_hour.clone(), hour)?;
        in_range(
            "inventory.retry_after_ms",
            ms(self.inventory.retry_after),
            upto_hour.clone(),
            hour,
        )?;
        in_range("ledger.max_connections", self.ledger.max_connections.into(), 1..=1000, thousand)?;
        in_range("ledger.timeout_ms", ms(self.ledger.timeout), upto_hour, hour)?;
        in_range("worker.max_batch", self.worker.max_batch as u64, 1..=1000, thousand)?;
        let in_flight = self.worker.batches_in_flight as u64;
        in_range("worker.batches_in_flight", in_flight, 1..=64, "1 to 64")?;
        in_range(
            "worker.drain_deadline_s",
            self.worker.drain_deadline.as_secs(),
            1..=3600,
            "1 to 3600",
        )?;
        self.check_events().and(self.check_verification())?;
        self.check_webhooks()?;
        self.check_api().and(self.check_traces())?;
        self.amqp_tls().and(self.redis_tls()).map(drop)
    }

    fn check_verification(&self) -> Result<(), InvalidSettings> {
        let hour = HOUR;
        let verification = &self.verification;
        in_range("verification.timeout_ms", ms(verification.timeout), 1..=3_600_000, hour)?;
        let checks = verification.max_in_flight as u64;
        in_range("verification.max_in_flight", checks, 1..=10_000, "1 to 10000")?;
        let checks = verification.max_in_flight_per_sale as u64;
        in_range("verification.max_in_flight_per_sale", checks, 1..=10_000, "1 to 10000")?;
        in_range("verification.attempts", verification.attempts.into(), 1..=10, "1 to 10")?;
        let calls = verification.breaker_calls as u64;
        in_range("verification.breaker_calls", calls, 1..=10_000, "1 to 10000")?;
        let pause = ms(verification.breaker_pause);
        in_range("verification.breaker_pause_ms", pause, 1..=3_600_000, hour)?;
        in_range(
            "verification.remember_s",
            verification.remember.as_secs(),
            0..=86_400,
            "0 to 86400 (a day)",
        )
    }

    fn check_events(&self) -> Result<(), InvalidSettings> {
        let FeedSettings { max_age, max_bytes, .. } = self.feed;
        let accepted = "60 to 31536000 (a year)";
        in_range("feed.max_age_s", max_age.as_secs(), 60..=31_536_000, accepted)?;
        let accepted = "16777216 (16 MiB) to 1099511627776 (1 TiB)";
        in_range("feed.max_bytes", max_bytes, 16 << 20..=1 << 40, accepted)?;
        in_range(
            "events.max_batch_bytes",
            self.events.max_batch_bytes as u64,
            1024..=16 << 20,
            "1024 to 16777216 (16 MiB)",
        )
    }

    fn check_webhooks(&self) -> Result<(), InvalidSettings> {
        let webhooks = &self.webhooks;
        let accepted = "100 to 60000 (a minute)";
        in_range("webhooks.timeout_ms", ms(webhooks.timeout), 100..=60_000, accepted)?;
        let requests = webhooks.max_in_flight as u64;
        in_range("webhooks.max_in_flight", requests, 1..=100, "1 to 100")?;
        let (year, accepted) = (60..=31_536_000, "60 to 31536000 (a year)");
        for (name, time) in [
            ("webhooks.give_up_after_s", webhooks.give_up_after),
            ("webhooks.disable_after_s", webhooks.disable_after),
        ] {
            in_range(name, time.as_secs(), year.clone(), accepted)?;
        }
        let old = webhooks.old_secret.as_secs();
        in_range("webhooks.old_secret_s", old, 0..=31_536_000, "0 to 31536000 (a year)")?;
        let keep = webhooks.keep_deliveries.into();
        in_range("webhooks.keep_deliveries", keep, 0..=100_000, "0 to 100000")
    }

    fn check_api(&self) -> Result<(), InvalidSettings> {
        let hour = HOUR;
        let api = &self.api;
        let refresh = api.jwt_jwks_refresh.as_secs();
        in_range("api.jwt_jwks_refresh_s", refresh, 1..=86_400, "1 to 86400 (a day)")?;
        let mib = "1024 to 1048576 (1 MiB)";
        in_range("api.max_body_bytes", api.max_body_bytes as u64, 1024..=1 << 20, mib)?;
        let batch = api.max_batch_bytes as u64;
        in_range("api.max_batch_bytes", batch, 1024..=16 << 20, "1024 to 16777216 (16 MiB)")?;
        let mib = "8192 to 1048576 (1 MiB)";
        in_range("api.max_header_bytes", api.max_header_bytes as u64, 8192..=1 << 20, mib)?;
        in_range("api.request_timeout_ms", ms(api.request_timeout), 1..=3_600_000, hour)?;
        in_range("api.max_wait_s", api.max_wait.as_secs(), 0..=300, "0 to 300")?;
        let million = "1 to 1000000";
        in_range("api.max_in_flight", api.max_in_flight as u64, 1..=1_000_000, million)?;
        for (name, limit) in [
            ("api.max_in_flight_per_address", api.max_in_flight_per_address),
            ("api.max_in_flight_per_buyer", api.max_in_flight_per_buyer),
            ("api.max_slow_bodies_per_address", api.max_slow_bodies_per_address),
            ("api.max_connections", api.max_connections),
            ("api.max_connections_per_address", api.max_connections_per_address),
            ("api.max_streams", api.max_streams),
            ("api.max_streams_per_address", api.max_streams_per_address),
        ] {
            in_range(name, limit as u64, 1..=1_000_000, million)?;
        }
        web("api.public_url", &api.public_url, "an address such as https://shop.example")?;
        let is_origin = |url: &&String| is_web(url) && url.matches('/').count() == 2;
        if let Some(other) = api.cors_origins.iter().find(|url| !is_origin(url)) {
            let (name, given) = ("api.cors_origins", other.clone());
            let accepted = "origins such as https://shop.example, no path";
            return Err(InvalidSettings::OutOfRange { name, given, accepted });
        }
        in_range("api.drain_deadline_s", api.drain_deadline.as_secs(), 1..=3600, "1 to 3600")
    }

    fn check_traces(&self) -> Result<(), InvalidSettings> {
        let traces = &self.traces;
        web("traces.otlp_url", &traces.otlp_url, "an address such as http://127.0.0.1:4318")?;
        web("traces.link", &traces.link, "an address such as https://traces.example/{order_id}")?;
        if (0.0..=1.0).contains(&traces.sample) {
            return Ok(());
        }
        let given = traces.sample.to_string();
        Err(InvalidSettings::OutOfRange { name: "traces.sample", given, accepted: "0 to 1" })
    }
}

fn is_web(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// An address, or none.
fn web(name: &'static str, given: &str, accepted: &'static str) -> Result<(), InvalidSettings> {
    if given.is_empty() || is_web(given) {
        Ok(())
    } else {
        Err(InvalidSettings::OutOfRange { name, given: given.to_owned(), accepted })
    }
}

/// What is accepted of times in milliseconds.
const HOUR: &str = "1 to 3600000 (an hour)";

/// Whole milliseconds.
fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn in_range(
    name: &'static str,
    given: u64,
    range: RangeInclusive<u64>,
    accepted: &'static str,
) -> Result<(), InvalidSettings> {
    if range.contains(&given) {
        Ok(())
    } else {
        Err(InvalidSettings::OutOfRange { name, given: given.to_string(), accepted })
    }
}
