//! Metrics of webhooks.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::registry::Registry;

/// What a webhook may be, as its status says.
const STATES: [&str; 3] = ["active", "failing", "disabled"];

/// Metrics of a sender of webhooks.
#[derive(Clone)]
pub struct WebhookMetrics {
    requests: IntCounterVec,
    webhooks: IntGaugeVec,
}

/// What became of a request to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The event was accepted.
    Delivered,
    /// It was not, and is sent again.
    Failed,
    /// It was not, and is given up.
    GivenUp,
}

impl Sent {
    fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

impl WebhookMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let requests = registry.counters(
            "webhook_requests_total",
            "Requests to endpoints of webhooks, by what became of them.",
            &["result"],
        );
        for sent in [Sent::Delivered, Sent::Failed, Sent::GivenUp] {
            requests.with_label_values(&[sent.name()]);
        }
        let webhooks = registry.gauges(
            "webhooks",
            "Webhooks of the deployment, as a sender sees them.",
            &["state"],
        );
        Self { requests, webhooks }
    }

    /// A request was made.
    pub fn sent(&self, sent: Sent) {
        self.requests.with_label_values(&[sent.name()]).inc();
    }

    /// There are webhooks in these states now.
    pub fn are(&self, states: &[&str]) {
        for state in STATES {
            let count = states.iter().filter(|other| **other == state).count();
            self.webhooks.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
