//! Running the processes that are measured, and measuring them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tokio::process::Child;

use super::peers::{self, Peer};
use crate::cli::load::{CHUNK, Load};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::{Broker, Deliveries, Message, Queue, Topic};
use floodgate::cli::process;
use floodgate::domain::event::{decision_json, order_key_of};
use floodgate::domain::event_batch::data_of;
use floodgate::domain::order::OrderKey;

/// No event for so long means that something is wrong.
pub(super) const STALLED: Duration = Duration::from_mins(1);
/// How long orders are sent before their latency counts: connections and caches are new.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long the latency is watched, and how often a share of the load is sent.
const WATCHED: Duration = Duration::from_secs(8);
const SHARE: Duration = Duration::from_millis(5);
/// Events the bench holds unacknowledged; a subscriber is not to be what limits.
pub(super) const SUBSCRIBER_PREFETCH: u16 = 5000;
/// How long events may still come after the process that publishes them has ended.
const LATE: Duration = Duration::from_millis(200);
/// Decisions looked up at once.
const PAGE: usize = 1000;

/// What is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    Relay,
    /// A worker, or several.
    Workers(u32),
    /// A plain worker to compare with.
    Peer(Peer),
    /// A worker whose Redis cannot be reached.
    WithoutRedis,
}

/// One worker.
pub(super) const WORKER: Process = Process::Workers(1);

/// Nothing listens there.
const NO_REDIS: &str = "redis://127.0.0.1:1/";

/// Time from publishing an intent to receiving its event.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub at_orders_per_s: f64,
}

/// How fast a load was worked off.
pub(super) struct Throughput {
    pub orders_per_s: f64,
    /// What it can keep up with while the same machine publishes the orders too: all orders over the time of filling
    /// the queue and of emptying it.
    pub sustained_per_s: f64,
    /// Of the process that had the most.
    pub peak_bytes: u64,
}

/// Runs processes against one deployment.
pub(super) struct Runner<'a> {
    deployment: &'a TempDeployment,
    broker: Arc<dyn Broker>,
    events: Deliveries,
    config: Option<PathBuf>,
    /// Runs what is written in Python.
    python: PathBuf,
}

impl<'a> Runner<'a> {
    pub(super) async fn new(
        deployment: &'a TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let broker = deployment.app.broker().await?;
        // The relay publishes single events, whatever the worker does.
        let mut topics = vec![Topic::Events("order.#")];
        if deployment.app.settings().events.publish.has_batches() {
            topics.push(Topic::Batches("#"));
        }
        let queue = Queue::Subscriber(TempDeployment::SUBSCRIBER.to_owned());
        let events = broker.subscribe(queue, &topics, SUBSCRIBER_PREFETCH).await?;
        Ok(Self { deployment, broker, events, config, python: PathBuf::new() })
    }

    /// Has `python` run what is written in Python.
    pub(super) fn with_python(self, python: &Path) -> Self {
        Self { python: python.to_owned(), ..self }
    }

    pub(super) async fn end(self) {
        self.events.stop();
        self.events.finished().await;
    }

    /// Fills the queue, then lets a process empty it. Takes the time between its first event and its last,
    /// and checks that every order has one decision, and every decision its event.
    pub(super) async fn throughput(
        &mut self,
        load: &Load,
        per_message: u32,
        process: Process,
    ) -> anyhow::Result<Throughput> {
        let filling = Instant::now();
        load.publish(self.broker.as_ref(), per_message, CHUNK).await?;
        let filled_in = filling.elapsed().as_secs_f64();
        let processes = self.start(process)?;
        let mut bodies = vec![self.message().await?];
        let first = data_of(&bodies[0])?.len();
        let (begun, mut events) = (Instant::now(), first);
        while events < load.orders as usize {
            let body = self.message().await?;
            events += data_of(&body)?.len();
            bodies.push(body);
        }
        let emptied_in = begun.elapsed().as_secs_f64();
        let orders_per_s = (events - first) as f64 / emptied_in;
        let sustained_per_s = f64::from(load.orders) / (filled_in + emptied_in);
        let mut peak_bytes = 0;
        for process in &processes {
            peak_bytes = peak_bytes.max(peak_memory(process)?);
        }
        for process in processes {
            process::drain(process).await?;
        }
        if !matches!(process, Process::Relay | Process::Peer(_)) {
            while let Ok(Some(late)) = tokio::time::timeout(LATE, self.events.next()).await {
                bodies.push(late.body.clone());
                late.ack();
            }
            self.check(load, &bodies).await?;
        }
        Ok(Throughput { orders_per_s, sustained_per_s, peak_bytes })
    }

