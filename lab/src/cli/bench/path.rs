//! The whole path against a bare relay.

use std::path::PathBuf;

use super::Size;
use super::report::{PER_SECOND, Report};
use super::run::{Latency, Process, Runner, Throughput, WORKER};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;

/// Runs of one round: throughput and latency, of the relay and of the whole path.
const RUNS: u16 = 4;

/// Measures, the two taking turns. Latency is taken at half of the rate that both can sustain, by their
/// throughput in the same round.
pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
) -> anyhow::Result<Report> {
    let mut report = Report::of_path(deployment, size).await?;
    let (orders, per_message, rounds) = size;
    let mut runner = Runner::new(deployment, config).await?;
    let (mut relay, mut whole, mut peak) = (Vec::new(), Vec::new(), Vec::new());
    let (mut of_relay, mut of_path) = (Latencies::default(), Latencies::default());
    let mut sales = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let load = |run| Load::new(RUNS * round + run, orders);
        let relayed = runner.throughput(&load(0), 1, Process::Relay).await?;
        load(1).open_sales(deployment).await?;
        let Throughput { orders_per_s, sustained_per_s, peak_bytes } =
            runner.throughput(&load(1), per_message.into(), WORKER).await?;
        relay.push(relayed.orders_per_s);
        whole.push(orders_per_s);
        peak.push(peak_bytes as f64 / f64::from(1 << 20));
        sales.push(load(1).sale_id());
        let rate = sustained_per_s.min(relayed.sustained_per_s) / 2.0;
        of_relay.add(runner.latency(&load(2), 1, Process::Relay, rate).await?);
        load(3).open_sales(deployment).await?;
        of_path.add(runner.latency(&load(3), per_message.into(), WORKER, rate).await?);
    }
    runner.end().await;
    report.figure("bare relay", PER_SECOND, &relay);
    report.figure("whole path", PER_SECOND, &whole);
    report.figure("relay, publish to event, p50", "ms", &of_relay.p50);
    report.figure("whole path, publish to event, p50", "ms", &of_path.p50);
    report.figure("relay, publish to event, p99", "ms", &of_relay.p99);
    report.figure("whole path, publish to event, p99", "ms", &of_path.p99);
    report.figure("at a rate of", "a second", &of_path.rate);
    report.figure("worker's peak memory", "MiB", &peak);
    if let Some((bytes, deducted)) = deployment.redis_usage(&sales).await? {
        let each = bytes as f64 / deducted.max(1) as f64;
        report.figure("Redis, a deducted order", "bytes", &[each]);
        let each = bytes as f64 / f64::from(orders) / f64::from(rounds);
        report.figure("Redis, a decision", "bytes", &[each]);
    }
    let (bytes, decisions) = deployment.ledger_bytes().await?;
    report.figure("ledger, a decision", "bytes", &[bytes as f64 / decisions as f64]);
    report.ratio("whole path / relay", &whole, &relay);
    report.ratio("whole path's p99 / relay's p99", &of_path.p99, &of_relay.p99);
    Ok(report)
}

/// Of all rounds.
#[derive(Default)]
struct Latencies {
    p50: Vec<f64>,
    p99: Vec<f64>,
    rate: Vec<f64>,
}

impl Latencies {
    fn add(&mut self, Latency { p50_ms, p99_ms, at_orders_per_s }: Latency) {
        self.p50.push(p50_ms);
        self.p99.push(p99_ms);
        self.rate.push(at_orders_per_s);
    }
}
