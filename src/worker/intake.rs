//! Intake: what the worker takes up next.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Item};
use super::batcher::Batcher;
use super::decide::Seen;
use super::verify::Verify;
use crate::broker::Delivery;

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
    /// The worker takes no more deliveries.
    pub stopping: bool,
    /// Every delivery is taken.
    pub exhausted: bool,
}

impl<F: Fn(Delivery) -> VecDeque<Item>> Intake<F> {
    /// Waits until the ledger has seen a batch, or, if there is room for one more, until there is one to
    /// propose. While the ledger has a batch, the next one is left to grow until it is full: a batch costs the ledger
    /// as much as some hundred orders, and smaller ones would only wait for it. After `stop` the deliveries in the prefetch window still come, and the orders whose check
    /// is under way. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, has_room: bool, stop: &CancellationToken) -> Next {
        if self.exhausted && self.unseen == 0 && !self.verification.is_working() {
            return Next::End;
        }
        let has_room = has_room && (self.unseen == 0 || self.batcher.is_full());
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
            verified = self.verification.next(), if has_room => return Next::Propose(verified),
            arrived = self.batcher.next(), if has_room && !self.exhausted => {
                if let Some(batch) = arrived {
                    return Next::Propose(batch);
                }
                self.exhausted = true;
                self.verification.give_up();
            }
        }
        Next::Seen
    }
}
