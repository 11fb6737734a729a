//! One sale against many, and what the hints of Redis are worth.

use std::path::PathBuf;

use super::report::{PER_SECOND, Report};
use super::run::{Process, Runner, WORKER};
use super::{Size, needs_servers};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;

/// Sales that the orders are spread over.
const SALES: u32 = 10_000;
/// Loads of one round.
const KINDS: u16 = 5;

pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
) -> anyhow::Result<Report> {
    needs_servers(deployment, "--hot")?;
    let mut report = Report::of_path(deployment, size).await?;
    let (orders, per_message, rounds) = size;
    let mut runner = Runner::new(deployment, config).await?;
    let mut measured: [Vec<f64>; KINDS as usize] = Default::default();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (kind, rates) in (0..KINDS).zip(&mut measured) {
            let half = Load::new(KINDS * round + kind, orders);
            let one = Load { stock: orders, ..half };
            let (load, process) = match kind {
                0 => (one, WORKER),
                1 => {
                    let stock = orders.div_ceil(SALES);
                    (Load { sales: SALES, stock, ..half }, WORKER)
                }
                2 => (one, Process::WithoutRedis),
                3 => (half, WORKER),
                _ => (half, Process::WithoutRedis),
            };
            load.open_sales(deployment).await?;
            rates.push(runner.throughput(&load, per_message.into(), process).await?.orders_per_s);
        }
    }
    runner.end().await;
    let [one, many, one_without, half, half_without] = measured;
    report.figure("one sale, all granted", PER_SECOND, &one);
    report.figure(format!("{SALES} sales, all granted"), PER_SECOND, &many);
    report.figure("one sale, all granted, no Redis", PER_SECOND, &one_without);
    report.figure("one sale, half granted", PER_SECOND, &half);
    report.figure("one sale, half granted, no Redis", PER_SECOND, &half_without);
    report.ratio("one sale / many", &one, &many);
    report.ratio("Redis / none, all granted", &one, &one_without);
    report.ratio("Redis / none, half granted", &half, &half_without);
    Ok(report)
}
