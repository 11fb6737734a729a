//! What the parts of a simulation share: time, chance, and the trace of what happened.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use floodgate::clock::Clock;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::plan::Fault;

/// When every simulation begins, in seconds since 1970.
const BEGINNING_S: i64 = 1_795_000_000;

/// The world of one simulation, which runs in one thread on tokio's paused time.
pub(super) struct World {
    begun: Instant,
    random: Mutex<StdRng>,
    /// Faults that may happen; none once the world is healed.
    faults: Mutex<Vec<Fault>>,
    trace: Mutex<Trace>,
    violations: Mutex<Vec<String>>,
}

struct Trace {
    hash: DefaultHasher,
    lines: Option<Vec<String>>,
    events: u64,
}

impl World {
    /// A world in which `faults` may happen. Keeps the lines of the trace if so asked.
    pub(super) fn new(seed: u64, faults: Vec<Fault>, keeps_lines: bool) -> Self {
        let lines = keeps_lines.then(Vec::new);
        Self {
            begun: Instant::now(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            faults: Mutex::new(faults),
            trace: Mutex::new(Trace { hash: DefaultHasher::new(), lines, events: 0 }),
            violations: Mutex::default(),
        }
    }

    /// How long the world has been there.
    pub(super) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The time, in whole milliseconds, by the ledger's clock.
    pub(super) fn now(&self) -> DateTime<Utc> {
        let age = i64::try_from(self.age().as_millis()).unwrap_or(i64::MAX);
        DateTime::from_timestamp(BEGINNING_S, 0).unwrap_or_default() + TimeDelta::milliseconds(age)
    }

    /// A clock that is wrong by `skew`.
    pub(super) fn clock(self: &std::sync::Arc<Self>, skew: TimeDelta) -> Clock {
        let world = self.clone();
        std::sync::Arc::new(move || world.now() + skew)
    }

    /// A number from `low` to `high`.
    pub(super) fn number(&self, low: u64, high: u64) -> u64 {
        self.random.lock().random_range(low..=high)
    }

    /// Whether `fault` happens, at one of `odds` occasions.
    pub(super) fn strikes(&self, fault: Fault, odds: u64) -> bool {
        self.faults.lock().contains(&fault) && self.number(1, odds) == 1
    }

    /// Waits as long as a server may take to answer.
    pub(super) async fn latency(&self, slow: Fault) {
        let most = if self.strikes(slow, 40) { 4000 } else { 8 };
        tokio::time::sleep(Duration::from_millis(self.number(0, most))).await;
    }

    /// Ends all faults.
    pub(super) fn heal(&self) {
        self.faults.lock().clear();
    }

    /// Something happened.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        let line = format!("{:>8} {}", self.age().as_millis(), what());
        let mut trace = self.trace.lock();
        line.hash(&mut trace.hash);
        trace.events += 1;
        if let Some(lines) = &mut trace.lines {
            lines.push(line);
        }
    }

    /// Something happened that must not.
    pub(super) fn violation(&self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        self.violations.lock().push(what);
    }

    /// What happened: a number that is the same for the same trace, how many events, their lines, and what
    /// must not have happened.
    pub(super) fn end(&self) -> (u64, u64, Vec<String>, Vec<String>) {
        let mut trace = self.trace.lock();
        let lines = trace.lines.take().unwrap_or_default();
        (trace.hash.finish(), trace.events, lines, std::mem::take(&mut *self.violations.lock()))
    }
}
