//! `floodgate-lab simulate`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use floodgate::cli::output;
use parking_lot::Mutex;
use serde_json::json;

use crate::simulate::plan::Fault;
use crate::simulate::{Outcome, Reduction, simulate};

/// Failing seeds that are looked at; then it ends.
const ENOUGH: usize = 5;
/// How long to look for what a failing seed needs.
const SHRINK_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate-lab simulate --seeds 200000\n  \
    floodgate-lab simulate --seed 4711 --trace\n\n\
    Needs no servers. Each seed is run in virtual time; a failing one is printed with the fewest steps and faults \
    that it needs. Exits with 1 if anything does not hold.")]
pub(super) struct Simulate {
    /// How many seeds to run
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run this seed only, twice, and compare the traces
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Keep only these steps of its plan
    #[arg(long, requires = "seed", value_delimiter = ',')]
    steps: Option<Vec<usize>>,
    /// Keep only these faults of its plan
    #[arg(long, requires = "seed", value_delimiter = ',', num_args = 0..)]
    faults: Option<Vec<Fault>>,
    /// Print everything that happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Simulate {
    /// Says whether everything holds.
    pub(super) fn run(self) -> anyhow::Result<bool> {
        match self.seed {
            Some(seed) => self.run_one(seed),
            None => self.run_many(),
        }
    }

    fn run_one(self, seed: u64) -> anyhow::Result<bool> {
        let reduction = Reduction { steps: self.steps, faults: self.faults };
        let outcome = simulate(seed, &reduction, self.trace);
        let again = simulate(seed, &reduction, self.trace);
        let is_same = outcome == again;
        if self.trace {
            output::text(&(outcome.lines.join("\n") + "\n"))?;
        }
        let Outcome { trace, events, violations, steps, faults, decided, .. } = outcome;
        if self.json {
            output::json(&json!({
                "seed": seed, "trace": format!("{trace:016x}"), "events": events, "steps": steps,
                "faults": names(&faults), "decided": decided, "violations": violations,
                "same_trace": is_same,
            }))?;
        } else {
            let faults = names(&faults).join(",");
            eprintln!(
                "Seed {seed}: {steps} steps, faults {faults}, {decided} decisions, trace {trace:016x}."
            );
            for violation in &violations {
                output::text(&format!("{violation}\n"))?;
            }
            if !is_same {
                let other = again.lines.iter().zip(&outcome.lines).find(|(a, b)| a != b);
                eprintln!("The same seed gave another trace: {other:?}");
            }
        }
        Ok(violations.is_empty() && is_same)
    }

    fn run_many(self) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let (next, decided) = (AtomicU64::new(self.from), AtomicU64::new(0));
        let end = self.from.saturating_add(self.seeds);
        let failed: Mutex<Vec<(u64, Outcome)>> = Mutex::default();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end || failed.lock().len() >= ENOUGH {
                            return;
                        }
                        let outcome = simulate(seed, &Reduction::default(), false);
                        decided.fetch_add(outcome.decided as u64, Ordering::Relaxed);
                        if !outcome.violations.is_empty() {
                            failed.lock().push((seed, outcome));
                        }
                    }
                });
            }
        });
        let seconds = begun.elapsed().as_secs_f64();
        let mut failed = failed.into_inner();
        failed.sort_by_key(|(seed, _)| *seed);
        let seeds = next.into_inner().min(end) - self.from;
        let found: Vec<_> = failed.iter().map(|(seed, outcome)| shrunk(*seed, outcome)).collect();
        let (decided, per_second) = (decided.into_inner(), seeds as f64 / seconds);
        if self.json {
            output::json(&json!({
                "seeds": seeds, "seconds": seconds, "seeds_per_second": per_second,
                "decided": decided, "failed": found, "commit": commit(),
            }))?;
        } else {
            eprintln!(
                "{seeds} seeds in {seconds:.1} s ({per_second:.0} a second), {decided} decisions."
            );
            for found in &found {
                output::text(&format!("{}\n", found["violation"].as_str().unwrap_or_default()))?;
                output::text(&format!(
                    "    at {}: {}\n",
                    commit(),
                    found["replay"].as_str().unwrap_or_default()
                ))?;
            }
        }
        Ok(found.is_empty())
    }
}

fn names(faults: &[Fault]) -> Vec<String> {
    let name = |fault: &Fault| {
        clap::ValueEnum::to_possible_value(fault).map(|value| value.get_name().to_owned())
    };
    faults.iter().filter_map(name).collect()
}

/// What a failing seed needs to fail in the same way, and the command for it.
fn shrunk(seed: u64, outcome: &Outcome) -> serde_json::Value {
    let kind = |violation: &str| violation.split(':').next().unwrap_or_default().to_owned();
    let first = outcome.violations.first().map(|violation| kind(violation)).unwrap_or_default();
    let begun = Instant::now();
    let fails = |steps: &[usize], faults: &[Fault]| {
        if begun.elapsed() > SHRINK_LIMIT {
            return None;
        }
        let reduction = Reduction { steps: Some(steps.to_vec()), faults: Some(faults.to_vec()) };
        let outcome = simulate(seed, &reduction, false);
        outcome.violations.into_iter().find(|violation| kind(violation) == first)
    };
    let (mut steps, mut faults) = ((0..outcome.steps).collect::<Vec<_>>(), outcome.faults.clone());
    let mut violation = outcome.violations.first().cloned().unwrap_or_default();
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            match fails(&fewer, &faults) {
                Some(found) => (steps, violation) = (fewer, found),
                None => at += size,
            }
        }
        size /= 2;
    }
    for fault in outcome.faults.clone() {
        let fewer: Vec<Fault> = faults.iter().copied().filter(|other| *other != fault).collect();
        if let Some(found) = fails(&steps, &fewer) {
            (faults, violation) = (fewer, found);
        }
    }
    let list: Vec<String> = steps.iter().map(usize::to_string).collect();
    let replay = format!(
        "floodgate-lab simulate --seed {seed} --steps {} --faults {} --trace",
        list.join(","),
        names(&faults).join(",")
    );
    json!({ "seed": seed, "violation": violation, "replay": replay.trim_end() })
}

/// The commit that the program is run in, if it is run in a repository.
fn commit() -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let found = output.ok().filter(|output| output.status.success());
    found.map_or_else(
        || "an unknown commit".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
