//! Workers to compare with on the same servers, with the same guarantees: one decision for each order, no oversell,
//! and every event at least once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::report::{PER_SECOND, Report};
use super::run::{Process, Runner, WORKER};
use super::{Size, needs_servers};
use crate::cli::load::Load;
use floodgate::app::App;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::topology::Topology;
use floodgate::broker::{Broker, Delivery, Message, Queue};
use floodgate::domain::event::Event;
use floodgate::shutdown;

/// Orders decided at the same time, on as many connections.
const AT_ONCE: u32 = 16;
const PREFETCH: u16 = 1000;
/// Runs of one round.
const RUNS: u16 = 3;

const TABLES: &str = "
    create table peer_sales (sale_id text primary key, stock int not null, sold int not null default 0,
        check (sold between 0 and stock));
    create table peer_orders (sale_id text, order_id text, user_id text not null, quantity int not null,
        outcome text not null, decided_at timestamptz not null default clock_timestamp(),
        primary key (sale_id, order_id));
    create table peer_outbox (id bigint generated always as identity primary key,
        routing_key text not null, body text not null)";

/// A worker to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// In Rust: a transaction for each order, its event published with a confirm, then the acknowledgement.
    Plain,
    /// In Python, with aio-pika and an outbox in the database; see `lab/peers/outbox.py`.
    Outbox,
}

pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    (orders, per_message, rounds): Size,
    python: &Path,
) -> anyhow::Result<Report> {
    needs_servers(deployment, "--peers")?;
    let has_python = Command::new(python)
        .args(["-c", "import aio_pika, asyncpg"])
        .output()
        .await
        .is_ok_and(|output| output.status.success());
    if !has_python {
        bail!(
            "{} has no aio_pika and asyncpg; make one that has: python3 -m venv peers && \
             peers/bin/pip install aio-pika asyncpg, and give --python peers/bin/python",
            python.display()
        );
    }
    let mut report = Report::of(deployment).await?;
    report.about("orders", orders);
    report.about("intents a message for floodgate", per_message);
    report.about("its events", deployment.app.settings().events.publish.name());
    let pool = pool(&deployment.app).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;
    let mut runner = Runner::new(deployment, config).await?.with_python(python);
    let (mut floodgate, mut plain, mut outbox) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let load = Load::new(RUNS * round, orders);
        load.open_sales(deployment).await?;
        floodgate.push(runner.throughput(&load, per_message.into(), WORKER).await?.orders_per_s);
        for (run, peer, rates) in [(1, Peer::Plain, &mut plain), (2, Peer::Outbox, &mut outbox)] {
            // They take longer for fewer.
            let load = Load::new(RUNS * round + run, orders / 10);
            sqlx::query("insert into peer_sales (sale_id, stock) values ($1, $2)")
                .bind(load.sale_id().as_str())
                .bind(i32::try_from(load.stock)?)
                .execute(&pool)
                .await?;
            rates.push(runner.throughput(&load, 1, Process::Peer(peer)).await?.orders_per_s);
        }
    }
    runner.end().await;
    report.figure("floodgate, one worker", PER_SECOND, &floodgate);
    report.figure("a transaction an order, Rust", PER_SECOND, &plain);
    report.figure("transactional outbox, Python", PER_SECOND, &outbox);
    report.ratio("floodgate / a transaction an order", &floodgate, &plain);
    report.ratio("floodgate / transactional outbox", &floodgate, &outbox);
    Ok(report)
}

async fn pool(app: &App) -> anyhow::Result<PgPool> {
    let options = PgPoolOptions::new().max_connections(AT_ONCE);
    let url = app.settings().database_url.expose_secret();
    options.connect(url).await.context("the peers' database")
}

