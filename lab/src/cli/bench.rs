//! `floodgate-lab bench`.

mod api;
mod beside;
mod buyers;
mod crowd;
mod hot;
mod load;
mod path;
mod relay;
mod run;
mod verification;

use std::path::PathBuf;

use clap::Args;

use floodgate::app::App;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::PublishedAs;
use floodgate::cli::output;
pub(super) use relay::Relay;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate-lab bench --orders 100000 --batch 32\n  \
    floodgate-lab bench --api --connections 64\n  \
    floodgate-lab bench --crowd\n  \
    floodgate-lab bench --hot\n  \
    floodgate-lab bench --verification --workers 4\n\n\
    In each round the queue is filled first, then a worker is started in a separate process, and the \
    time from its first event to its last is taken. The bare relay does the same with one order a \
    message and an event of the same size for each, by the same code for consuming, publishing with \
    confirms and acknowledging, but without Redis and without a ledger. Latency is taken at half the \
    rate the whole path has reached. Uses a temporary namespace and database.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Bench {
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
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Measure the HTTP API instead: orders accepted, against the same messages published without it
    #[arg(long, conflicts_with = "batch")]
    api: bool,
    /// Connections that post orders to the API
    #[arg(long, default_value_t = 64, requires = "api", value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,
    /// Measure the HTTP API with 50 connections, alone and beside 500 that send one byte a second and 500
    /// that hold a stream open
    #[arg(long, conflicts_with_all = ["batch", "api"])]
    crowd: bool,
    /// Measure the checking of users instead: calls for few units, and a user service that fails
    #[arg(long, conflicts_with_all = ["batch", "api", "crowd"])]
    verification: bool,
    /// Measure one sale against 1,000, every order granted, and with and without Redis
    #[arg(long, conflicts_with_all = ["api", "crowd", "verification"])]
    hot: bool,
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

/// What either bench has found.
enum Measured {
    Path(path::Report),
    Api(api::Report),
    Crowd(crowd::Report),
    Verification(Box<verification::Report>),
    Hot(hot::Report),
}

impl Bench {
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<()> {
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
        match (&report, self.json) {
            (Measured::Path(report), true) => output::json(report),
            (Measured::Path(report), false) => path::print(report),
            (Measured::Api(report), true) => output::json(report),
            (Measured::Api(report), false) => api::print(report),
            (Measured::Crowd(report), true) => output::json(report),
            (Measured::Crowd(report), false) => crowd::print(report),
            (Measured::Verification(report), true) => output::json(report),
            (Measured::Verification(report), false) => verification::print(report),
            (Measured::Hot(report), true) => output::json(report),
            (Measured::Hot(report), false) => hot::print(report),
        }
    }

    async fn measure(
        &self,
        deployment: &TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Measured> {
        Ok(if self.api {
            let size = (self.orders, self.rounds, self.connections);
            Measured::Api(api::measure(deployment, config, size).await?)
        } else if self.crowd {
            let size = (self.orders, self.rounds);
            Measured::Crowd(crowd::measure(deployment, config, size).await?)
        } else if self.verification {
            let Self { orders, rounds, workers, outage_s, .. } = *self;
            let size = verification::Size { orders, rounds, workers, outage_s };
            Measured::Verification(Box::new(verification::measure(deployment, config, size).await?))
        } else if self.hot {
            let size = (self.orders, self.batch, self.rounds);
            Measured::Hot(hot::measure(deployment, config, size).await?)
        } else {
            let size = (self.orders, self.batch, self.rounds);
            Measured::Path(path::measure(deployment, config, size).await?)
        })
    }
}

/// The middle one of `values`, which are not empty.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn rates(rates: &[f64]) -> String {
    let each: Vec<String> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
    format!("{:.0} orders/s (rounds: {})", median(rates), each.join(", "))
}