    /// Fails unless every order of `load` has one decision, and one event or more, all of which tell of it.
    async fn check(&self, load: &Load, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
        let mut told: HashMap<OrderKey, &[u8]> = HashMap::with_capacity(load.orders as usize);
        for body in bodies {
            for data in data_of(body)? {
                let order = order_key_of(data).context("an event that is about no order")?;
                load.number(&order).with_context(|| format!("{order} is of another run"))?;
                let first = *told.entry(order.clone()).or_insert(data);
                ensure!(first == data, "{order} has events that differ");
            }
        }
        ensure!(told.len() == load.orders as usize, "{} orders have events", told.len());
        let ledger = self.deployment.app.ledger().await?;
        let orders: Vec<&OrderKey> = told.keys().collect();
        for page in orders.chunks(PAGE) {
            let page: Vec<OrderKey> = page.iter().copied().cloned().collect();
            for (order, decision) in page.iter().zip(ledger.decisions(&page).await?) {
                let decision = decision.with_context(|| format!("{order} has no decision"))?;
                ensure!(decision_json(&decision) == told[order], "{order} has another decision");
            }
        }
        Ok(())
    }

    /// Sends orders at a steady rate, and takes the time until each one's event is here.
    pub(super) async fn latency(
        &mut self,
        load: &Load,
        per_message: u32,
        process: Process,
        orders_per_s: f64,
    ) -> anyhow::Result<Latency> {
        let processes = self.start(process)?;
        self.until_consumed(processes.len()).await?;
        let wanted = whole(orders_per_s * (WARM_UP + WATCHED).as_secs_f64());
        let orders = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(per_message, load.orders);
        let orders = orders / per_message * per_message;
        let source = load.with_orders(orders);
        let sending = tokio::spawn(send(self.broker.clone(), source, per_message, orders_per_s));
        let (mut received, mut missing) = (vec![None; orders as usize], orders);
        while missing > 0 {
            let body = self.message().await?;
            let now = Instant::now();
            for data in data_of(&body)? {
                let order = order_key_of(data).context("an event that is about no order")?;
                let number = load.number(&order).context("an event of another run")?;
                if received[number as usize].replace(now).is_none() {
                    missing -= 1;
                }
            }
        }
        let sent = sending.await??;
        for process in processes {
            process::drain(process).await?;
        }
        let warm = whole(orders_per_s * WARM_UP.as_secs_f64()).min(received.len() / 2);
        let mut waits: Vec<f64> = received
            .into_iter()
            .zip(sent)
            .skip(warm)
            .filter_map(|(received, sent)| Some(received?.duration_since(sent).as_secs_f64() * 1e3))
            .collect();
        waits.sort_by(f64::total_cmp);
        let at = |share: f64| waits[whole((waits.len() - 1) as f64 * share)];
        Ok(Latency { p50_ms: at(0.50), p99_ms: at(0.99), at_orders_per_s: orders_per_s })
    }

    /// Waits until so many processes take intents.
    async fn until_consumed(&self, processes: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        while (self.broker.depth(Queue::Intents).await?.consumers as usize) < processes {
            ensure!(begun.elapsed() < STALLED, "nothing takes intents");
            tokio::time::sleep(SHARE).await;
        }
        Ok(())
    }

    /// The body of the next message with events.
    async fn message(&mut self) -> anyhow::Result<Vec<u8>> {
        let Ok(Some(mut delivery)) = tokio::time::timeout(STALLED, self.events.next()).await else {
            bail!("no event for {STALLED:?}; see what the worker printed above");
        };
        let body = std::mem::take(&mut delivery.body);
        delivery.ack();
        Ok(body)
    }

    fn start(&self, process: Process) -> anyhow::Result<Vec<Child>> {
        let count = if let Process::Workers(count) = process { count } else { 1 };
        (0..count).map(|_| self.start_one(process)).collect()
    }

    fn start_one(&self, process: Process) -> anyhow::Result<Child> {
        let (deployment, config) = (self.deployment, self.config.as_deref());
        let mut command = match process {
            Process::Relay | Process::Peer(Peer::Plain) => {
                process::this_program(deployment.app.settings(), config)?
            }
            Process::Peer(Peer::Outbox) => peers::outbox(&self.python, &deployment.app),
            Process::Workers(_) | Process::WithoutRedis => {
                process::floodgate(deployment.app.settings(), config)?
            }
        };
        command.env("FLOODGATE_LOG__FILTER", "warn");
        match process {
            Process::Relay => command.arg("bench-relay"),
            Process::Peer(Peer::Plain) => command.arg("bench-plain-worker"),
            Process::Peer(Peer::Outbox) => &mut command,
            Process::Workers(_) => command.arg("worker"),
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
pub(super) fn whole(number: f64) -> usize {
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
