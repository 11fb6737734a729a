//! `floodgate-lab compare`.

mod intake;
mod rush;
mod sale;
mod servers;
mod shops;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use secrecy::ExposeSecret;

use crate::compare::Technique;
use crate::compare::chart;
use crate::compare::outcomes;
use crate::compare::report::{Conditions, Report, Run, Scenario};
use crate::compare::store::{self, Store};
use floodgate::app::App;
use floodgate::cli::output;
use floodgate::config::Server;
use floodgate::shutdown;
use floodgate_fault_proxy::{FaultProxy, Faults};
use sale::Stage;
use servers::RedisServer;
pub(super) use shops::ShopArgs;

/// How long every message between a process and Redis takes, one way: about a millisecond there and back.
const ONE_WAY: Duration = Duration::from_micros(400);

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Compare {
    /// What happens around the sale
    #[arg(long, value_enum, default_value_t = Choice::All)]
    scenario: Choice,
    /// A design to compare; give it again for more of them. All, if left out
    #[arg(long = "design", value_name = "NAME")]
    designs: Vec<Technique>,
    /// Sales by each design in each scenario
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Units on offer
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    stock: u32,
    /// People who want one
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    buyers: u32,
    /// Buyers who ask at the same moment
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=2000))]
    at_once: u32,
    /// Processes of each design: shops, or workers of floodgate
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: u32,
    /// When buyers give up, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit_s: u64,
    /// What the articles' times are multiplied by where somebody waits for a lock to expire, 0.01 to 1
    #[arg(long, default_value_t = 0.025, value_parser = scale)]
    scale: f64,
    /// Draw a chart of the incident and the slow user service, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Measure nothing: show runs that were saved with --json. Give it again to put files together
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "scenario", "designs", "runs", "stock", "buyers", "at_once", "processes", "limit_s", "scale",
    ])]
    from: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "Examples:\n  floodgate-lab compare\n  \
    floodgate-lab compare --scenario incident --runs 20 --json > incident.json\n  \
    floodgate-lab compare --from incident.json --chart incident.svg\n\n\
    Sells the same stock to the same buyers by each design, on the configured Redis, with the same \
    user service. Each design runs in several processes, about a millisecond away from Redis; \
    floodgate with its API, queue, workers and ledger, in a temporary namespace and database. The \
    designs are those of two articles about real oversells, with the names of their techniques, and do \
    what the published code does. Leaves nothing behind.";

/// Scenarios as they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// The user service answers in 2 ms
    Fast,
    /// It takes 50 ms
    Slow,
    /// Its calls hang past the lock's lifetime, then all return at once
    Incident,
    /// One process dies when half is sold; for some designs also: one is added, the API dies
    Kill,
    /// Each of them
    All,
}

impl Choice {
    fn can_be_drawn(self) -> bool {
        [Scenario::Slow, Scenario::Incident].iter().any(|drawn| self.scenarios().contains(drawn))
    }

    fn scenarios(self) -> &'static [Scenario] {
        match self {
            Self::Fast => &Scenario::ALL[..1],
            Self::Slow => &Scenario::ALL[1..2],
            Self::Incident => &Scenario::ALL[2..3],
            Self::Kill => &Scenario::ALL[3..],
            Self::All => &Scenario::ALL,
        }
    }
}

/// Saved reports as one.
fn put_together(first: &Path, more: &[PathBuf]) -> anyhow::Result<Report> {
    let mut report = read(first)?;
    for file in more {
        report.add(read(file)?).with_context(|| file.display().to_string())?;
    }
    Ok(report)
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let name = || file.display().to_string();
    let bytes = std::fs::read(file).with_context(name)?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no report of compare --json", file.display()))
}

fn scale(text: &str) -> Result<f64, String> {
    let scale = text.parse().ok().filter(|scale| (0.01..=1.0).contains(scale));
    scale.ok_or_else(|| "accepted: a number from 0.01 to 1".to_owned())
}

