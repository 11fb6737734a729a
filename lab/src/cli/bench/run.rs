//! Running the processes that are measured, and measuring them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::process::Child;

use super::load::{CHUNK, Load};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::{Broker, Deliveries, Message};
use floodgate::cli::process;
use floodgate::domain::event::order_key_of;
use floodgate::domain::order::OrderKey;

/// No event for so long means that something is wrong.
pub(super) const STALLED: Duration = Duration::from_mins(1);
/// How long the latency is cached, and how often a share of the load is sent.
const WATCHED: Duration = Duration::from_secs(8);
const SHARE: Duration = Duration::from_millis(5);
/// Events the bench holds unacknowledged; a subscriber is not to be what limits.
pub(super) const SUBSCRIBER_PREFETCH: u16 = 5000;

/// What is run.
#[derive(Clone, Copy)]
pub(super) enum Process {
    Relay,
    Worker,
    /// A worker whose Redis cannot be reached.
    WithoutRedis,
}

/// Nothing listens there.
const NO_REDIS: &str = "redis://127.0.0.1:1/";

/// Time from publishing an intent to receiving its event.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub at_orders_per_s: f64,
}

/// Runs processes against one deployment.
pub(super) struct Runner<'a> {
    deployment: &'a TempDeployment,
    broker: Arc<dyn Broker>,
    events: Deliveries,
    config: Option<PathBuf>,
}

impl<'a> Runner<'a> {
    pub(super) async fn new(
        deployment: &'a TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let broker = deployment.app.broker().await?;
        let events = deployment.events(SUBSCRIBER_PREFETCH).await?;
        Ok(Self { deployment, broker, events, config })
    }

    pub(super) async fn end(self) {
        self.events.stop();
        self.events.finished().await;
    }

    /// Fills the queue, then lets a process empty it. Returns orders per second between its first
    /// and its last event, and its peak memory in bytes.
    pub(super) async fn throughput(
        &mut self,
        load: &Load,
        per_message: u32,
        process: Process,
    ) -> anyhow::Result<(f64, u64)> {
        load.publish(self.broker.as_ref(), per_message, CHUNK).await?;
        let child = self.start(process)?;
        self.event().await?;
        let begun = Instant::now();
        for _ in 1..load.orders {
            self.event().await?;
        }
        let rate = f64::from(load.orders - 1) / begun.elapsed().as_secs_f64();
        let peak = peak_memory(&child)?;
        process::drain(child).await?;
        Ok((rate, peak))
    }

    /// Sends orders at a steady rate, and takes the time until each one's event is here.
    pub(super) async fn latency(
        &mut self,
        load: &Load,
        per_message: u32,
        orders_per_s: f64,
    ) -> anyhow::Result<Latency> {
        let child = self.start(Process::Worker)?;
        let wanted = whole(orders_per_s * WATCHED.as_secs_f64());
        let orders = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(per_message, load.orders);
        let orders = orders / per_message * per_message;
        let source = load.with_orders(orders);
        let sending = tokio::spawn(send(self.broker.clone(), source, per_message, orders_per_s));
        let mut received = vec![None; orders as usize];
        for _ in 0..orders {
            let order = self.event().await?;
            let number = load.number(&order).context("an event of another run")?;
            received[number as usize].get_or_insert_with(Instant::now);
        }
        let sent = sending.await??;
        process::drain(child).await?;
        let mut waits: Vec<f64> = received
            .into_iter()
            .zip(sent)
            .filter_map(|(received, sent)| Some(received?.duration_since(sent).as_secs_f64() * 1e3))
            .collect();
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| waits[whole((waits.len() - 1) as f64 * share)];
        Ok(Latency { p50_ms: at(0.50), p99_ms: at(0.99), at_orders_per_s: orders_per_s })
    }

    /// The order that the next event is about.
    async fn event(&mut self) -> anyhow::Result<OrderKey> {
        let Ok(Some(delivery)) = tokio::time::timeout(STALLED, self.events.next()).await else {
            bail!("no event for {STALLED:?}; see what the worker printed above");
        };
        let order = order_key_of(&delivery.body).context("an event that is about no order")?;
        delivery.ack();
        Ok(order)
    }

    fn start(&self, process: Process) -> anyhow::Result<Child> {
        let (deployment, config) = (self.deployment, self.config.as_deref());
        let mut command = match process {
            Process::Relay => process::this_program(deployment, config)?,
            Process::Worker | Process::WithoutRedis => process::floodgate(deployment, config)?,
        };
        command.env("FLOODGATE_LOG__FILTER", "warn");
        match process {
            Process::Relay => command.arg("bench-relay"),
            Process::Worker => command.arg("worker"),
            Process::WithoutRedis => {
                // It says once that Redis is unavailable, which is no news here.
                command.env("FLOODGATE_LOG__FILTER", "error");
                command.env("FLOODGATE_REDIS_URL", NO_REDIS).arg("worker")
            }
        };
        command.spawn().context("could not start a worker")
    }
}

/// Sends every order of `load` at its time. Returns when each was sent.
async fn send(
    broker: Arc<dyn Broker>,
    load: Load,
    per_message: u32,
    orders_per_s: f64,
) -> anyhow::Result<Vec<Instant>> {
    let sale = load.sale_id();
    let mut sent = Vec::with_capacity(load.orders as usize);
    let mut confirms = tokio::task::JoinSet::new();
    let begun = Instant::now();
    while sent.len() < load.orders as usize {
        let due = whole(begun.elapsed().as_secs_f64() * orders_per_s);
        let mut bodies = Vec::new();
        while sent.len() < due.min(load.orders as usize) {
            let from = u32::try_from(sent.len())?;
            bodies.push(load.body(from, from + per_message));
            sent.extend((0..per_message).map(|_| Instant::now()));
        }
        let (broker, sale) = (broker.clone(), sale.clone());
        confirms.spawn(async move {
            let messages: Vec<Message<'_>> =
                bodies.iter().map(|body| Message::intent(sale.as_str(), body)).collect();
            broker.publish(&messages).await.all()
        });
        tokio::time::sleep(SHARE).await;
    }
    while let Some(confirmed) = confirms.join_next().await {
        confirmed??;
    }
    Ok(sent)
}

/// A positive number without its fraction.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is what this does")]
fn whole(number: f64) -> usize {
    number as usize
}

/// The most memory the process has had, by the kernel's account (`VmHWM`, proc(5)).
fn peak_memory(child: &Child) -> anyhow::Result<u64> {
    let id = child.id().context("the process has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no VmHWM")?
        .trim()
        .parse()?;
    Ok(kib * 1024)
}
