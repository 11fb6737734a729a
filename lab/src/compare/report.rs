//! What a comparison has found, as it is saved and read again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Technique;
use super::outcomes::Counts;

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
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 6] =
        [Self::Fast, Self::Slow, Self::Incident, Self::Kill, Self::Added, Self::KillApi];

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
            Self::Incident => "user-service calls outlive the lock, then all return at once",
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

/// The runs of one design in one scenario, together. Figures without another word are medians.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// By what.
    pub design: Technique,
    /// In what surroundings.
    pub scenario: Scenario,
    /// How often.
    pub runs: usize,
    /// In how many of them more was sold than there was.
    pub runs_oversold: usize,
    /// In how many of them what was to happen in the middle of the sale did.
    pub events_happened: usize,
    /// Units oversold in each run, fewest first.
    pub oversold: Vec<u32>,
    /// Units sold.
    pub sold: u32,
    /// Units left although somebody wanted them.
    pub undersold: u32,
    /// See [`Counts::told_wrong`].
    pub told_wrong: u32,
    /// See [`Counts::sold_out_too_early`].
    pub sold_out_too_early: u32,
    /// Buyers without an answer at the time limit.
    pub unserved: u32,
    /// Orders of buyers who had one already.
    pub second_orders: u32,
    /// Calls that the user service got.
    pub user_service_calls: u64,
    /// Buyers answered a second.
    pub answers_per_s: f64,
    /// Orders created a second, until the last one.
    pub orders_per_s: f64,
    /// See [`Counts::p50_ms`].
    pub p50_ms: f64,
    /// See [`Counts::p99_ms`].
    pub p99_ms: f64,
    /// The longest time under the lock in any run, in milliseconds.
    pub longest_under_lock_ms: Option<f64>,
    /// See [`Run::left`].
    pub left: Option<i64>,
    /// See [`Run::lost`].
    pub lost: Option<i64>,
}

impl Summary {
    /// Of `runs`, which are all of the same; `None` if there are none.
    fn of(runs: &[Run]) -> Option<Self> {
        let first = runs.first()?;
        let all = |of: fn(&Run) -> f64| median(runs.iter().map(of), f64::total_cmp);
        let units = |of: fn(&Run) -> u32| median(runs.iter().map(of), u32::cmp);
        let mut oversold: Vec<u32> = runs.iter().map(|run| run.counts.oversold).collect();
        oversold.sort_unstable();
        Some(Self {
            design: first.design,
            scenario: first.scenario,
            runs: runs.len(),
            runs_oversold: oversold.iter().filter(|&&units| units > 0).count(),
            events_happened: runs.iter().filter(|run| run.event_happened).count(),
            oversold,
            sold: units(|run| run.counts.sold)?,
            undersold: units(|run| run.counts.undersold)?,
            told_wrong: units(|run| run.counts.told_wrong)?,
            sold_out_too_early: units(|run| run.counts.sold_out_too_early)?,
            unserved: units(|run| run.counts.unserved)?,
            second_orders: units(|run| run.counts.second_orders)?,
            user_service_calls: median(runs.iter().map(|run| run.user_service_calls), u64::cmp)?,
            answers_per_s: all(|run| run.counts.answers_per_s)?,
            orders_per_s: all(|run| run.counts.orders_per_s)?,
            p50_ms: all(|run| run.counts.p50_ms)?,
            p99_ms: all(|run| run.counts.p99_ms)?,
            longest_under_lock_ms: runs
                .iter()
                .filter_map(|run| run.longest_under_lock_ms)
                .max_by(f64::total_cmp),
            left: median(runs.iter().filter_map(|run| run.left), i64::cmp),
            lost: median(runs.iter().filter_map(|run| run.lost), i64::cmp),
        })
    }

    /// The median of the units oversold.
    pub fn median_oversold(&self) -> u32 {
        median(self.oversold.iter().copied(), u32::cmp).unwrap_or(0)
    }

    /// The most units that any run oversold.
    pub fn most_oversold(&self) -> u32 {
        self.oversold.last().copied().unwrap_or(0)
    }
}

/// The middle one of `values`, the lower of two.
fn median<T: Copy>(
    values: impl Iterator<Item = T>,
    order: impl FnMut(&T, &T) -> std::cmp::Ordering,
) -> Option<T> {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_by(order);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

/// What was the same for all runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Units on offer.
    pub stock: u32,
    /// People who want one.
    pub buyers: u32,
    /// How many ask at the same time.
    pub at_once: u32,
    /// Processes of each design.
    pub processes: u32,
    /// What the articles' times are multiplied by where they are scaled.
    pub scale: f64,
    /// When buyers give up, in seconds.
    pub limit_s: u64,
}

/// The whole comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What was the same for all runs.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// The median round trip to Redis through the proxy, in milliseconds.
    pub redis_round_trip_ms: f64,
    /// Designs that were left out, and why.
    pub left_out: Vec<String>,
    /// The runs of each design in each scenario, together.
    pub summaries: Vec<Summary>,
    /// Every run.
    pub results: Vec<Run>,
}

