//! The whole path against a bare relay.

use std::path::PathBuf;

use serde::Serialize;

use super::load::Load;
use super::run::{Latency, Process, Runner, Throughput, WORKER};
use super::{median, rates};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::output;

/// What was measured.
#[derive(Serialize)]
pub(super) struct Report {
    orders: u32,
    intents_per_message: u16,
    /// `single` or `batch`.
    events: &'static str,
    /// Orders per second, one number for each round.
    relay_orders_per_s: Vec<f64>,
    whole_path_orders_per_s: Vec<f64>,
    /// Whole path over relay, of the medians.
    ratio: f64,
    /// One for each round, at half of the lower rate of the two in that round.
    relay_latency: Vec<Latency>,
    latency: Vec<Latency>,
    /// Whole path over relay, of the medians of the 99th percentiles.
    p99_ratio: f64,
    worker_peak_bytes: u64,
    /// Of Redis's memory, for each order that it has deducted for, and for each decision; embedded there
    /// is no Redis.
    redis_bytes_per_deducted_order: Option<f64>,
    redis_bytes_per_decision: Option<f64>,
    ledger_bytes_per_decision: f64,
}

/// Runs of one round: throughput and latency, of the relay and of the whole path.
const RUNS: u16 = 4;

pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    (orders, per_message, rounds): (u32, u16, u16),
) -> anyhow::Result<Report> {
    let mut runner = Runner::new(deployment, config).await?;
    let (mut relay, mut whole, mut worker_peak_bytes) = (Vec::new(), Vec::new(), 0);
    let (mut relay_latency, mut latency) = (Vec::new(), Vec::new());
    let mut sales = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let load = |run| Load::new(RUNS * round + run, orders);
        relay.push(runner.throughput(&load(0), 1, Process::Relay).await?.orders_per_s);
        load(1).open_sales(deployment).await?;
        let Throughput { orders_per_s, peak_bytes } =
            runner.throughput(&load(1), per_message.into(), WORKER).await?;
        whole.push(orders_per_s);
        worker_peak_bytes = worker_peak_bytes.max(peak_bytes);
        sales.push(load(1).sale_id());
        let rate = orders_per_s.min(relay[usize::from(round)]) / 2.0;
        relay_latency.push(runner.latency(&load(2), 1, Process::Relay, rate).await?);
        load(3).open_sales(deployment).await?;
        latency.push(runner.latency(&load(3), per_message.into(), WORKER, rate).await?);
    }
    runner.end().await;
    let redis = deployment.redis_usage(&sales).await?;
    let (bytes, decisions) = deployment.ledger_bytes().await?;
    Ok(Report {
        orders,
        intents_per_message: per_message,
        events: deployment.app.settings().events.publish.name(),
        ratio: median(&whole) / median(&relay),
        p99_ratio: p99(&latency) / p99(&relay_latency),
        relay_orders_per_s: relay,
        whole_path_orders_per_s: whole,
        relay_latency,
        latency,
        worker_peak_bytes,
        redis_bytes_per_deducted_order: redis
            .map(|(bytes, orders)| bytes as f64 / orders.max(1) as f64),
        redis_bytes_per_decision: redis
            .map(|(bytes, _)| bytes as f64 / f64::from(orders) / f64::from(rounds)),
        ledger_bytes_per_decision: bytes as f64 / decisions as f64,
    })
}

fn p99(latencies: &[Latency]) -> f64 {
    median(&latencies.iter().map(|latency| latency.p99_ms).collect::<Vec<_>>())
}

fn waits(latencies: &[Latency]) -> String {
    let of = |which: fn(&Latency) -> f64| median(&latencies.iter().map(which).collect::<Vec<_>>());
    let (p50, p99) = (of(|latency| latency.p50_ms), of(|latency| latency.p99_ms));
    let rate = of(|latency| latency.at_orders_per_s);
    format!("p50 {p50:.1} ms, p99 {p99:.1} ms at {rate:.0} orders/s")
}

fn bytes(size: Option<f64>) -> String {
    size.map_or("-".into(), |size| format!("{size:.0} bytes"))
}

pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    let mib = report.worker_peak_bytes as f64 / f64::from(1 << 20);
    output::table(
        ["measured", ""],
        [
            ["orders a round".into(), report.orders.to_string()],
            ["intents a message".into(), report.intents_per_message.to_string()],
            ["events".into(), report.events.into()],
            ["bare relay".into(), rates(&report.relay_orders_per_s)],
            ["whole path".into(), rates(&report.whole_path_orders_per_s)],
            ["whole path / relay".into(), format!("{:.2}", report.ratio)],
            ["relay, publish to event".into(), waits(&report.relay_latency)],
            ["whole path, publish to event".into(), waits(&report.latency)],
            ["p99 / relay's p99".into(), format!("{:.2}", report.p99_ratio)],
            ["worker peak memory".into(), format!("{mib:.1} MiB")],
            ["Redis a deducted order".into(), bytes(report.redis_bytes_per_deducted_order)],
            ["Redis a decision".into(), bytes(report.redis_bytes_per_decision)],
            ["ledger a decision".into(), format!("{:.0} bytes", report.ledger_bytes_per_decision)],
        ],
    )
}
