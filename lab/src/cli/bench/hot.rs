//! One sale against many, and what the hints of Redis are worth.

use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;

use super::load::Load;
use super::run::{Process, Runner, WORKER};
use super::{median, rates};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::output;

/// Sales that the orders are spread over.
const SALES: u32 = 1000;
/// Loads of one round.
const KINDS: u16 = 5;

/// What was measured: orders per second, one number for each round.
#[derive(Serialize)]
pub(super) struct Report {
    orders: u32,
    intents_per_message: u16,
    sales: u32,
    /// Every order is granted.
    one_sale: Vec<f64>,
    many_sales: Vec<f64>,
    one_sale_without_redis: Vec<f64>,
    /// Half of the orders are granted, the others are sold out.
    half_sold: Vec<f64>,
    half_sold_without_redis: Vec<f64>,
    /// Of the medians.
    one_sale_over_many: f64,
    redis_over_none_when_granted: f64,
    redis_over_none_when_half_sold: f64,
}

pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    (orders, per_message, rounds): (u32, u16, u16),
) -> anyhow::Result<Report> {
    if deployment.mode() == "embedded" {
        bail!("there is no Redis to go without: bench --hot needs servers");
    }
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
    let [one_sale, many_sales, one_sale_without_redis, half_sold, half_sold_without_redis] =
        measured;
    Ok(Report {
        orders,
        intents_per_message: per_message,
        sales: SALES,
        one_sale_over_many: median(&one_sale) / median(&many_sales),
        redis_over_none_when_granted: median(&one_sale) / median(&one_sale_without_redis),
        redis_over_none_when_half_sold: median(&half_sold) / median(&half_sold_without_redis),
        one_sale,
        many_sales,
        one_sale_without_redis,
        half_sold,
        half_sold_without_redis,
    })
}

pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    let ratio = |ratio: f64| format!("{ratio:.2}");
    output::table(
        ["measured", ""],
        [
            ["orders a round".into(), report.orders.to_string()],
            ["intents a message".into(), report.intents_per_message.to_string()],
            ["one sale, all granted".into(), rates(&report.one_sale)],
            [format!("{} sales, all granted", report.sales), rates(&report.many_sales)],
            ["one sale / many".into(), ratio(report.one_sale_over_many)],
            ["all granted, no Redis".into(), rates(&report.one_sale_without_redis)],
            ["Redis / no Redis".into(), ratio(report.redis_over_none_when_granted)],
            ["one sale, half granted".into(), rates(&report.half_sold)],
            ["half granted, no Redis".into(), rates(&report.half_sold_without_redis)],
            ["Redis / no Redis".into(), ratio(report.redis_over_none_when_half_sold)],
        ],
    )
}