/// The command that runs the worker in Python.
pub(super) fn outbox(python: &Path, app: &App) -> Command {
    let settings = app.settings();
    let names = Topology::new(&settings.namespace);
    let mut command = Command::new(python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/outbox.py"))
        .arg(settings.amqp_url.expose_secret())
        .arg(settings.database_url.expose_secret())
        .arg(names.queue(&Queue::Intents))
        .arg(names.events_exchange())
        .kill_on_drop(true);
    command
}

/// The plain worker.
#[derive(Debug, Args)]
pub(crate) struct PlainWorker {}

#[derive(Deserialize)]
struct Order {
    #[serde(rename = "order_id")]
    id: String,
    sale_id: String,
    user_id: String,
    quantity: i32,
}

impl PlainWorker {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<()> {
        let stop = shutdown::on_signal()?;
        let (broker, pool) = (app.broker().await?, pool(app).await?);
        let sample = Arc::new(Load::new(0, 1).sample_event()?);
        let mut deliveries = broker.consume(Queue::Intents, PREFETCH).await?;
        let (permits, working) = (Arc::new(Semaphore::new(AT_ONCE as usize)), TaskTracker::new());
        loop {
            let permit = permits.clone().acquire_owned().await?;
            let delivery = tokio::select! {
                Some(delivery) = deliveries.next() => delivery,
                () = stop.cancelled() => break,
            };
            let (broker, pool, sample) = (broker.clone(), pool.clone(), sample.clone());
            working.spawn(async move {
                if let Err(error) = work(delivery, broker.as_ref(), &pool, &sample).await {
                    // Not acknowledged, it comes again.
                    eprintln!("plain worker: {error:#}");
                }
                drop(permit);
            });
        }
        deliveries.stop();
        working.close();
        working.wait().await;
        drop(deliveries);
        Ok(())
    }
}

async fn work(
    delivery: Delivery,
    broker: &dyn Broker,
    pool: &PgPool,
    sample: &Event,
) -> anyhow::Result<()> {
    let order: Order = serde_json::from_slice(&delivery.body)?;
    let outcome = decide(&order, pool).await?;
    let Order { id, sale_id, user_id, quantity } = order;
    let decided_at = "2026-11-26T08:00:00.123Z";
    let data = json!({
        "order_id": id, "sale_id": sale_id, "user_id": user_id, "quantity": quantity,
        "outcome": outcome, "decided_at": decided_at,
    });
    let routing_key = format!("order.{outcome}.{sale_id}");
    let event = Event { data: data.to_string().into_bytes(), routing_key, ..sample.clone() };
    broker.publish(&[Message::Event(&event)]).await.all()?;
    delivery.ack();
    Ok(())
}

/// Decides an order in one transaction, once for ever.
async fn decide(order: &Order, pool: &PgPool) -> anyhow::Result<String> {
    let mut transaction = pool.begin().await?;
    let left: i32 =
        sqlx::query_scalar("select stock - sold from peer_sales where sale_id = $1 for update")
            .bind(&order.sale_id)
            .fetch_one(&mut *transaction)
            .await?;
    let outcome = if left >= order.quantity { "created" } else { "sold_out" };
    let new: Option<String> = sqlx::query_scalar(
        "insert into peer_orders (sale_id, order_id, user_id, quantity, outcome)
         values ($1, $2, $3, $4, $5) on conflict do nothing returning outcome",
    )
    .bind(&order.sale_id)
    .bind(&order.id)
    .bind(&order.user_id)
    .bind(order.quantity)
    .bind(outcome)
    .fetch_optional(&mut *transaction)
    .await?;
    if new.as_deref() == Some("created") {
        sqlx::query("update peer_sales set sold = sold + $2 where sale_id = $1")
            .bind(&order.sale_id)
            .bind(order.quantity)
            .execute(&mut *transaction)
            .await?;
    }
    let outcome = if let Some(outcome) = new {
        outcome
    } else {
        let stored = "select outcome from peer_orders where sale_id = $1 and order_id = $2";
        let stored = sqlx::query_scalar(stored).bind(&order.sale_id).bind(&order.id);
        stored.fetch_one(&mut *transaction).await?
    };
    transaction.commit().await?;
    Ok(outcome)
}
