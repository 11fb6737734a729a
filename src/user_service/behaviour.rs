//! What a user service is told to do.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::Latency;
use crate::domain::order::UserId;

/// How a user service behaves. By default it answers at once and allows everybody.
///
/// Shares are from 0, none, to 1, all.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// How long an answer takes.
    pub latency: Latency,
    /// The share of calls that fail (503), spread evenly.
    pub failures: f64,
    /// The share of users that are denied. A user is always denied or never, in every process.
    pub denials: f64,
    /// Users that are denied besides.
    pub denied: HashSet<UserId>,
    /// Of what is drawn at random: the same seed draws the same latencies, in the order of calls.
    pub seed: u64,
}

impl Behaviour {
    /// Why the user is denied, or `None`.
    pub(super) fn denies(&self, user: &UserId) -> Option<&'static str> {
        if self.denied.contains(user) {
            return Some("this user is on the list of those who may not buy");
        }
        // XXH3 is the same on every machine; the standard library's hasher may change.
        let fraction = xxh3_64(user.as_str().as_bytes()) as f64 / u64::MAX as f64;
        (fraction < self.denials).then_some("this user is among the share of those who may not buy")
    }
}

/// Picks a share of calls, spread evenly.
#[derive(Debug)]
pub struct EvenShare {
    share: f64,
    calls: AtomicU64,
}

impl EvenShare {
    /// Picks `share` of the calls, from 0, none, to 1, all.
    pub fn new(share: f64) -> Self {
        Self { share, calls: AtomicU64::new(0) }
    }

    /// Whether the next call is picked: the share of the calls so far reaches another whole one
    /// with it.
    pub fn next(&self) -> bool {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        let whole = |calls: u64| (calls as f64 * self.share).floor();
        whole(before + 1) > whole(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: u32) -> UserId {
        UserId::parse(format!("u-{number}")).unwrap()
    }

    #[test]
    fn a_share_is_as_large_as_asked_for_and_spread_evenly() {
        for (share, expected) in [(0.0, 0), (0.02, 20), (0.5, 500), (1.0, 1000)] {
            let calls = EvenShare::new(share);
            let picked: Vec<bool> = (0..1000).map(|_| calls.next()).collect();
            let count = |calls: &[bool]| calls.iter().filter(|&&picked| picked).count();
            assert_eq!(count(&picked), expected);
            assert_eq!(count(&picked[..500]), expected / 2);
        }
    }

    #[test]
    fn a_user_is_denied_always_or_never() {
        let denials = |share| {
            let behaviour = Behaviour { denials: share, ..Behaviour::default() };
            (0..10_000).filter(|&n| behaviour.denies(&user(n)).is_some()).collect::<Vec<u32>>()
        };
        assert_eq!(denials(0.0), Vec::<u32>::new());
        assert_eq!(denials(1.0).len(), 10_000);
        let (tenth, third) = (denials(0.1), denials(0.3));
        assert!((800..1200).contains(&tenth.len()), "{} of 10,000", tenth.len());
        assert!((2700..3300).contains(&third.len()), "{} of 10,000", third.len());
        assert!(tenth.iter().all(|user| third.contains(user)), "a larger share denies more users");
        // The same in every version: who tries something again denies the same users.
        assert_eq!(tenth[..5], [15, 33, 35, 37, 63]);
    }

    #[test]
    fn a_listed_user_is_denied_and_nobody_else() {
        let denied = HashSet::from([user(1)]);
        let behaviour = Behaviour { denied, ..Behaviour::default() };
        assert!(behaviour.denies(&user(1)).is_some_and(|reason| reason.contains("list")));
        assert_eq!(behaviour.denies(&user(2)), None);
    }
}
