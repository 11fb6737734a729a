//! Metrics of the servers that this process depends on.

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::registry::Registry;

/// A server that calls go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dependency {
    RabbitMq,
    Redis,
    PostgreSql,
    Sqlite,
    UserService,
    /// Where the keys of tokens are published.
    Jwks,
}

impl Dependency {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "RabbitMQ",
            Self::Redis => "Redis",
            Self::PostgreSql => "PostgreSQL",
            Self::Sqlite => "SQLite",
            Self::UserService => "user service",
            Self::Jwks => "JWKS",
        }
    }

    /// The value of the label `dependency`.
    pub fn label(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Redis => "redis",
            Self::PostgreSql => "postgresql",
            Self::Sqlite => "sqlite",
            Self::UserService => "user_service",
            Self::Jwks => "jwks",
        }
    }
}

/// Metrics of every server.
pub struct Dependencies {
    up: IntGaugeVec,
    retries: IntCounterVec,
    known: Mutex<Vec<DependencyMetrics>>,
}

/// Metrics of one server.
#[derive(Debug, Clone)]
pub struct DependencyMetrics {
    /// Which one.
    pub dependency: Dependency,
    up: IntGauge,
    retries: IntCounter,
}

impl DependencyMetrics {
    /// A call was answered.
    pub fn answered(&self) {
        self.up.set(1);
    }

    /// A call failed, because the server can't be reached or does not answer. It is repeated.
    pub fn failed(&self) {
        self.up.set(0);
        self.retries.inc();
    }
}

impl Dependencies {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            up: registry.gauges(
                "dependency_up",
                "Whether a server answered when it was last called.",
                &["dependency"],
            ),
            retries: registry.counters(
                "retries_total",
                "Calls that failed because a server was unavailable, and are repeated.",
                &["dependency"],
            ),
            known: Mutex::default(),
        }
    }

    /// Those of one, which is up as far as is known.
    pub fn of(&self, dependency: Dependency) -> DependencyMetrics {
        let mut known = self.known.lock();
        if let Some(metrics) = known.iter().find(|metrics| metrics.dependency == dependency) {
            return metrics.clone();
        }
        let label = [dependency.label()];
        let up = self.up.with_label_values(&label);
        up.set(1);
        let metrics =
            DependencyMetrics { dependency, up, retries: self.retries.with_label_values(&label) };
        known.push(metrics.clone());
        metrics
    }

    /// Whether a server answers, as far as is known.
    pub fn is_up(&self, dependency: Dependency) -> bool {
        self.up().iter().all(|(other, up)| *other != dependency || *up)
    }

    /// Every server that calls go to, and whether it answers.
    pub fn up(&self) -> Vec<(Dependency, bool)> {
        let known = self.known.lock();
        known.iter().map(|metrics| (metrics.dependency, metrics.up.get() == 1)).collect()
    }
}
