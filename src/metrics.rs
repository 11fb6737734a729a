//! Metrics of this process, for Prometheus. Their names, labels and help texts are written here and nowhere else.
//!
//! One [`Metrics`] serves a process: the worker, the API and the adapters count in it, and everything that shows
//! figures reads them from it. Names follow Prometheus's page on naming: base units, `_total` for counters.

mod broker;
mod dependencies;
mod registry;
mod unsettled;
mod verification;
mod webhooks;
mod worker;

use prometheus::{IntGauge, TextEncoder};

use registry::Registry;

pub use broker::BrokerMetrics;
pub use dependencies::{Dependencies, Dependency, DependencyMetrics};
pub use unsettled::UnsettledGuard;
pub use verification::{BreakerMetrics, VerificationMetrics};
pub use webhooks::{Sent, WebhookMetrics};
pub use worker::{Stage, WorkerMetrics};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What happened in this process, and how things stand.
pub struct Metrics {
    registry: Registry,
    /// Of a worker.
    pub worker: WorkerMetrics,
    /// Of the broker.
    pub broker: BrokerMetrics,
    /// Of every server.
    pub dependencies: Dependencies,
    /// Of a sender of webhooks.
    pub webhooks: WebhookMetrics,
    open_breakers: IntGauge,
}

impl Metrics {
    /// Metrics of a process in which nothing has happened yet.
    pub fn new() -> Self {
        let registry = Registry::default();
        registry.of_this_process();
        registry
            .gauges("build_info", "Always 1; the version is a label.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Self {
            worker: WorkerMetrics::new(&registry),
            broker: BrokerMetrics::new(&registry),
            dependencies: Dependencies::new(&registry),
            webhooks: WebhookMetrics::new(&registry),
            open_breakers: registry.gauge(
                "circuit_breaker_state",
                "Sales whose breaker keeps calls from the user service: 0 when all are closed.",
            ),
            registry,
        }
    }

    /// Of verification, with or without a user service.
    pub fn verification(&self, has_user_service: bool) -> VerificationMetrics {
        let user_service = || self.dependencies.of(Dependency::UserService);
        VerificationMetrics {
            user_service: has_user_service.then(user_service),
            open_breakers: self.open_breakers.clone(),
            call_seconds: self.worker.stage(Stage::Verify).clone(),
        }
    }

    /// All of them, in Prometheus's text format.
    pub fn text(&self) -> String {
        self.broker.refresh();
        let mut text = String::new();
        // It fails only where writing does, and a string takes everything.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_line_for_each_outcome_before_anything_happened() {
        let text = Metrics::new().text();
        assert!(
            text.contains("floodgate_orders_total{outcome=\"created\",reason=\"\"} 0"),
            "{text}"
        );
        let rejected = "floodgate_orders_total{outcome=\"rejected\",reason=\"user_denied\"} 0";
        assert!(text.contains(rejected), "{text}");
        assert!(text.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")), "{text}");
    }
}
