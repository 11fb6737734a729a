//! Metrics of a worker.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{Gauge, Histogram, HistogramTimer, IntCounter, IntCounterVec, IntGaugeVec};
use tokio::time::Instant;

use super::registry::Registry;
use crate::domain::decision::{Decision, Hint, Outcome, Reason};
use crate::domain::order::SaleId;
use crate::domain::sale::{PauseMode, SaleState};

/// Seconds from an order's time to its decision: from some 10 ms on a quiet path to a long outage.
const DECISION_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0,
];
/// For how long a pause is known without another order of its sale: held ones come back within 30 s.
const PAUSE_KNOWN: Duration = Duration::from_mins(1);
/// Seconds of a stage: from a script in Redis to a limit of time.
const STAGE_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Orders of a batch.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// The drain rate is of so many seconds.
const RATE_SECONDS: usize = 10;

/// Sales whose units are shown at most, so that labels stay few.
const MAX_SALES: usize = 100;
/// A sale without orders for so long gives its place to another.
const SALE_IDLE: Duration = Duration::from_mins(1);

/// Metrics of a worker.
pub struct WorkerMetrics {
    orders: Vec<(Outcome, IntCounter)>,
    decision_seconds: Histogram,
    stage_seconds: [Histogram; Stage::ALL.len()],
    batch_size: Histogram,
    hints_overruled: [IntCounter; 2],
    dead_letters: IntCounterVec,
    units: IntGaugeVec,
    shown: Mutex<HashMap<SaleId, Instant>>,
    sale_paused: IntGaugeVec,
    /// Of the sales that are shown.
    paused: Mutex<BTreeMap<SaleId, PauseMode>>,
    drain_rate: Gauge,
    last_progress: Gauge,
    progress: Mutex<Progress>,
    /// The ledger is asked again to decide, because it could not.
    pub is_deciding_again: AtomicBool,
    /// Orders that had their decision already.
    pub duplicates: IntCounter,
    /// Orders that were put on a delay queue.
    pub deferred: IntCounter,
    /// Events that no subscriber's queue got.
    pub unrouted_events: IntCounter,
}

/// Orders done with.
#[derive(Default)]
struct Progress {
    total: u64,
    /// What it was at the last ticks.
    before: VecDeque<(Instant, u64)>,
}

/// A stage of an order's path whose time is measured, of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Stage {
    Propose,
    Decide,
    Amend,
    Publish,
    /// Of a call to the user service.
    Verify,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Propose, Self::Decide, Self::Amend, Self::Publish, Self::Verify];

    fn name(self) -> &'static str {
        match self {
            Self::Propose => "propose",
            Self::Decide => "decide",
            Self::Amend => "amend",
            Self::Publish => "publish",
            Self::Verify => "verify",
        }
    }
}

