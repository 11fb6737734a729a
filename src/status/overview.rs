//! How a deployment does, at one moment.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{LatencyBucket, WorkerState};
use crate::domain::sale::PauseMode;

/// How a deployment does, as far as one process knows. Totals are since it began to watch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// When this was.
    pub at: DateTime<Utc>,
    /// What an operator should look at first; nothing when all is well.
    pub alarm: Option<String>,
    /// New decisions, by outcome, or by the reason of a rejection.
    pub decisions: BTreeMap<String, u64>,
    /// Of these, in the last second or so: a second's worth.
    pub per_second: BTreeMap<String, f64>,
    /// Time from submission to decision, of the decisions of the last 10 seconds; none without any.
    pub latency: Option<Latency>,
    /// Messages that wait, by queue.
    pub queues: BTreeMap<String, u64>,
    /// Age in seconds of the oldest message with orders that no worker has settled.
    pub oldest_s: f64,
    /// Orders that all workers are done with in a second, over the last 10.
    pub drain_rate: f64,
    /// Messages with orders that are ahead of one that arrives now.
    pub ahead: u64,
    /// Messages with orders that all workers have settled.
    pub settled: u64,
    /// Seconds until an order that arrives now is decided, by the rate at which messages were settled since they began to
    /// wait, over 10 seconds at most; none until they have waited for 3.
    pub wait_s: Option<f64>,
    /// Dead letters that the workers have published, by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// For each server, how many workers get answers from it, and how many don't.
    pub dependencies: BTreeMap<String, Answering>,
    /// Sales that are paused, and how, as far as orders of them have come.
    pub paused: BTreeMap<String, String>,
    /// The workers, oldest first.
    pub workers: Vec<WorkerView>,
}

/// How many workers get answers from a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Answering {
    pub up: u32,
    pub down: u32,
}

/// Percentiles, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// A worker, as it has said last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its id.
    pub worker: String,
    /// Where it runs.
    pub host: String,
    /// Its process there.
    pub process: u32,
    /// Of floodgate.
    pub version: String,
    /// What it does.
    pub state: WorkerState,
    /// For how many seconds nothing was heard of it.
    pub silent_s: f64,
    /// Messages with orders that it has not settled.
    pub in_flight: usize,
    /// Age of the oldest of them in seconds.
    pub oldest_s: f64,
    /// Orders it is done with in a second.
    pub drain_rate: f64,
}

impl Overview {
    /// The same, with its alarm.
    pub(super) fn with_alarm(self) -> Self {
        let down = self.dependencies.iter().filter(|(_, answering)| answering.down > 0);
        let down: Vec<&str> = down.map(|(server, _)| server.as_str()).collect();
        let are = |state| self.workers.iter().filter(move |worker| worker.state == state).count();
        let (silent, gone) = (are(WorkerState::Silent), are(WorkerState::Gone));
        let held = self.paused.iter().filter(|(_, mode)| *mode == PauseMode::Hold.name());
        let held: Vec<&str> = held.map(|(sale, _)| sale.as_str()).take(5).collect();
        let restored = self.paused.iter().filter(|(_, mode)| *mode == PauseMode::Restored.name());
        let restored: Vec<&str> = restored.map(|(sale, _)| sale.as_str()).take(5).collect();
        let waits = ["intents", "returned"].iter().any(|queue| self.queues.get(*queue) > Some(&0));
        let alarm = if !restored.is_empty() {
            Some(format!("The ledger has lost units sold of {}", restored.join(", ")))
        } else if !down.is_empty() {
            Some(format!("Not answering: {}", down.join(", ")))
        } else if silent > 0 {
            Some(format!("{silent} of {} workers say nothing", self.workers.len()))
        } else if waits && are(WorkerState::Running) == 0 {
            Some("Orders wait, and no worker runs".to_owned())
        } else if gone > 0 {
            Some(format!("{gone} of {} workers have gone without a word", self.workers.len()))
        } else if !held.is_empty() {
            Some(format!("An operator holds the orders of {}", held.join(", ")))
        } else {
            None
        };
        Self { alarm, ..self }
    }
}

impl Latency {
    /// The percentiles of what is in `buckets`: within a bucket the times are taken to be spread evenly, as Prometheus
    /// does, and one longer than all bounds to be as long as the last one.
    pub fn of(buckets: &[LatencyBucket]) -> Option<Self> {
        let total: u64 = buckets.iter().map(|bucket| bucket.count).sum();
        let at = |share: f64| {
            let (rank, mut seen, mut from) = (share * total as f64, 0.0, 0.0);
            for LatencyBucket { seconds, count } in buckets {
                let count = *count as f64;
                let Some(to) = seconds else { return from };
                if count > 0.0 && seen + count >= rank {
                    return from + (to - from) * (rank - seen) / count;
                }
                (seen, from) = (seen + count, *to);
            }
            from
        };
        (total > 0).then(|| Self { p50: at(0.50), p99: at(0.99) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_the_buckets_they_fall_into() {
        let buckets = |counts: [u64; 3]| {
            let bounds = [Some(0.1), Some(0.5), None];
            let pairs = bounds.into_iter().zip(counts);
            pairs.map(|(seconds, count)| LatencyBucket { seconds, count }).collect::<Vec<_>>()
        };
        assert_eq!(Latency::of(&buckets([0, 0, 0])), None);
        let of = |counts| {
            let Latency { p50, p99 } = Latency::of(&buckets(counts)).unwrap();
            format!("{p50:.3} {p99:.3}")
        };
        assert_eq!(of([100, 0, 0]), "0.050 0.099");
        assert_eq!(of([50, 50, 0]), "0.100 0.492");
        assert_eq!(of([1, 1, 98]), "0.500 0.500");
    }
}
