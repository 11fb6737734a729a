//! Counts of what a worker has done, for its log.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::decide::ORDER_ID_CONFLICT;
use crate::domain::decision::{Decision, Outcome, Reason};

/// Counts since the worker started.
#[derive(Debug, Default)]
pub(super) struct WorkerMetrics {
    created: AtomicU64,
    sold_out: AtomicU64,
    rejected: AtomicU64,
    expired: AtomicU64,
    repeats: AtomicU64,
    conflicts: AtomicU64,
    dead_letters: AtomicU64,
    deferred: AtomicU64,
    unrouted: AtomicU64,
}

impl WorkerMetrics {
    pub(super) fn decided(&self, decision: &Decision, repeat: bool) {
        let count = match decision.outcome {
            _ if repeat => &self.repeats,
            Outcome::Created => &self.created,
            Outcome::SoldOut => &self.sold_out,
            Outcome::Rejected(Reason::Expired) => &self.expired,
            Outcome::Rejected(_) => &self.rejected,
        };
        count.fetch_add(1, Relaxed);
    }

    pub(super) fn dead_lettered(&self, reason: &str) {
        let count = if reason == ORDER_ID_CONFLICT { &self.conflicts } else { &self.dead_letters };
        count.fetch_add(1, Relaxed);
    }

    pub(super) fn deferred(&self, orders: usize) {
        self.deferred.fetch_add(orders as u64, Relaxed);
    }

    pub(super) fn unrouted(&self, events: usize) {
        self.unrouted.fetch_add(events as u64, Relaxed);
    }

    /// Everything taken care of: a number that moves while there is work.
    pub(super) fn total(&self) -> u64 {
        [
            &self.created,
            &self.sold_out,
            &self.rejected,
            &self.expired,
            &self.repeats,
            &self.conflicts,
            &self.dead_letters,
            &self.deferred,
        ]
        .iter()
        .map(|count| count.load(Relaxed))
        .sum()
    }

    pub(super) fn log(&self, what: &str, dropped_replies: u64) {
        tracing::info!(
            created = self.created.load(Relaxed),
            sold_out = self.sold_out.load(Relaxed),
            rejected = self.rejected.load(Relaxed),
            expired = self.expired.load(Relaxed),
            repeats = self.repeats.load(Relaxed),
            conflicts = self.conflicts.load(Relaxed),
            dead_letters = self.dead_letters.load(Relaxed),
            deferred = self.deferred.load(Relaxed),
            events_without_subscriber = self.unrouted.load(Relaxed),
            dropped_replies,
            "{what}"
        );
    }
}
