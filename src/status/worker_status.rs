//! What a worker says of itself.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::WorkerHealth;
use crate::metrics::Metrics;
use crate::shards::WorkerId;

/// What a worker says of itself once a second, as JSON on the exchange `floodgate.status`. Counts are since it
/// started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Which worker.
    pub worker: WorkerId,
    /// Where it runs.
    pub host: String,
    /// Its process there.
    pub process: u32,
    /// Of floodgate.
    pub version: String,
    /// When it said so, by its clock.
    pub at: DateTime<Utc>,
    /// What it does.
    pub state: WorkerState,
    /// New decisions, by outcome: see [`Outcome::code`](crate::domain::decision::Outcome::code).
    pub decisions: BTreeMap<String, u64>,
    /// New decisions, by the time from submission to decision.
    pub latency: Vec<LatencyBucket>,
    /// Orders put on delay queues.
    pub deferred: u64,
    /// Dead letters, by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Messages with orders that it has settled.
    pub settled: u64,
    /// Messages with orders that it has not settled.
    pub in_flight: usize,
    /// Age of the oldest of them in seconds.
    pub oldest_s: f64,
    /// Orders done with in a second.
    pub drain_rate: f64,
    /// The servers it needs, and whether they answer.
    pub dependencies: BTreeMap<String, bool>,
    /// Sales that are paused, of those it decides orders of, and how.
    #[serde(default)]
    pub paused: BTreeMap<String, String>,
}

/// Decisions that took up to `seconds`, and longer than those of the bucket before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LatencyBucket {
    /// None: any time.
    pub seconds: Option<f64>,
    pub count: u64,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It takes orders.
    Running,
    /// It takes no orders yet, or no more.
    Idle,
    /// It has ended.
    Ended,
    /// It has said nothing for 3 s, and the broker has its connection: it is stuck, or about to be found gone. Only
    /// others say so.
    Silent,
    /// It says nothing, and the broker has no connection of it: what it had not settled is back in the queue. Only
    /// others say so.
    Gone,
}

/// A worker's name for people.
#[derive(Debug, Clone)]
pub struct WorkerName {
    /// Which worker.
    pub worker: WorkerId,
    /// Where it runs.
    pub host: String,
}

impl WorkerName {
    /// Of a worker in this process.
    pub fn here() -> Self {
        let host = whoami::hostname().unwrap_or_else(|_| "unknown".to_owned());
        Self { worker: WorkerId::new(), host }
    }
}

impl WorkerStatus {
    /// Of a worker that counts in `metrics`.
    pub fn of(name: &WorkerName, metrics: &Metrics, health: &WorkerHealth) -> Self {
        let WorkerName { worker, host } = name.clone();
        let counted = &metrics.worker;
        let (in_flight, oldest_s) = metrics.broker.in_flight();
        let decisions = counted.decisions();
        let latency = counted.latency();
        let up = metrics.dependencies.up().into_iter();
        Self {
            worker,
            host,
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: Utc::now(),
            state: if health.is_consuming() { WorkerState::Running } else { WorkerState::Idle },
            decisions: decisions
                .map(|(outcome, count)| (outcome.code().to_owned(), count))
                .collect(),
            latency: latency
                .into_iter()
                .map(|(seconds, count)| LatencyBucket { seconds, count })
                .collect(),
            deferred: counted.deferred.get(),
            dead_letters: counted.dead_letters(),
            settled: metrics.broker.settled(),
            in_flight,
            oldest_s,
            drain_rate: counted.drain_rate(),
            dependencies: up.map(|(server, up)| (server.name().to_owned(), up)).collect(),
            paused: counted
                .paused()
                .into_iter()
                .map(|(sale, mode)| (sale.to_string(), mode.name().to_owned()))
                .collect(),
        }
    }
}
