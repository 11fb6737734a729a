//! Events that a subscriber's queue refuses, by routing key.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::retry::Backoff;

/// Routing keys remembered at once. What is forgotten is only tried once more than needed.
const MAX_KEYS: usize = 10_000;

/// Routing keys of which an event was refused. The other subscribers get every event once as it is
/// decided; after that only a probe is published now and then, until one passes, so that a queue that
/// stays full does not send them the same events again and again.
#[derive(Default)]
pub(super) struct Blocked(Mutex<HashMap<String, Block>>);

struct Block {
    probe_at: Instant,
    backoff: Backoff,
}

impl Blocked {
    /// Whether an event that was published before should wait. If it should not because a probe is due,
    /// it is the probe.
    pub(super) fn holds(&self, routing_key: &str) -> bool {
        self.with(|keys| {
            let Some(block) = keys.get_mut(routing_key) else { return false };
            let now = Instant::now();
            if block.probe_at > now {
                return true;
            }
            block.probe_at = now + block.backoff.next_delay();
            false
        })
    }

    /// An event was refused.
    pub(super) fn refused(&self, routing_key: &str) {
        self.with(|keys| {
            if keys.contains_key(routing_key) {
                return;
            }
            let now = Instant::now();
            if keys.len() >= MAX_KEYS {
                keys.retain(|_, block| block.probe_at > now);
            }
            tracing::warn!(
                routing_key,
                "a subscriber's queue is full: its orders wait on delay queues"
            );
            let mut backoff = Backoff::reconnect();
            let probe_at = now + backoff.next_delay();
            keys.insert(routing_key.to_owned(), Block { probe_at, backoff });
        });
    }

    /// An event has passed.
    pub(super) fn passed(&self, routing_key: &str) {
        self.with(|keys| {
            if !keys.is_empty() && keys.remove(routing_key).is_some() {
                tracing::info!(routing_key, "the subscriber's queue takes events again");
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, Block>) -> T) -> T {
        work(&mut self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_event_at_a_time_tries_whether_the_queue_takes_any() {
        let blocked = Blocked::default();
        assert!(!blocked.holds("order.created.s"));
        blocked.refused("order.created.s");
        assert!(blocked.holds("order.created.s") && !blocked.holds("order.created.t"));
        tokio::time::advance(std::time::Duration::from_mins(1)).await;
        assert!(!blocked.holds("order.created.s"), "a probe");
        assert!(blocked.holds("order.created.s"), "while that is on its way");
        blocked.passed("order.created.s");
        assert!(!blocked.holds("order.created.s"));
    }
}
