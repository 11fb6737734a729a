//! Waiting longer after each failure. The only file that knows the library for it.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

thread_local! {
    static JITTER: RefCell<StdRng> =
        RefCell::new(StdRng::seed_from_u64(RandomState::new().hash_one(0)));
}

/// Has the delays of this thread follow from `seed`, for a simulation.
pub fn seed(seed: u64) {
    JITTER.set(StdRng::seed_from_u64(seed));
}

/// Delays that grow from one failure to the next, with jitter, so that many workers don't come
/// back all at once.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

impl Backoff {
    /// For a server that is unavailable: 100 ms at first, 2 s at most, for as long as it takes. So it is used again at most
    /// 3 s after it is back.
    pub fn reconnect() -> Self {
        Self::within(Duration::from_millis(100), Duration::from_secs(2))
    }

    /// For a step of an order's path that failed: 20 ms at first, 2 s at most.
    pub fn step() -> Self {
        Self::within(Duration::from_millis(20), Duration::from_secs(2))
    }

    /// For an endpoint that accepts nothing: 1 s at first, 1 min at most.
    pub fn endpoint() -> Self {
        Self::within(Duration::from_secs(1), Duration::from_mins(1))
    }

    fn within(first: Duration, longest: Duration) -> Self {
        Self(ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            max_interval: longest,
            multiplier: 2.0,
            randomization_factor: 0.0,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        })
    }

    /// How long to wait now.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.0.next_backoff().unwrap_or(self.0.max_interval);
        delay.mul_f64(JITTER.with_borrow_mut(|jitter| jitter.random_range(0.5..1.5)))
    }

    /// Starts again from the shortest delay.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// `delay`, or up to a tenth more or less.
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(JITTER.with_borrow_mut(|jitter| jitter.random_range(0.9..1.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_follow_from_a_seed() {
        let delays = || {
            let mut backoff = Backoff::step();
            (0..5).map(|_| backoff.next_delay()).collect::<Vec<_>>()
        };
        seed(7);
        let first = delays();
        assert_ne!(delays(), first);
        seed(7);
        assert_eq!(delays(), first);
    }

    #[test]
    fn delays_grow_to_a_bound_and_never_end() {
        let mut backoff = Backoff::step();
        let delays: Vec<_> = (0..100).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= Duration::from_millis(30));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(3)));
        assert!(delays[50..].iter().all(|delay| *delay >= Duration::from_secs(1)));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(30));
    }
}
