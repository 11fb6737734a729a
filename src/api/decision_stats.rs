//! How decisions go, for the live page. Listens to the events of orders only while a page follows them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::sync::watch;
use uuid::Uuid;

use crate::broker::{Broker, Deliveries, PublishedAs, Queue};
use crate::domain::event::outcome_of;
use crate::domain::event_batch::data_of;
use crate::domain::order::OrderKey;

const TELL_EVERY: Duration = Duration::from_secs(1);
/// Events taken from the broker at once.
const PREFETCH: u16 = 1000;
/// Orders whose way is timed at once; others go untimed.
const MAX_TIMED: usize = 10_000;
/// An order without a decision for so long is timed no more.
const TIMED_FOR: Duration = Duration::from_mins(1);
/// The latest latencies that the percentiles are of.
const MAX_LATENCIES: usize = 2000;

/// Decisions since a page began to follow them.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Totals {
    created: u64,
    sold_out: u64,
    rejected: u64,
    per_second: f64,
    latency_ms: Option<Latency>,
    /// Which server counts.
    #[serde(skip)]
    since: Uuid,
    /// How often they were told.
    #[serde(skip)]
    number: u64,
}

impl Totals {
    /// Names these totals among all of this server and others.
    pub(super) fn event_id(&self) -> String {
        format!("{}-{}", self.since, self.number)
    }
}

/// Milliseconds from an order's acceptance here to its event, of the latest orders.
#[derive(Debug, Clone, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// Counts decisions while a page follows them.
pub(super) struct DecisionStats {
    broker: Arc<dyn Broker>,
    published_as: PublishedAs,
    totals: watch::Sender<Totals>,
    looked_at: tokio::sync::Notify,
    /// When orders were accepted.
    timed: Mutex<HashMap<OrderKey, Instant>>,
}

impl DecisionStats {
    pub(super) fn new(broker: Arc<dyn Broker>, published_as: PublishedAs) -> Self {
        let totals = watch::Sender::new(Totals { since: Uuid::now_v7(), ..Totals::default() });
        let looked_at = tokio::sync::Notify::new();
        Self { broker, published_as, totals, looked_at, timed: Mutex::default() }
    }

    /// The totals, from now on every second.
    pub(super) fn follow(&self) -> watch::Receiver<Totals> {
        let receiver = self.totals.subscribe();
        self.looked_at.notify_one();
        receiver
    }

    /// An order is about to be queued.
    pub(super) fn accepted(&self, order: OrderKey) {
        if self.totals.receiver_count() > 0 {
            let mut timed = self.timed();
            if timed.len() < MAX_TIMED {
                timed.insert(order, Instant::now());
            }
        }
    }

    /// Counts for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.looked_at.notified().await;
            if self.totals.receiver_count() == 0 {
                continue;
            }
            let queue = Queue::Private(format!("stats.{}", Uuid::now_v7()));
            match self.broker.subscribe(queue, &[self.published_as.orders()], PREFETCH).await {
                Ok(events) => self.count(events).await,
                Err(error) => {
                    tracing::warn!(%error, "can't listen to decisions for the live page");
                    tokio::time::sleep(TELL_EVERY).await;
                    self.looked_at.notify_one();
                }
            }
            self.timed().clear();
        }
    }

    /// Counts until no page follows them any more.
    async fn count(&self, mut events: Deliveries) {
        let mut totals = self.totals.borrow().clone();
        let mut latencies = Vec::new();
        let mut since_told = 0_u32;
        let mut ticks =
            tokio::time::interval_at(tokio::time::Instant::now() + TELL_EVERY, TELL_EVERY);
        let mut told_at = Instant::now();
        loop {
            tokio::select! {
                Some(event) = events.next() => {
                    let told = data_of(&event.body).unwrap_or_default();
                    for (order, outcome) in told.into_iter().filter_map(outcome_of) {
                        match outcome.as_str() {
                            "created" => totals.created += 1,
                            "sold_out" => totals.sold_out += 1,
                            _ => totals.rejected += 1,
                        }
                        since_told += 1;
                        let accepted = self.timed().remove(&order);
                        latencies.extend(accepted.map(|accepted| accepted.elapsed()));
                    }
                    event.ack();
                }
                _ = ticks.tick() => {
                    totals.per_second = f64::from(since_told) / told_at.elapsed().as_secs_f64();
                    let surplus = latencies.len().saturating_sub(MAX_LATENCIES);
                    latencies.drain(..surplus);
                    totals.latency_ms = latency(&latencies);
                    totals.number += 1;
                    (since_told, told_at) = (0, Instant::now());
                    self.timed().retain(|_, accepted| accepted.elapsed() < TIMED_FOR);
                    self.totals.send_replace(totals.clone());
                    if self.totals.receiver_count() == 0 {
                        break;
                    }
                }
            }
        }
        events.stop();
        events.finished().await;
    }

    fn timed(&self) -> MutexGuard<'_, HashMap<OrderKey, Instant>> {
        self.timed.lock()
    }
}

fn latency(latencies: &[Duration]) -> Option<Latency> {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| {
        sorted.get((sorted.len().max(1) - 1) * percent / 100).map(|time| time.as_secs_f64() * 1e3)
    };
    Some(Latency { p50: at(50)?, p99: at(99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        assert!(latency(&[]).is_none());
        let seen: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        let Latency { p50, p99 } = latency(&seen).unwrap();
        assert!((p50 - 51.0).abs() < 1e-9 && (p99 - 100.0).abs() < 1e-9, "{p50} {p99}");
    }
}
