//! Deliveries that are not settled yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

/// Deliveries that were taken and are not settled, each with the time that it counts from.
#[derive(Debug, Clone, Default)]
pub struct Unsettled(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    /// Of the next delivery.
    number: u64,
    since: BTreeMap<u64, DateTime<Utc>>,
    settled: u64,
    /// Orders on delay queues: by the second until when they wait there, the earliest time that one counts from.
    deferred: BTreeMap<i64, DateTime<Utc>>,
}

/// A delivery counts as unsettled until this is dropped.
#[derive(Debug)]
pub struct UnsettledGuard {
    number: u64,
    unsettled: Unsettled,
}

impl Unsettled {
    /// A delivery was taken, which counts from `since`.
    pub fn take(&self, since: DateTime<Utc>) -> UnsettledGuard {
        let mut taken = self.0.lock();
        let number = taken.number;
        taken.number += 1;
        taken.since.insert(number, since);
        UnsettledGuard { number, unsettled: self.clone() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.lock().since.len()
    }

    /// How many were settled.
    pub fn settled(&self) -> u64 {
        self.0.lock().settled
    }

    /// An order that counts from `since` waits on a delay queue until about `until`.
    pub fn defer(&self, since: DateTime<Utc>, until: DateTime<Utc>) {
        let mut taken = self.0.lock();
        let oldest = taken.deferred.entry(until.timestamp()).or_insert(since);
        *oldest = since.min(*oldest);
    }

    /// The earliest time that one counts from, or an order that waits on a delay queue at `now`.
    pub fn oldest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut taken = self.0.lock();
        taken.deferred.retain(|until, _| *until > now.timestamp());
        taken.since.values().chain(taken.deferred.values()).min().copied()
    }
}

impl UnsettledGuard {
    /// It counts from `time`, if that is earlier.
    pub fn is_since(&self, time: DateTime<Utc>) {
        if let Some(since) = self.unsettled.0.lock().since.get_mut(&self.number) {
            *since = time.min(*since);
        }
    }
}

impl Drop for UnsettledGuard {
    fn drop(&mut self) {
        let mut taken = self.unsettled.0.lock();
        taken.since.remove(&self.number);
        taken.settled += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_of_those_that_are_not_settled() {
        let unsettled = Unsettled::default();
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        let (first, second) = (unsettled.take(at(5)), unsettled.take(at(3)));
        assert_eq!((unsettled.count(), unsettled.oldest(at(10))), (2, Some(at(3))));
        drop(second);
        assert_eq!((unsettled.count(), unsettled.oldest(at(10))), (1, Some(at(5))));
        first.is_since(at(2));
        first.is_since(at(9));
        assert_eq!(unsettled.oldest(at(10)), Some(at(2)));
        drop(first);
        assert_eq!((unsettled.count(), unsettled.oldest(at(10))), (0, None));
        for since in [4, 1, 7] {
            unsettled.defer(at(since), at(15));
        }
        assert_eq!((unsettled.count(), unsettled.oldest(at(14))), (0, Some(at(1))));
        assert_eq!(unsettled.oldest(at(15)), None);
    }
}
