//! Metrics of the broker.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use prometheus::{Gauge, IntCounter, IntGauge, IntGaugeVec};

use super::registry::Registry;
use super::unsettled::{Unsettled, UnsettledGuard};

/// How long it may take to deliver what comes from a delay queue.
const RETURNING: Duration = Duration::from_secs(2);

/// Metrics of the broker.
#[derive(Clone)]
pub struct BrokerMetrics {
    /// Connections that were made again.
    pub reconnects: IntCounter,
    unconfirmed_publishes: IntGauge,
    /// Replies that could not be sent.
    pub dropped_replies: IntCounter,
    queue_depth: IntGaugeVec,
    workers: IntGaugeVec,
    /// Deliveries of intents.
    unsettled: Unsettled,
    in_flight: IntGauge,
    queue_oldest_seconds: Gauge,
    /// As the processes of the deployment say.
    deployment_oldest_s: Arc<Mutex<f64>>,
}

/// Messages count as unconfirmed until this is dropped.
pub struct UnconfirmedGuard {
    gauge: IntGauge,
    messages: i64,
}

impl Drop for UnconfirmedGuard {
    fn drop(&mut self) {
        self.gauge.sub(self.messages);
    }
}

impl BrokerMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            reconnects: registry
                .counter("reconnects_total", "Connections to the broker that were made again."),
            unconfirmed_publishes: registry.gauge(
                "unconfirmed_publishes",
                "Messages published whose confirm has not come yet.",
            ),
            dropped_replies: registry
                .counter("dropped_replies_total", "Replies that could not be sent."),
            workers: registry.gauges(
                "workers",
                "Workers of the deployment, as an API process hears of them.",
                &["state"],
            ),
            queue_depth: registry.gauges(
                "queue_depth",
                "Messages that wait in a queue of the deployment.",
                &["queue"],
            ),
            unsettled: Unsettled::default(),
            deployment_oldest_s: Arc::default(),
            in_flight: registry.gauge(
                "in_flight",
                "Messages with orders that were taken from the queue and are not settled.",
            ),
            queue_oldest_seconds: registry.level(
                "queue_oldest_seconds",
                "Age of the oldest message with orders that is not settled, or that was put off, by the sender's clock.",
            ),
        }
    }

    /// A message with orders was delivered; it is unsettled until the guard is dropped. It counts from the time its
    /// sender has put on it, if that is not later than now.
    pub fn take(&self, sent_at: Option<DateTime<Utc>>) -> UnsettledGuard {
        let now = Utc::now();
        self.unsettled.take(sent_at.map_or(now, |sent_at| sent_at.min(now)))
    }

    /// Age in seconds of the oldest message with orders in the whole deployment, as far as it is known here.
    pub fn set_oldest(&self, age_s: f64) {
        *self.deployment_oldest_s.lock() = age_s;
    }

    /// So many workers run, and so many of them say nothing.
    pub fn set_workers(&self, running: usize, silent: usize) {
        for (state, count) in [("running", running), ("silent", silent)] {
            self.workers.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// An order from `since` was put on a delay queue for `delay`.
    pub fn deferred(&self, since: DateTime<Utc>, delay: Duration) {
        self.unsettled.defer(since, Utc::now() + delay + RETURNING);
    }

    /// Messages with orders that are not settled, and the age in seconds of the oldest, or of the oldest order that waits
    /// on a delay queue.
    pub fn in_flight(&self) -> (usize, f64) {
        let now = Utc::now();
        let oldest = self.unsettled.oldest(now).map(|since| now - since);
        let age = oldest.and_then(|age| age.to_std().ok()).unwrap_or_default();
        (self.unsettled.count(), age.as_secs_f64())
    }

    /// Messages with orders that were settled.
    pub fn settled(&self) -> u64 {
        self.unsettled.settled()
    }

    pub(super) fn refresh(&self) {
        let (count, age) = self.in_flight();
        self.in_flight.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.queue_oldest_seconds.set(age.max(*self.deployment_oldest_s.lock()));
    }

    /// So many messages were published; their confirms are awaited until the guard is dropped.
    pub fn unconfirmed(&self, messages: usize) -> UnconfirmedGuard {
        let (gauge, messages) = (self.unconfirmed_publishes.clone(), messages.cast_signed() as i64);
        gauge.add(messages);
        UnconfirmedGuard { gauge, messages }
    }

    /// So many messages wait in each queue, by its role.
    pub fn depths(&self, queues: &[(&str, u64)]) {
        for &(queue, messages) in queues {
            let messages = i64::try_from(messages).unwrap_or(i64::MAX);
            self.queue_depth.with_label_values(&[queue]).set(messages);
        }
    }
}
