//! `floodgate-lab bench`.

mod all;
mod api;
mod beside;
mod buyers;
mod crowd;
mod deep;
mod embedded;
mod hot;

mod path;
mod peers;
mod relay;
mod report;
mod run;
mod scale;
mod verification;

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;

use floodgate::app::App;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::PublishedAs;
use floodgate::cli::output;
pub(super) use peers::PlainWorker;
pub(super) use relay::Relay;
use report::Report;

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  floodgate-lab bench --orders 100000 --batch 32\n  \
    floodgate-lab bench --orders 100000 --batch 32 --event-batches\n  \
    floodgate-lab bench --api --in-flight 64\n  \
    floodgate-lab bench --crowd\n  \
    floodgate-lab bench --hot\n  \
    floodgate-lab bench --verification --workers 4\n\n\
    In each round the queue is filled first, then a worker is started in a separate process, and the \
    time from its first event to its last is taken. The bare relay does the same with one order a \
    message and an event of the same size for each, by the same code for consuming, publishing with \
    confirms and acknowledging, but without Redis and without a ledger. Latency is taken at half of the \
    rate that both can sustain while orders are published. Uses a temporary namespace and database.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Bench {
    /// Measure everything but the checking of users, and write the figures into --file
    #[arg(group = "measured")]
    all: Option<Everything>,
    /// The page that `all` writes to, between its marks
    #[arg(long, default_value = "docs/benchmarks.md", value_name = "FILE")]
    file: PathBuf,
    /// Orders in each round
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    orders: u32,
    /// Intents in one message
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Have events published in batches
    #[arg(long)]
    event_batches: bool,
    /// Rounds; relay and whole path take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Measure the HTTP API instead: orders accepted, against the same messages published without it
    #[arg(long, group = "measured")]
    api: bool,
    /// Orders in flight at the API, on as many connections; several are measured one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 1000], requires = "api", value_parser = clap::value_parser!(u32).range(1..=2000))]
    in_flight: Vec<u32>,
    /// Measure the HTTP API with 50 connections, alone and beside 500 that send one byte a second and 500
    /// that hold a stream open
    #[arg(long, group = "measured")]
    crowd: bool,
    /// Measure the checking of users instead: calls for few units, and a user service that fails
    #[arg(long, group = "measured")]
    verification: bool,
    /// Measure one sale against 10,000, every order granted, and with and without Redis
    #[arg(long, group = "measured")]
    hot: bool,
    /// Measure one, two, four and eight workers, on one queue and on eight shards
    #[arg(long, group = "measured")]
    scale: bool,
    /// Measure the whole path embedded, against the one on servers
    #[arg(long, group = "measured")]
    embedded: bool,
    /// Measure with so many decisions in the ledger already, against one that has 10,000
    #[arg(long, value_name = "DECISIONS", group = "measured", value_parser = clap::value_parser!(i64).range(10_000..=1_000_000_000))]
    deep: Option<i64>,
    /// Measure plain workers on the same servers: one in Rust with a transaction for each order, and one in Python
    /// with an outbox
    #[arg(long, group = "measured")]
    peers: bool,
    /// A Python that has aio_pika and asyncpg
    #[arg(long, default_value = "python3", value_name = "PATH", requires = "peers")]
    python: PathBuf,
    /// Workers that check users
    #[arg(long, default_value_t = 1, requires = "verification", value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// How long the user service is unavailable, in seconds; orders expire after half as much again
    #[arg(long, default_value_t = 10, requires = "verification", value_parser = clap::value_parser!(u32).range(2..=3600))]
    outage_s: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All measurements one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Everything {
    All,
}

/// What a bench has found.
enum Measured {
    Report(Report),
    Verification(Box<verification::Report>),
}

impl Bench {
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<()> {
        if self.all.is_some() {
            return all::run(app, config, &self).await;
        }
        let report = Box::pin(self.measured(app, config)).await?;
        match (&report, self.json) {
            (Measured::Report(report), true) => output::json(&report.json()),
            (Measured::Report(report), false) => report.print(),
            (Measured::Verification(report), true) => output::json(report),
            (Measured::Verification(report), false) => verification::print(report),
        }
    }

    /// Takes a measurement in a temporary deployment.
    async fn measured(&self, app: &App, config: Option<PathBuf>) -> anyhow::Result<Measured> {
        let name = format!("floodgate-bench-{}", std::process::id());
        let mut settings = app.settings().clone();
        if self.event_batches {
            settings.events.publish = PublishedAs::Batch;
        }
        let deployment = TempDeployment::create(&settings, &name).await?;
        let measured = self.measure(&deployment, config).await;
        let removed = deployment.remove().await;
        let report = measured?;
        removed?;
        Ok(report)
    }

    async fn measure(
        &self,
        deployment: &TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Measured> {
        let size = (self.orders, self.batch, self.rounds);
        let (orders, _, rounds) = size;
        Ok(Measured::Report(if self.api {
            let in_flight = (orders, rounds, self.in_flight.as_slice());
            api::measure(deployment, config, in_flight).await?
        } else if self.crowd {
            crowd::measure(deployment, config, (orders, rounds)).await?
        } else if self.hot {
            hot::measure(deployment, config, size).await?
        } else if self.scale {
            scale::measure(deployment, config, size).await?
        } else if self.embedded {
            embedded::measure(deployment, config, size).await?
        } else if let Some(decisions) = self.deep {
            deep::measure(deployment, config, size, decisions).await?
        } else if self.peers {
            peers::measure(deployment, config, size, &self.python).await?
        } else if self.verification {
            let Self { workers, outage_s, .. } = *self;
            let size = verification::Size { orders, rounds, workers, outage_s };
            let report = verification::measure(deployment, config, size).await?;
            return Ok(Measured::Verification(Box::new(report)));
        } else {
            path::measure(deployment, config, size).await?
        }))
    }
}

/// Orders, intents in a message, and rounds.
type Size = (u32, u16, u16);

/// Fails without servers, because `what` is about them.
fn needs_servers(deployment: &TempDeployment, what: &str) -> anyhow::Result<()> {
    ensure!(deployment.mode() != "embedded", "bench {what} needs servers; see: floodgate check");
    Ok(())
}

/// The middle one of `values`, which are not empty.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
