//! Report: how far a worker is, for its log, its metrics and its probes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::domain::decision::{Outcome, Reason};
use crate::metrics::{Dependency, Metrics};
use crate::status::WorkerHealth;

/// How often the drain rate is brought up to date, and after how many times a busy worker says how far it is.
const TICK: Duration = Duration::from_secs(1);
const REPORT_EVERY: u32 = 10;

/// Keeps the drain rate and what probes see up to date, and logs now and then how far a busy worker is, for as long as
/// it is polled.
pub(super) async fn report(metrics: Arc<Metrics>, health: Arc<WorkerHealth>) {
    let (mut before, mut ticks) = (0, tokio::time::interval(TICK));
    for tick in 1_u32.. {
        ticks.tick().await;
        metrics.worker.tick();
        let total = metrics.worker.total();
        let has_orders = metrics.broker.in_flight().0 > 0;
        // Those are known to be slow or unavailable, and nothing of the worker's own.
        let is_own =
            |server: &Dependency| !matches!(server, Dependency::UserService | Dependency::Jwks);
        let up = metrics.dependencies.up();
        let all_answer = up.iter().filter(|(server, _)| is_own(server)).all(|(_, up)| *up);
        let is_refused = metrics.worker.is_deciding_again.load(Ordering::Relaxed);
        health.note(total, has_orders && all_answer && !is_refused);
        if tick.is_multiple_of(REPORT_EVERY) && total != before {
            log("working", &metrics);
            before = total;
        }
    }
}

/// Logs what was done since the worker started.
pub(super) fn log(what: &str, metrics: &Metrics) {
    let worker = &metrics.worker;
    let (mut created, mut sold_out, mut rejected, mut expired) = (0, 0, 0, 0);
    for (outcome, count) in worker.decisions() {
        match outcome {
            Outcome::Created => created += count,
            Outcome::SoldOut => sold_out += count,
            Outcome::Rejected(Reason::Expired) => expired += count,
            Outcome::Rejected(_) => rejected += count,
        }
    }
    tracing::info!(
        created,
        sold_out,
        rejected,
        expired,
        repeats = worker.duplicates.get(),
        dead_letters = worker.dead_letters().values().sum::<u64>(),
        deferred = worker.deferred.get(),
        events_without_subscriber = worker.unrouted_events.get(),
        dropped_replies = metrics.broker.dropped_replies.get(),
        "{what}"
    );
}