/// Two reports are of different things.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the files are of sales with other stock, buyers, processes, limits or scales")]
pub struct OtherConditions;

impl Report {
    /// A report of `results`.
    pub fn new(
        conditions: Conditions,
        redis_round_trip_ms: f64,
        left_out: Vec<String>,
        results: Vec<Run>,
    ) -> Self {
        let mut report =
            Self { conditions, redis_round_trip_ms, left_out, summaries: Vec::new(), results };
        report.summarise();
        report
    }

    /// Takes over the runs of `other`.
    pub fn add(&mut self, other: Self) -> Result<(), OtherConditions> {
        if self.conditions != other.conditions {
            return Err(OtherConditions);
        }
        self.left_out.extend(other.left_out);
        self.left_out.dedup();
        self.results.extend(other.results);
        self.summarise();
        Ok(())
    }

    fn summarise(&mut self) {
        self.results.sort_by_key(|run| (run.scenario, run.design));
        let same =
            |one: &Run, other: &Run| (one.scenario, one.design) == (other.scenario, other.design);
        let groups = self.results.chunk_by(same);
        self.summaries = groups.filter_map(Summary::of).collect();
    }

    /// The summaries of one scenario, in the order of designs.
    pub fn of(&self, scenario: Scenario) -> impl Iterator<Item = &Summary> {
        self.summaries.iter().filter(move |summary| summary.scenario == scenario)
    }
}

/// Units that neither were sold nor are left, or less than none. A counter below zero means none left.
pub fn lost(stock: u32, sold: u32, left: i64) -> i64 {
    i64::from(stock) - i64::from(sold) - left.max(0)
}

/// Four runs of a lock and one of floodgate, for tests.
#[cfg(test)]
pub(super) fn sample() -> Report {
    let (lock, other) = (Technique::SetnxAsTold, Technique::Floodgate);
    let runs = [(lock, 3), (other, 0), (lock, 0), (lock, 1), (lock, 7)];
    sample_of(100, runs.map(|(design, oversold)| sample_run(design, oversold)).to_vec())
}

#[cfg(test)]
fn sample_run(design: Technique, oversold: u32) -> Run {
    Run {
        design,
        scenario: Scenario::Incident,
        counts: Counts {
            sold: 100 + oversold,
            oversold,
            undersold: 0,
            told_wrong: oversold,
            sold_out_too_early: 0,
            second_orders: 0,
            unserved: 0,
            answers_per_s: f64::from(oversold),
            orders_per_s: 1.0,
            p50_ms: 1.0,
            p99_ms: 1.0,
        },
        user_service_calls: 1,
        longest_under_lock_ms: (oversold > 0).then_some(f64::from(oversold)),
        left: Some(0),
        lost: Some(0),
        tries_again: 0,
        event_happened: false,
    }
}

#[cfg(test)]
fn sample_of(stock: u32, results: Vec<Run>) -> Report {
    let conditions =
        Conditions { stock, buyers: 1000, at_once: 10, processes: 4, scale: 0.025, limit_s: 10 };
    Report::new(conditions, 1.0, Vec::new(), results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_the_same_are_summarised_together() {
        let mut report = sample();
        let summaries: Vec<&Summary> = report.of(Scenario::Incident).collect();
        assert_eq!(summaries.len(), 2);
        assert_eq!((summaries[0].runs, summaries[0].runs_oversold), (4, 3));
        assert_eq!(summaries[0].oversold, [0, 1, 3, 7]);
        assert_eq!((summaries[0].told_wrong, summaries[0].most_oversold()), (1, 7));
        assert_eq!(summaries[0].longest_under_lock_ms, Some(7.0));
        let floodgate = (Technique::Floodgate, None);
        assert_eq!((summaries[1].design, summaries[1].longest_under_lock_ms), floodgate);
        assert_eq!(report.of(Scenario::Fast).count(), 0);
        report.add(report.clone()).unwrap();
        assert_eq!(report.summaries[0].runs, 8);
    }

    #[test]
    fn a_saved_report_is_read_again_and_others_are_not_mixed_in() {
        let mut one = sample_of(100, vec![sample_run(Technique::Redlock, 2)]);
        let saved = serde_json::to_string(&one).unwrap();
        let read: Report = serde_json::from_str(&saved).unwrap();
        assert_eq!(read.summaries, one.summaries);
        assert_eq!(one.add(sample_of(99, Vec::new())), Err(OtherConditions));
    }

    #[test]
    fn units_are_lost_or_promised_twice() {
        assert_eq!(lost(100, 60, 40), 0);
        assert_eq!(lost(100, 60, 39), 1);
        assert_eq!(lost(100, 100, -7), 0);
        assert_eq!(lost(100, 103, -7), -3);
        assert_eq!(lost(100, 80, 60), -40);
    }
}