impl WorkerMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let orders = registry.counters(
            "orders_total",
            "Decisions stored for the first time.",
            &["outcome", "reason"],
        );
        let rejected = Reason::ALL.map(Outcome::Rejected);
        let orders =
            [Outcome::Created, Outcome::SoldOut].into_iter().chain(rejected).map(|outcome| {
                let reason = outcome.reason().map_or("", Reason::name);
                (outcome, orders.with_label_values(&[outcome.name(), reason]))
            });
        let help = "Time of a stage of the path, of a batch; of a call for verify.";
        let stages = registry.histograms("stage_seconds", help, "stage", STAGE_SECONDS);
        let help = "Orders that the ledger answered otherwise than Redis had expected.";
        let hints = registry.counters("hints_overruled_total", help, &["hint"]);
        let help = "Messages set aside as dead letters.";
        let dead_letters = registry.counters("dead_letters_total", help, &["reason"]);
        let help = "Units of a sale, as a decision here has left them.";
        let units = registry.gauges("units", help, &["sale", "state"]);
        let help = "1 while a sale is paused so, of those that this process decides orders of.";
        let sale_paused = registry.gauges("sale_paused", help, &["sale", "mode"]);
        let help = "Time from an order's submission to its decision.";
        let decision_seconds = registry.histogram("decision_seconds", help, DECISION_SECONDS);
        let help = "Orders that were decided together.";
        let batch_size = registry.histogram("batch_size", help, BATCH_SIZES);
        let help = "Orders done with in a second, over the last 10 seconds.";
        let drain_rate = registry.level("drain_rate", help);
        let help = "When an order was last done with, in seconds since 1970.";
        let last_progress = registry.level("last_progress_timestamp_seconds", help);
        let help = "Orders that had their decision already.";
        let duplicates = registry.counter("duplicates_total", help);
        let deferred = registry.counter("deferred_total", "Orders put on a delay queue.");
        let help = "Events that no subscriber's queue got.";
        let unrouted_events = registry.counter("unrouted_events_total", help);
        Self {
            orders: orders.collect(),
            decision_seconds,
            stage_seconds: Stage::ALL.map(|stage| stages.with_label_values(&[stage.name()])),
            batch_size,
            hints_overruled: ["granted", "refused"].map(|hint| hints.with_label_values(&[hint])),
            dead_letters,
            units,
            shown: Mutex::default(),
            sale_paused,
            paused: Mutex::default(),
            drain_rate,
            last_progress,
            progress: Mutex::default(),
            is_deciding_again: AtomicBool::new(false),
            duplicates,
            deferred,
            unrouted_events,
        }
    }

    /// Measures a stage until the timer is dropped.
    pub fn time(&self, stage: Stage) -> HistogramTimer {
        self.stage(stage).start_timer()
    }

    /// Time of a stage.
    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stage_seconds[stage as usize]
    }

    /// A batch of so many orders is decided.
    pub fn batch(&self, orders: usize) {
        self.batch_size.observe(orders as f64);
    }

    /// A decision was stored.
    pub fn decided(&self, decision: &Decision) {
        self.orders(decision.outcome).inc();
        let took = decision.decided_at.signed_duration_since(decision.submitted_at);
        self.decision_seconds.observe(took.to_std().unwrap_or_default().as_secs_f64());
    }

    /// Decisions of this process with this outcome.
    pub fn orders(&self, outcome: Outcome) -> &IntCounter {
        let counter = self.orders.iter().find(|(of, _)| *of == outcome);
        let Some((_, counter)) = counter else { unreachable!("there is one for each outcome") };
        counter
    }

    /// The decisions of this process, by outcome.
    pub fn decisions(&self) -> impl Iterator<Item = (Outcome, u64)> {
        self.orders.iter().map(|(outcome, counter)| (*outcome, counter.get()))
    }

    /// Decisions by the time from submission to decision, in buckets: the most seconds, `None` for any, and how many.
    pub fn latency(&self) -> Vec<(Option<f64>, u64)> {
        let families = self.decision_seconds.collect();
        let histograms =
            families.iter().flat_map(MetricFamily::get_metric).map(Metric::get_histogram);
        let (mut buckets, mut before) = (Vec::new(), 0);
        for histogram in histograms {
            for bucket in histogram.get_bucket() {
                let most = bucket.cumulative_count();
                buckets.push((Some(bucket.upper_bound()), most.saturating_sub(before)));
                before = most;
            }
            buckets.push((None, histogram.get_sample_count().saturating_sub(before)));
        }
        buckets
    }

    /// The ledger did not do what `hint` said.
    pub fn overruled(&self, hint: Hint) {
        self.hints_overruled[usize::from(hint == Hint::Refused)].inc();
    }

    /// Dead letters may have these reasons. Each is shown from now on: a first one would not count as an increase
    /// otherwise.
    pub fn expect_dead_letters(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            self.dead_letters.with_label_values(&[reason]);
        }
    }

    /// A dead letter was published.
    pub fn dead_lettered(&self, reason: &str) {
        self.dead_letters.with_label_values(&[reason]).inc();
    }

    /// Dead letters that this process published, by reason.
    pub fn dead_letters(&self) -> BTreeMap<String, u64> {
        let families = self.dead_letters.collect();
        let labels = families.iter().flat_map(MetricFamily::get_metric).flat_map(Metric::get_label);
        let reasons = labels.map(|label| label.value().to_owned());
        let count = |reason: &str| self.dead_letters.with_label_values(&[reason]).get();
        reasons.map(|reason| (reason.clone(), count(&reason))).collect()
    }

    /// Sales as a batch has left them.
    pub fn units<'a>(&self, sales: impl IntoIterator<Item = &'a SaleState>) {
        let mut shown = self.shown.lock();
        let now = Instant::now();
        for state in sales {
            let id = &state.sale.id;
            if shown.len() >= MAX_SALES && !shown.contains_key(id) {
                let Some(idle) = shown.extract_if(|_, used| now - *used > SALE_IDLE).next() else {
                    continue;
                };
                for state in ["stock", "sold"] {
                    // It was set with both.
                    let _ = self.units.remove_label_values(&[idle.0.as_str(), state]);
                }
                self.pause(&idle.0, None);
            }
            shown.insert(id.clone(), now);
            for (name, units) in [("stock", state.sale.stock), ("sold", state.sold)] {
                self.units.with_label_values(&[id.as_str(), name]).set(units.into());
            }
            self.pause(id, state.paused);
        }
    }

    fn pause(&self, sale: &SaleId, mode: Option<PauseMode>) {
        let mut paused = self.paused.lock();
        let before = match mode {
            Some(mode) => paused.insert(sale.clone(), mode),
            None => paused.remove(sale),
        };
        if before == mode {
            return;
        }
        if let Some(before) = before {
            let _ = self.sale_paused.remove_label_values(&[sale.as_str(), before.name()]);
        }
        if let Some(mode) = mode {
            self.sale_paused.with_label_values(&[sale.as_str(), mode.name()]).set(1);
        }
    }

    /// Sales that are paused, as far as this process decides orders of them.
    pub fn paused(&self) -> BTreeMap<SaleId, PauseMode> {
        self.paused.lock().clone()
    }

    /// So many orders are done with: decided and told, put off, or set aside.
    pub fn done(&self, orders: usize) {
        self.progress.lock().total += orders as u64;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_progress.set(now.as_secs_f64());
    }

    /// Orders done with so far.
    pub fn total(&self) -> u64 {
        self.progress.lock().total
    }

    /// To be called each second: updates the drain rate, and forgets pauses of sales that no order has come of.
    pub fn tick(&self) {
        let stale: Vec<SaleId> = {
            let (shown, now) = (self.shown.lock(), Instant::now());
            let is_stale =
                |sale: &SaleId| shown.get(sale).is_none_or(|used| now - *used > PAUSE_KNOWN);
            self.paused.lock().keys().filter(|sale| is_stale(sale)).cloned().collect()
        };
        for sale in &stale {
            self.pause(sale, None);
        }
        let mut progress = self.progress.lock();
        // An order that was only put off is not done with.
        let (now, total) = (Instant::now(), progress.total.saturating_sub(self.deferred.get()));
        progress.before.push_back((now, total));
        if progress.before.len() > RATE_SECONDS + 1 {
            progress.before.pop_front();
        }
        if let Some((at, before)) = progress.before.front() {
            let seconds = (now - *at).as_secs_f64();
            let rate =
                if seconds > 0.0 { total.saturating_sub(*before) as f64 / seconds } else { 0.0 };
            self.drain_rate.set(rate);
        }
    }

    /// Orders done with in a second, over the last 10.
    pub fn drain_rate(&self) -> f64 {
        self.drain_rate.get()
    }
}
