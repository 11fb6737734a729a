//! What a comparison has found, as it is saved and read again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Technique;
use super::tally::Counts;

/// The life of the incident's lock, and how long the first article waits for its own.
pub const LOCK: Duration = Duration::from_secs(10);
/// How long the incident's shop waited for the user service.
pub const HTTP: Duration = Duration::from_secs(30);

/// What happens around a sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// The user service answers within 2 ms.
    Fast,
    /// It takes 50 ms.
    Slow,
    /// It hangs for longer than a lock lives, then answers all calls at once; again and again.
    Incident,
    /// A process dies when half of the stock is sold.
    Kill,
    /// A process is added then.
    Added,
    /// Floodgate's API dies then, and is started again.
    KillApi,
}

impl Scenario {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Slow => "slow",
            Self::Incident => "incident",
            Self::Kill => "kill",
            Self::Added => "added",
            Self::KillApi => "kill-api",
        }
    }

    /// What it is, in one line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Fast => "the user service answers in 2 ms",
            Self::Slow => "the user service answers in 50 ms",
            Self::Incident => {
                "user-service calls hang past the lock's lifetime, then all return at once"
            }
            Self::Kill => "kill -9 to one process when half of the stock is sold",
            Self::Added => "one process more when half of the stock is sold",
            Self::KillApi => "kill -9 to the API when half of the stock is sold, then a new one",
        }
    }

    /// Whether `technique` can meet it: a process more matters where the number of processes does, and
    /// only floodgate has an API apart from what sells.
    pub fn applies_to(self, technique: Technique) -> bool {
        match self {
            Self::Added => technique == Technique::ShardedStock,
            Self::KillApi => technique == Technique::Floodgate,
            Self::Fast | Self::Slow | Self::Incident | Self::Kill => true,
        }
    }

    /// Whether somebody has to wait for a lock to expire, so that times are scaled down.
    pub fn is_scaled(self) -> bool {
        !matches!(self, Self::Fast | Self::Slow)
    }
}

/// One sale by one design.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// By what.
    pub design: Technique,
    /// In what surroundings.
    pub scenario: Scenario,
    /// What came out.
    #[serde(flatten)]
    pub counts: Counts,
    /// Calls that the user service got.
    pub user_service_calls: u64,
    /// The longest time that anybody was under the lock, in milliseconds, where there is one.
    pub longest_under_lock_ms: Option<f64>,
    /// The stock left by the design's own counter when all was quiet.
    pub left: Option<i64>,
    /// Units that the counter holds for nobody (positive: neither sold nor left) or has promised twice
    /// (negative).
    pub lost: Option<i64>,
    /// Tries that ended without an answer: the lock was taken, or the process failed or died.
    pub tries_again: u64,
    /// Whether what was to happen in the middle of the sale did. Not if it took too long to sell half.
    pub event_happened: bool,
}

/// The whole comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Units on offer.
    pub stock: u32,
    /// People who want one.
    pub buyers: u32,
    /// How many ask at the same time.
    pub at_once: u32,
    /// Processes of each design.
    pub processes: usize,
    /// Runs of each design in each scenario.
    pub runs: u32,
    /// What the articles' times are multiplied by where they are scaled.
    pub scale: f64,
    /// When buyers give up, in seconds.
    pub limit_s: u64,
    /// The median round trip to Redis through the proxy, in milliseconds.
    pub redis_round_trip_ms: f64,
    /// Designs that were left out, and why.
    pub left_out: Vec<String>,
    /// Every run.
    pub results: Vec<Run>,
}

/// Units that neither were sold nor are left, or less than none. A counter below zero means none left.
pub fn lost(stock: u32, sold: u32, left: i64) -> i64 {
    i64::from(stock) - i64::from(sold) - left.max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_lost_or_promised_twice() {
        assert_eq!(lost(100, 60, 40), 0);
        assert_eq!(lost(100, 60, 39), 1);
        assert_eq!(lost(100, 100, -7), 0);
        assert_eq!(lost(100, 103, -7), -3);
        assert_eq!(lost(100, 80, 60), -40);
    }
}
