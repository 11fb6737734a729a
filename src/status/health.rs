//! Whether a worker moves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A worker is stuck when it has unsettled deliveries, all servers answer, and nothing is done with for so long. The
/// longest step, a transaction that is repeated, takes seconds.
const STUCK_AFTER: Duration = Duration::from_mins(1);

/// Whether a worker moves, for the probes of orchestrators.
#[derive(Debug, Default)]
pub struct WorkerHealth {
    is_consuming: AtomicBool,
    seen: Mutex<Option<Seen>>,
}

/// What was last seen to change.
#[derive(Debug)]
struct Seen {
    done: u64,
    at: Instant,
}

impl WorkerHealth {
    /// The worker takes orders, or does not.
    pub fn set_consuming(&self, is_consuming: bool) {
        self.is_consuming.store(is_consuming, Ordering::Relaxed);
    }

    /// Whether it takes orders.
    pub fn is_consuming(&self) -> bool {
        self.is_consuming.load(Ordering::Relaxed)
    }

    /// To be called each second: so many orders are `done`, and it `could` do more, because there are some and all
    /// servers answer.
    pub fn note(&self, done: u64, could: bool) {
        let mut seen = self.seen.lock();
        if !could || seen.as_ref().is_none_or(|seen| seen.done != done) {
            *seen = Some(Seen { done, at: Instant::now() });
        }
    }

    /// Whether it could do something and has done nothing for long.
    pub fn is_stuck(&self) -> bool {
        self.seen.lock().as_ref().is_some_and(|seen| seen.at.elapsed() >= STUCK_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_stuck_when_it_could_do_something_and_does_not() {
        let health = WorkerHealth::default();
        assert!(!health.is_stuck(), "nothing is known yet");
        let minute = async |could| {
            for _ in 0..60 {
                tokio::time::advance(Duration::from_secs(1)).await;
                health.note(7, could);
            }
        };
        minute(false).await;
        assert!(!health.is_stuck(), "it has nothing to do, or a server is unavailable");
        minute(true).await;
        assert!(health.is_stuck());
        health.note(8, true);
        assert!(!health.is_stuck());
    }
}
