//! More workers: on one queue, and on shards.

use std::path::PathBuf;

use super::report::{PER_SECOND, Report};
use super::run::{Process, Runner};
use super::{Size, needs_servers};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;

/// How many workers.
const WORKERS: [u32; 4] = [1, 2, 4, 8];
/// Shards, where the intake is divided.
const SHARDS: u16 = 8;
/// Sales that the orders are spread over where it is not one.
const SALES: u32 = 10_000;

pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
) -> anyhow::Result<Report> {
    needs_servers(deployment, "--scale")?;
    let mut report = Report::of_path(deployment, size).await?;
    let (orders, per_message, rounds) = size;
    let mut runner = Runner::new(deployment, config).await?;
    let kinds: Vec<(u32, u16, u32)> = [1, SALES]
        .into_iter()
        .flat_map(|sales| [1, SHARDS].map(|shards| (sales, shards)))
        .flat_map(|(sales, shards)| WORKERS.map(|workers| (sales, shards, workers)))
        .collect();
    let mut measured = vec![Vec::new(); kinds.len()];
    let mut run = 0;
    for round in 0..rounds {
        for ((sales, shards, workers), rates) in kinds.iter().copied().zip(&mut measured) {
            let (round, of) = (round + 1, if shards == 1 { "one queue" } else { "shards" });
            eprintln!("round {round} of {rounds}: {sales} sales, {of}, {workers} workers");
            deployment.app.divide(shards).await?;
            // As producers do for a divided intake: a message has orders of one sale.
            let stock = orders.div_ceil(sales).next_multiple_of(per_message.into());
            let load =
                Load { sales, in_a_row: per_message.into(), stock, ..Load::new(run, orders) };
            run += 1;
            load.open_sales(deployment).await?;
            let process = Process::Workers(workers);
            rates.push(runner.throughput(&load, per_message.into(), process).await?.orders_per_s);
        }
    }
    runner.end().await;
    for ((sales, shards, workers), rates) in kinds.iter().copied().zip(&measured) {
        report.figure(name(sales, shards, workers), PER_SECOND, rates);
    }
    for sales in [1, SALES] {
        let rates = |shards, workers| {
            let at = kinds.iter().position(|kind| *kind == (sales, shards, workers));
            at.map_or(&[][..], |at| &measured[at])
        };
        for workers in WORKERS {
            let what = format!("shards / one queue, {sales} sales, {workers} workers");
            report.ratio(what, rates(SHARDS, workers), rates(1, workers));
        }
    }
    Ok(report)
}

fn name(sales: u32, shards: u16, workers: u32) -> String {
    let queues = if shards == 1 { "one queue".to_owned() } else { format!("{shards} shards") };
    format!("{workers} workers, {queues}, {sales} sales")
}
