//! What the HTTP API costs: orders accepted over HTTP, against the same messages published without
//! it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use tokio::task::JoinSet;

use super::load::{CHUNK, Load};
use super::median;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::client::ApiClient;
use floodgate::cli::output;
use floodgate::cli::server::Server;

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// What was measured.
#[derive(Serialize)]
pub(super) struct Report {
    mode: &'static str,
    orders: u32,
    connections: u32,
    /// Orders per second, one number for each round.
    published_per_s: Vec<f64>,
    /// The same with no more messages at once than the API has connections.
    published_with_window_per_s: Vec<f64>,
    /// Orders that get their id from the server.
    accepted_per_s: Vec<f64>,
    /// Orders with an id of the client's, which the API looks up first.
    accepted_with_id_per_s: Vec<f64>,
    /// Accepted (without an id) over published, of the medians.
    ratio: f64,
    ratio_with_window: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Measures, the two taking turns.
pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    (orders, rounds, connections): (u32, u16, u32),
) -> anyhow::Result<Report> {
    let broker = deployment.app.broker().await?;
    let server = Server::api(deployment, config).await?;
    let (mut published, mut windowed) = (Vec::new(), Vec::new());
    let (mut accepted, mut with_id, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (way, in_flight, rates) in
            [(0, CHUNK, &mut published), (1, connections as usize, &mut windowed)]
        {
            let load = Load::new(4 * round + way, orders);
            let begun = Instant::now();
            load.publish(broker.as_ref(), 1, in_flight).await?;
            rates.push(f64::from(orders) / begun.elapsed().as_secs_f64());
        }
        for (way, has_id, rates) in [(2, false, &mut accepted), (3, true, &mut with_id)] {
            let load = Load::new(4 * round + way, orders);
            load.open_sales(deployment).await?;
            let begun = Instant::now();
            let took = post(Arc::new(load), server.address(), connections, has_id).await?;
            rates.push(f64::from(orders) / begun.elapsed().as_secs_f64());
            if !has_id {
                waits.extend(took);
            }
        }
    }
    server.stop().await?;
    waits.sort_unstable();
    let at = |percent: usize| waits[(waits.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    Ok(Report {
        mode: deployment.mode(),
        orders,
        connections,
        ratio: median(&accepted) / median(&published),
        ratio_with_window: median(&accepted) / median(&windowed),
        published_per_s: published,
        published_with_window_per_s: windowed,
        accepted_per_s: accepted,
        accepted_with_id_per_s: with_id,
        p50_ms: at(50),
        p99_ms: at(99),
    })
}

/// Posts every order of `load`, over so many connections. Returns how long each took.
pub(super) async fn post(
    load: Arc<Load>,
    address: SocketAddr,
    connections: u32,
    with_id: bool,
) -> anyhow::Result<Vec<Duration>> {
    let next = Arc::new(AtomicU32::new(0));
    let mut posting = JoinSet::new();
    for _ in 0..connections {
        let (load, next) = (load.clone(), next.clone());
        posting.spawn(async move {
            let client = ApiClient::new(address, REQUEST_LIMIT)?;
            let (sale, mut waits) = (load.sale_id(), Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.orders {
                    return Ok::<_, anyhow::Error>(waits);
                }
                let body = load.request(number, with_id);
                let begun = Instant::now();
                let answer = client.post_order(&sale, &body, None, None).await?;
                waits.push(begun.elapsed());
                if answer.status != 202 {
                    let text = String::from_utf8_lossy(&answer.body);
                    bail!("unexpected answer {}: {text}", answer.status);
                }
            }
        });
    }
    let mut waits = Vec::with_capacity(load.orders as usize);
    while let Some(some) = posting.join_next().await {
        waits.extend(some??);
    }
    Ok(waits)
}

pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    let rates = super::rates;
    output::table(
        ["measured", ""],
        [
            ["mode".into(), report.mode.to_owned()],
            ["orders a round".into(), report.orders.to_string()],
            ["published without HTTP".into(), rates(&report.published_per_s)],
            [
                format!("the same, {} at once", report.connections),
                rates(&report.published_with_window_per_s),
            ],
            [
                format!("accepted, {} connections", report.connections),
                rates(&report.accepted_per_s),
            ],
            ["the same, clients' order ids".into(), rates(&report.accepted_with_id_per_s)],
            [
                "accepted / published".into(),
                format!(
                    "{:.2}; {:.2} of those {} at once",
                    report.ratio, report.ratio_with_window, report.connections
                ),
            ],
            [
                "an order took".into(),
                format!("p50 {:.1} ms, p99 {:.1} ms", report.p50_ms, report.p99_ms),
            ],
        ],
    )
}
