//! Other designs for selling limited stock, to compare floodgate with: those of two articles about
//! real oversells, each as small as it was published.
//!
//! - [`designs`] has one file for each technique,
//! - [`shop`] is a process that sells by one of them, and [`store`] what shops share in Redis,
//! - [`outcomes`] counts what came out, [`report`] keeps it, [`chart`] draws it.

pub mod chart;
pub mod designs;
pub mod outcomes;
pub mod report;
pub mod shop;
pub mod store;
mod svg;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A way to sell limited stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Technique {
    /// GET, compare, SET. No lock.
    ReadModifyWrite,
    /// The incident's lock: whoever comes deletes it in the end.
    SetnxPublished,
    /// The incident's lock as its story tells it: who has got it deletes it.
    SetnxAsTold,
    /// The incident's repair: a lock with an owner, and an atomic decrement.
    OwnerTokenLock,
    /// A lock that is waited for by asking again and again.
    PollingLock,
    /// DECRBY, and INCRBY back when it was too much.
    AtomicDecrement,
    /// WATCH, MULTI, EXEC, and again when somebody was faster.
    OptimisticLock,
    /// The incident's critical section under a lock on three servers.
    Redlock,
    /// A share of the stock in each process.
    ShardedStock,
    /// This program.
    Floodgate,
}

/// Where a technique counts the stock left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// In a string of Redis.
    Text,
    /// In a field of a hash of Redis.
    Field,
    /// In the shops' own memory.
    Processes,
    /// In floodgate's ledger.
    Ledger,
}

impl Technique {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 10] = [
        Self::ReadModifyWrite,
        Self::SetnxPublished,
        Self::SetnxAsTold,
        Self::OwnerTokenLock,
        Self::PollingLock,
        Self::AtomicDecrement,
        Self::OptimisticLock,
        Self::Redlock,
        Self::ShardedStock,
        Self::Floodgate,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadModifyWrite => "read-modify-write",
            Self::SetnxPublished => "setnx-published",
            Self::SetnxAsTold => "setnx-as-told",
            Self::OwnerTokenLock => "owner-token-lock",
            Self::PollingLock => "polling-lock",
            Self::AtomicDecrement => "atomic-decrement",
            Self::OptimisticLock => "optimistic-lock",
            Self::Redlock => "redlock",
            Self::ShardedStock => "sharded-stock",
            Self::Floodgate => "floodgate",
        }
    }

    /// What it does, in one line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::ReadModifyWrite => "GET, compare, SET; no lock",
            Self::SetnxPublished => "lock, get and compare; everybody deletes the lock",
            Self::SetnxAsTold => "the same, but only who got the lock deletes it",
            Self::OwnerTokenLock => "lock deleted by its owner only; HINCRBY decides",
            Self::PollingLock => "lock polled for; GET, compare, DECRBY in it",
            Self::AtomicDecrement => "DECRBY, and INCRBY back when negative",
            Self::OptimisticLock => "WATCH, GET, MULTI, DECRBY, EXEC, with retries",
            Self::Redlock => "lock on three servers; get and compare in it",
            Self::ShardedStock => "a share of the stock in each process's memory",
            Self::Floodgate => "the whole path: API, queue, workers, ledger",
        }
    }

    /// Where it counts the stock left.
    pub fn counter(self) -> Counter {
        match self {
            Self::ReadModifyWrite
            | Self::PollingLock
            | Self::AtomicDecrement
            | Self::OptimisticLock => Counter::Text,
            Self::SetnxPublished | Self::SetnxAsTold | Self::OwnerTokenLock | Self::Redlock => {
                Counter::Field
            }
            Self::ShardedStock => Counter::Processes,
            Self::Floodgate => Counter::Ledger,
        }
    }
}

impl fmt::Display for Technique {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// No technique has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("accepted: {}", Technique::ALL.map(Technique::name).join(", "))]
pub struct UnknownTechnique;

impl FromStr for Technique {
    type Err = UnknownTechnique;

    fn from_str(text: &str) -> Result<Self, UnknownTechnique> {
        Self::ALL.into_iter().find(|technique| technique.name() == text).ok_or(UnknownTechnique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for technique in Technique::ALL {
            assert_eq!(technique.name().parse(), Ok(technique));
            assert_eq!(serde_json::to_value(technique).unwrap(), technique.name());
        }
        let error = "mutex".parse::<Technique>().unwrap_err().to_string();
        assert!(error.starts_with("accepted: read-modify-write, setnx-published"), "{error}");
    }
}
