//! `floodgate-lab chaos`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use floodgate::app::App;
use floodgate::cli::output;

use crate::chaos::plan::{Episode, Ground, episodes};
use crate::chaos::run::{Options, Report, run};

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  floodgate-lab chaos --minutes 10 --seed 1 --control scripts/services\n\n\
    scripts/chaos starts servers for it. The same seed makes the same faults at about the same times. Uses a temporary \
    namespace and database. Exit code 1: a promise was broken."
)]
pub(super) struct Chaos {
    /// Minutes of faults
    #[arg(long, default_value_t = 10.0, value_name = "MINUTES", value_parser = minutes)]
    minutes: f64,
    /// Draws the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Orders posted each second, half of them over HTTP
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    rate: u32,
    /// Worker processes, beside one whose clock is set wrong at times
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// What the servers are
    #[arg(long, value_enum, default_value = "services")]
    servers: Ground,
    /// The program that kills, freezes and starts the servers
    #[arg(long, default_value = "scripts/services", value_name = "PROGRAM")]
    control: PathBuf,
    /// Print the faults, and make none
    #[arg(long)]
    plan: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Minutes, up to a week.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes| (0.1..=10_080.0).contains(minutes));
    minutes.ok_or_else(|| "accepted: 0.1 to 10080".to_owned())
}

impl Chaos {
    /// Whether every promise was kept.
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<bool> {
        let length = Duration::from_secs_f64(self.minutes * 60.0);
        if self.plan {
            self.print_plan(length)?;
            return Ok(true);
        }
        let options = Options {
            seed: self.seed,
            length,
            rate: self.rate,
            workers: self.workers,
            ground: self.servers,
            control: self.control.clone(),
        };
        let report = run(app, config, &options).await?;
        if self.json {
            output::json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(report.verdict.is_good())
    }

    /// The faults of a run, as far as they would come if each were over when it should be.
    fn print_plan(&self, length: Duration) -> anyhow::Result<()> {
        let mut left = length;
        let begin = |episode: &Episode| {
            let acts = episode.acts.iter().map(|act| act.after_ms + act.lasts_ms);
            let all = Duration::from_millis(episode.rest_ms + acts.max().unwrap_or(0));
            let begins = left;
            left = left.saturating_sub(all);
            !begins.is_zero()
        };
        let planned: Vec<Episode> = episodes(self.seed, self.servers).take_while(begin).collect();
        if self.json {
            return output::json(&planned);
        }
        let rows = planned.iter().flat_map(|episode| {
            episode.acts.iter().map(|act| {
                [
                    act.fault.name(),
                    act.which.to_string(),
                    format!("{} ms", act.after_ms),
                    format!("{} ms", act.lasts_ms),
                ]
            })
        });
        output::table(["fault", "which", "after", "lasts"], rows)
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    let rows = report.kinds.iter().map(|(fault, kind)| {
        [fault.name(), kind.faults.to_string(), format!("{:.1} s", kind.longest_stall_s)]
    });
    output::table(["fault", "count", "longest stall"], rows)?;
    let verdict = &report.verdict;
    let rows = [
        ("seed", report.seed.to_string()),
        ("minutes", format!("{:.1}", report.minutes)),
        ("faults", report.faults.to_string()),
        ("accepted", verdict.accepted.to_string()),
        ("decided", verdict.decided.to_string()),
        ("lost", verdict.lost.to_string()),
        ("doubled", verdict.doubled.to_string()),
        ("oversold", verdict.oversold.to_string()),
        ("wrongly refused", verdict.wrongly_refused.to_string()),
        ("leaked", verdict.leaked.to_string()),
        ("discrepancies", verdict.discrepancies.to_string()),
        ("decided a second without faults", format!("{:.0}", report.unfaulted_rate)),
        ("decided a second with faults", format!("{:.0}", report.faulted_rate)),
        ("processes that ended by themselves", report.restarts.to_string()),
        ("most memory of a worker", format!("{:.1} MiB", report.worker_peak_mib)),
    ];
    output::table(["", ""], rows.map(|(name, value)| [name.to_owned(), value]))
}
