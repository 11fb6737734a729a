//! `floodgate-lab bench`.

mod api;
mod beside;
mod buyers;
mod crowd;
mod hot;
mod load;
mod relay;
mod run;
mod verification;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use floodgate::app::App;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::output;
use load::Load;
pub(super) use relay::Relay;
use run::{Latency, Process, Runner};

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

/// What was measured.
#[derive(Serialize)]
struct Report {
    orders: u32,
    intents_per_message: u16,
    /// Orders per second, one number for each round.
    relay_orders_per_s: Vec<f64>,
    whole_path_orders_per_s: Vec<f64>,
    /// Whole path over relay, of the medians.
    ratio: f64,
    latency: Latency,
    worker_peak_bytes: u64,
    /// Of Redis's memory, for each order that it has deducted for, and for each decision; embedded there
    /// is no Redis.
    redis_bytes_per_deducted_order: Option<f64>,
    redis_bytes_per_decision: Option<f64>,
    ledger_bytes_per_decision: f64,
}

/// What either bench has found.
enum Measured {
    Path(Report),
    Api(api::Report),
    Crowd(crowd::Report),
    Verification(Box<verification::Report>),
    Hot(hot::Report),
}

impl Bench {
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<()> {
        let name = format!("floodgate-bench-{}", std::process::id());
        let deployment = TempDeployment::create(app.settings(), &name).await?;
        let measured = self.measure(&deployment, config).await;
        let removed = deployment.remove().await;
        let report = measured?;
        removed?;
        match (&report, self.json) {
            (Measured::Path(report), true) => output::json(report),
            (Measured::Path(report), false) => print(report),
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
            Measured::Path(self.measure_path(deployment, config).await?)
        })
    }

    async fn measure_path(
        &self,
        deployment: &TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Report> {
        let mut runner = Runner::new(deployment, config).await?;
        let (mut relay, mut whole, mut peak) = (Vec::new(), Vec::new(), 0);
        let mut sales = Vec::new();
        for round in 0..self.rounds {
            eprintln!("round {} of {}", round + 1, self.rounds);
            let load = Load::new(2 * round, self.orders);
            relay.push(runner.throughput(&load, 1, Process::Relay).await?.0);
            let load = Load::new(2 * round + 1, self.orders);
            load.open_sales(deployment).await?;
            let (rate, bytes) =
                runner.throughput(&load, self.batch.into(), Process::Worker).await?;
            whole.push(rate);
            peak = peak.max(bytes);
            sales.push(load.sale_id());
        }
        let ratio = median(&whole) / median(&relay);
        let redis = deployment.redis_usage(&sales).await?;
        let (bytes, decisions) = deployment.ledger_bytes().await?;
        let last = Load::new(2 * self.rounds, self.orders);
        last.open_sales(deployment).await?;
        let latency = runner.latency(&last, self.batch.into(), median(&whole) / 2.0).await?;
        runner.end().await;
        Ok(Report {
            orders: self.orders,
            intents_per_message: self.batch,
            relay_orders_per_s: relay,
            whole_path_orders_per_s: whole,
            ratio,
            latency,
            worker_peak_bytes: peak,
            redis_bytes_per_deducted_order: redis
                .map(|(bytes, orders)| bytes as f64 / orders.max(1) as f64),
            redis_bytes_per_decision: redis.map(|(bytes, _)| bytes as f64 / decisions as f64),
            ledger_bytes_per_decision: bytes as f64 / decisions as f64,
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

fn bytes(size: Option<f64>) -> String {
    size.map_or("-".into(), |size| format!("{size:.0} bytes"))
}

fn print(report: &Report) -> anyhow::Result<()> {
    let mib = report.worker_peak_bytes as f64 / f64::from(1 << 20);
    let Latency { p50_ms, p99_ms, at_orders_per_s } = report.latency;
    output::table(
        ["measured", ""],
        [
            ["orders a round".into(), report.orders.to_string()],
            ["intents a message".into(), report.intents_per_message.to_string()],
            ["bare relay".into(), rates(&report.relay_orders_per_s)],
            ["whole path".into(), rates(&report.whole_path_orders_per_s)],
            ["whole path / relay".into(), format!("{:.2}", report.ratio)],
            [
                "publish to event".into(),
                format!("p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms at {at_orders_per_s:.0} orders/s"),
            ],
            ["worker peak memory".into(), format!("{mib:.1} MiB")],
            ["Redis a deducted order".into(), bytes(report.redis_bytes_per_deducted_order)],
            ["Redis a decision".into(), bytes(report.redis_bytes_per_decision)],
            ["ledger a decision".into(), format!("{:.0} bytes", report.ledger_bytes_per_decision)],
        ],
    )
}
