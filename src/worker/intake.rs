//! Intake: what the worker takes up next.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Item};
use super::batcher::Batcher;
use super::decide::Seen;
use super::verify::Verify;
use crate::broker::Delivery;

/// A batch that is not full is taken no sooner than this after the last one, and not while the ledger has one. A
/// batch costs the servers as much as some hundred orders, so many small ones wait for each other: on two cores
/// at 3,000 orders/s the slowest hundredth took 48 ms without this, 39 ms with 5 ms, and 27 ms with 10 ms, while
/// the median stayed at 17 ms.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);

/// What is to be done next.
pub(super) enum Next {
    /// Propose these orders: they have just arrived, or need no more verification.
    Propose(Batch),
    /// Go on: the ledger has seen a batch, and verification was told.
    Seen,
    /// Nothing will come any more.
    End,
}

/// Where the orders come from that are to be proposed.
pub(super) struct Intake<F> {
    pub batcher: Batcher<F>,
    pub verification: Verify,
    /// What the ledger has seen.
    pub seen: mpsc::UnboundedReceiver<Seen>,
    /// Batches that were proposed and that the ledger has not seen yet.
    pub unseen: usize,
    /// When the last batch was taken.
    pub taken_at: Option<Instant>,
    /// The worker takes no more deliveries.
    pub stopping: bool,
    /// Every delivery is taken.
    pub exhausted: bool,
}

impl<F: Fn(Delivery) -> VecDeque<Item>> Intake<F> {
    /// Waits until the ledger has seen a batch, or, if there is room for one more, until there is one to
    /// propose. After `stop` the deliveries in the prefetch window still come, and the orders whose check is
    /// under way. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, has_room: bool, stop: &CancellationToken) -> Next {
        if self.exhausted && self.unseen == 0 && !self.verification.is_working() {
            return Next::End;
        }
        let grown_at = self.grown_at();
        let grows = grown_at > Instant::now();
        let has_room = has_room && !grows && (self.unseen == 0 || self.batcher.is_full());
        tokio::select! {
            biased;
            Some(seen) = self.seen.recv() => {
                self.unseen -= 1;
                self.verification.take(seen);
                if self.exhausted {
                    self.verification.give_up();
                }
            }
            () = stop.cancelled(), if !self.stopping => {
                self.stopping = true;
                self.batcher.stop();
            }
            () = sleep_until(grown_at), if grows => {}
            verified = self.verification.next(), if has_room => return Next::Propose(verified),
            arrived = self.batcher.next(), if has_room && !self.exhausted => {
                if let Some(batch) = arrived {
                    self.taken_at = Some(Instant::now());
                    return Next::Propose(batch);
                }
                self.exhausted = true;
                self.verification.give_up();
            }
        }
        Next::Seen
    }

    /// Until when the next batch is left to grow.
    fn grown_at(&self) -> Instant {
        match self.taken_at {
            Some(at) if !self.batcher.is_full() => at + BATCH_INTERVAL,
            _ => Instant::now(),
        }
    }
}