impl Compare {
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        if self.chart.is_some() && self.from.is_empty() && !self.scenario.can_be_drawn() {
            eprintln!("floodgate: --chart needs --scenario incident, slow or all");
            return Ok(ExitCode::from(2));
        }
        let report = match self.from.split_first() {
            Some((first, more)) => put_together(first, more)?,
            None => Box::pin(self.measure(app, config)).await?,
        };
        if self.json {
            output::json(&report)?;
        } else {
            table::print(&report)?;
        }
        if let Some(file) = &self.chart {
            let drawing = chart::draw(&report)?;
            std::fs::write(file, drawing).with_context(|| file.display().to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn measure(&self, app: &App, config: Option<PathBuf>) -> anyhow::Result<Report> {
        let settings = app.settings().clone();
        settings.require(&[Server::Amqp, Server::Redis, Server::Database])?;
        let interrupted = shutdown::on_signal()?;
        let name = format!("floodgate-compare-{}", std::process::id());
        let url = settings.redis_url.expose_secret();
        let server = store::address(url).context(
            "compare puts a proxy before Redis, so it needs one without TLS: FLOODGATE_REDIS_URL is to \
             begin with redis://",
        )?;
        let proxy = far_from(server).await?;
        let redis_url = store::through(url, proxy.address()).context("FLOODGATE_REDIS_URL")?;
        let mut designs = self.designs();
        let others = Others::start(&name, &mut designs).await?;
        // The keys' hash tag keeps them in one slot, and so on one server, of a cluster.
        let prefix = format!("{name}:{{sale}}");
        let redis = "Redis (FLOODGATE_REDIS_URL)";
        let through = Store::connect(&redis_url, &prefix).await.context(redis)?;
        let redis_round_trip_ms = outcomes::millis(through.round_trip().await?);
        let store = Store::connect(url, &prefix).await.context(redis)?;
        let stage = Stage {
            settings,
            config,
            redis_url,
            other_urls: Arc::new(others.urls.clone()),
            store: &store,
            prefix,
            conditions: Conditions {
                stock: self.stock,
                buyers: self.buyers,
                at_once: self.at_once,
                processes: self.processes,
                limit_s: self.limit_s,
                scale: self.scale,
            },
            interrupted,
        };
        let sold = Box::pin(self.sell_all(&stage, &designs, &name)).await;
        store.remove().await?;
        Ok(Report::new(stage.conditions, redis_round_trip_ms, others.left_out, sold?))
    }

    /// Those asked for, in the order in which they are told.
    fn designs(&self) -> Vec<Technique> {
        let asked = |design: &Technique| self.designs.is_empty() || self.designs.contains(design);
        Technique::ALL.into_iter().filter(asked).collect()
    }

    async fn sell_all(
        &self,
        stage: &Stage<'_>,
        designs: &[Technique],
        name: &str,
    ) -> anyhow::Result<Vec<Run>> {
        let mut results = Vec::new();
        for &scenario in self.scenario.scenarios() {
            for run in 1..=self.runs {
                for &design in designs.iter().filter(|&&design| scenario.applies_to(design)) {
                    let bar = ProgressBar::new(self.buyers.into());
                    let what = format!("{} {run}/{}, {design}", scenario.name(), self.runs);
                    bar.set_style(ProgressStyle::with_template("{msg:36} {wide_bar} {pos}/{len}")?);
                    bar.set_message(what.clone());
                    let name = format!("{name}-{}", results.len());
                    let result = stage.sell(design, scenario, (&name, run), bar.clone()).await;
                    bar.finish_and_clear();
                    results.push(result.with_context(|| what)?);
                }
            }
        }
        Ok(results)
    }
}

/// The other servers of Redlock, each behind a proxy of its own.
struct Others {
    urls: Vec<String>,
    left_out: Vec<String>,
    /// What the URLs lead to, for as long as they do.
    behind: Vec<(RedisServer, FaultProxy)>,
}

impl Others {
    /// Starts them if `designs` need them. Takes Redlock out where they can't be had.
    async fn start(name: &str, designs: &mut Vec<Technique>) -> anyhow::Result<Self> {
        let mut others = Self { urls: Vec::new(), left_out: Vec::new(), behind: Vec::new() };
        for number in 1..=2 {
            if !designs.contains(&Technique::Redlock) {
                break;
            }
            let Some(server) = RedisServer::start(&format!("{name}-redis-{number}")).await? else {
                designs.retain(|&design| design != Technique::Redlock);
                others.left_out.push(format!(
                    "{}: it needs two more Redis servers, and there is no redis-server in the PATH",
                    Technique::Redlock
                ));
                break;
            };
            let proxy = far_from(server.address().to_owned()).await?;
            others.urls.push(format!("redis://{}/", proxy.address()));
            others.behind.push((server, proxy));
        }
        Ok(others)
    }
}

/// Something that is as far from `server` as another machine.
async fn far_from(server: String) -> std::io::Result<FaultProxy> {
    let proxy = FaultProxy::start(server).await?;
    proxy.set(Faults::delay(ONE_WAY));
    Ok(proxy)
}
