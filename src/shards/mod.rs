//! How the intake is divided: into how many shards, and which worker takes which.
//!
//! A port: the ledger's database keeps it, so that all processes of a deployment agree. A shard is a queue of
//! intents, and one of returned intents, that has all orders of its sales. It only steers: that a queue has one
//! consumer at a time is held by the broker, and that nothing is sold twice by the ledger.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most shards of a deployment.
pub const MAX_SHARDS: u16 = 64;

/// Into how many shards the intake is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// Shards that get new orders; 1 stands for the one queue that is not sharded.
    pub shards: u16,
    /// The most there ever were. The queues of the others may hold orders yet.
    pub most: u16,
}

impl Division {
    /// An intake that is not divided, and never was.
    pub const NONE: Self = Self { shards: 1, most: 1 };

    /// The numbers of all shards that may hold orders, and `None` for the queues without a number, which always may.
    pub fn queues(self) -> impl Iterator<Item = Option<u16>> {
        let shards = if self.most > 1 { self.most } else { 0 };
        std::iter::once(None).chain((0..shards).map(Some))
    }

    /// Whether the shard, or the queues without a number, get new orders.
    pub fn uses(self, shard: Option<u16>) -> bool {
        match shard {
            None => self.shards == 1,
            Some(number) => self.shards > 1 && number < self.shards,
        }
    }
}

/// One of a deployment's workers, by an id that begins with the time it was made at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub Uuid);

impl WorkerId {
    /// A new worker.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for WorkerId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The division, and the workers that have shown lately that they run, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Roster {
    pub division: Division,
    pub workers: Vec<WorkerId>,
}

impl Roster {
    /// The shards of a worker: dealt out in turns, so that all workers have the same number, or one more. Also of those
    /// that get no new orders any more.
    pub fn shards_of(&self, worker: WorkerId) -> Vec<u16> {
        let Some(rank) = self.workers.iter().position(|&other| other == worker) else {
            return Vec::new();
        };
        let shards = self.division.queues().flatten();
        shards.filter(|&shard| usize::from(shard) % self.workers.len() == rank).collect()
    }
}

/// Keeps the division and the workers.
#[async_trait]
pub trait ShardMap: Send + Sync {
    /// The division, and the workers that run.
    async fn roster(&self) -> Result<Roster, ShardMapError>;

    /// Divides the intake into `shards` from now on, 1 to [`MAX_SHARDS`].
    async fn divide(&self, shards: u16) -> Result<(), ShardMapError>;

    /// Notes that `worker` runs, and tells what [`roster`](Self::roster) does.
    async fn beat(&self, worker: WorkerId) -> Result<Roster, ShardMapError>;

    /// Notes that `worker` takes no more orders.
    async fn leave(&self, worker: WorkerId) -> Result<(), ShardMapError>;
}

/// Why the division or the workers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ShardMapError {
    /// The database is unavailable for now.
    #[error("shards: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It won't do this however often it is asked.
    #[error("shards: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(shards: u16, most: u16, workers: usize) -> Roster {
        let workers = (0..workers).map(|_| WorkerId::new()).collect();
        Roster { division: Division { shards, most }, workers }
    }

    #[test]
    fn every_queue_has_one_worker_and_no_worker_has_two_more_than_another() {
        for most in [2, 3, 8, 64] {
            for shards in [1, 2, most] {
                for workers in 1..10 {
                    let roster = roster(shards, most, workers);
                    let each: Vec<_> =
                        roster.workers.iter().map(|&w| roster.shards_of(w)).collect();
                    let mut all: Vec<u16> = each.iter().flatten().copied().collect();
                    all.sort_unstable();
                    assert_eq!(all, (0..most).collect::<Vec<_>>());
                    let counts = each.iter().map(Vec::len);
                    assert!(counts.clone().max().unwrap() - counts.min().unwrap() <= 1);
                }
            }
        }
    }

    #[test]
    fn without_shards_and_without_a_place_there_is_nothing_to_take() {
        let one = roster(1, 1, 2);
        assert!(one.shards_of(one.workers[0]).is_empty());
        assert!(roster(4, 4, 2).shards_of(WorkerId::new()).is_empty());
    }
}
