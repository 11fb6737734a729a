//! What the HTTP API costs: orders accepted over HTTP, against the same messages published without
//! it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation};
use secrecy::ExposeSecret;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::report::{PER_SECOND, Report};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::Message;
use floodgate::broker::topology::Topology;
use floodgate::cli::server::Server;

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Runs of one round.
const RUNS: u16 = 3;

/// Measures, the ways taking turns, for each of several numbers of orders in flight.
pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    (orders, rounds, in_flight): (u32, u16, &[u32]),
) -> anyhow::Result<Report> {
    let mut report = Report::of(deployment).await?;
    report.about("orders", orders);
    let server = Server::api(deployment, config).await?;
    let mut run = 0;
    let mut ratios = Vec::new();
    for &connections in in_flight {
        // Fewer at once take longer.
        let orders = (orders * connections.min(64) / 64).max(500);
        let (mut published, mut accepted, mut with_id) = (Vec::new(), Vec::new(), Vec::new());
        let (mut p50, mut p99) = (Vec::new(), Vec::new());
        let (mut client, mut api) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{connections} in flight: round {} of {rounds}", round + 1);
            let load = |way| Load::new(run + way, orders);
            let begun = Instant::now();
            publish(deployment, load(0), connections).await?;
            published.push(f64::from(orders) / begun.elapsed().as_secs_f64());
            for (way, has_id, rates) in [(1, false, &mut accepted), (2, true, &mut with_id)] {
                load(way).open_sales(deployment).await?;
                let before = (cpu_s(std::process::id())?, cpu_s(server.id()?)?);
                let load = Arc::new(load(way));
                let (rate, mut waits) = post(load, server.address(), connections, has_id).await?;
                rates.push(rate);
                if !has_id {
                    waits.sort_unstable();
                    let at = |percent: usize| waits[(waits.len() - 1) * percent / 100];
                    p50.push(at(50).as_secs_f64() * 1e3);
                    p99.push(at(99).as_secs_f64() * 1e3);
                    let cost = |s: f64| s * 1e6 / f64::from(orders);
                    client.push(cost(cpu_s(std::process::id())? - before.0));
                    api.push(cost(cpu_s(server.id()?)? - before.1));
                }
            }
            run += RUNS;
        }
        let at = format!(", {connections} in flight");
        report.figure(format!("confirmed without HTTP{at}"), PER_SECOND, &published);
        report.figure(format!("accepted{at}"), PER_SECOND, &accepted);
        report.figure(format!("the same, clients' ids{at}"), PER_SECOND, &with_id);
        report.figure(format!("an order took, p50{at}"), "ms", &p50);
        report.figure(format!("an order took, p99{at}"), "ms", &p99);
        report.figure(format!("CPU of the client, an order{at}"), "us", &client);
        report.figure(format!("CPU of the API, an order{at}"), "us", &api);
        ratios.push((connections, accepted, published));
    }
    server.stop().await?;
    // The one that most clients resemble is what the bench is about.
    ratios.sort_by_key(|(connections, ..)| connections.abs_diff(64));
    for (connections, accepted, published) in ratios {
        report.ratio(
            format!("accepted / confirmed, {connections} in flight"),
            &accepted,
            &published,
        );
    }
    Ok(report)
}

/// Publishes every order as a message, with so many unconfirmed at any time.
async fn publish(deployment: &TempDeployment, load: Load, in_flight: u32) -> anyhow::Result<()> {
    let settings = deployment.app.settings();
    let sale = load.sale_id();
    let mut unconfirmed = FuturesUnordered::new();
    if settings.is_embedded() {
        let broker = deployment.app.broker().await?;
        for number in 0..load.orders {
            let (broker, sale, body) =
                (broker.clone(), sale.clone(), load.body(number, number + 1));
            unconfirmed.push(tokio::spawn(async move {
                broker.publish(&[Message::intent(sale.as_str(), &body)]).await.all()
            }));
            if unconfirmed.len() >= in_flight as usize {
                unconfirmed.next().await.context("one is on its way")???;
            }
        }
        while let Some(confirmed) = unconfirmed.next().await {
            confirmed??;
        }
        return Ok(());
    }
    let url = settings.amqp_url.expose_secret();
    let connection =
        lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let exchange = Topology::new(&settings.namespace).intents_exchange();
    let mut unconfirmed = FuturesUnordered::new();
    for number in 0..load.orders {
        let body = load.body(number, number + 1);
        let publishing = channel.basic_publish(
            exchange.as_str().into(),
            sale.as_str().into(),
            BasicPublishOptions { mandatory: true, ..Default::default() },
            &body,
            BasicProperties::default().with_delivery_mode(2),
        );
        unconfirmed.push(publishing.await?);
        if unconfirmed.len() >= in_flight as usize {
            confirmed(&unconfirmed.next().await.context("one is on its way")??)?;
        }
    }
    while let Some(confirmation) = unconfirmed.next().await {
        confirmed(&confirmation?)?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

fn confirmed(confirmation: &Confirmation) -> anyhow::Result<()> {
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "not confirmed: {confirmation:?}");
    Ok(())
}

/// Posts every order of `load`, over so many connections that are open already. Returns the orders a second, and
/// how long each took.
pub(super) async fn post(
    load: Arc<Load>,
    address: SocketAddr,
    connections: u32,
    with_id: bool,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(address, load.sale_id().as_str()).await?);
    }
    let begun = Instant::now();
    let next = Arc::new(AtomicU32::new(0));
    let mut posting = JoinSet::new();
    for mut client in clients {
        let (load, next) = (load.clone(), next.clone());
        posting.spawn(async move {
            let mut waits = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= load.orders {
                    return Ok::<_, anyhow::Error>(waits);
                }
                let begun = Instant::now();
                client.post(load.request(number, with_id)).await?;
                waits.push(begun.elapsed());
            }
        });
    }
    let mut waits = Vec::with_capacity(load.orders as usize);
    while let Some(some) = posting.join_next().await {
        waits.extend(some??);
    }
    Ok((f64::from(load.orders) / begun.elapsed().as_secs_f64(), waits))
}

/// A client with one connection, as cheap as a client can be: what it costs is taken from the server.
struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    path: String,
    host: String,
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    async fn connect(address: SocketAddr, sale: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(Self {
            sender,
            path: format!("/v1/sales/{sale}/orders"),
            host: address.to_string(),
            _connection: AbortOnDropHandle::new(connection),
        })
    }

    /// Posts an order, and fails unless it is accepted.
    async fn post(&mut self, body: Vec<u8>) -> anyhow::Result<()> {
        let request = Request::post(self.path.as_str())
            .header("host", self.host.as_str())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let asking = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            Ok::<_, hyper::Error>((answer.status(), answer.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(REQUEST_LIMIT, asking).await??;
        if status != 202 {
            bail!("unexpected answer {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(())
    }
}

/// CPU time that a process has used, in seconds (fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms).
fn cpu_s(process: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/*/stat")?;
    let ticks =
        |at: usize| fields.split_whitespace().nth(at).and_then(|ticks| ticks.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("no times in /proc/*/stat")?;
    Ok((user + system) / 100.0)
}
