//! Gathers what workers say of themselves.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::overview::Answering;
use super::{
    Depths, Latency, LatencyBucket, Overview, WorkerState, WorkerStatus, WorkerView, watch_depths,
};
use crate::broker::{Broker, BrokerError, Deliveries, Queue, Topic};
use crate::metrics::Metrics;
use crate::shards::{ShardMap, WorkerId};

const TICK: Duration = Duration::from_secs(1);
/// Statuses taken from the broker at once.
const PREFETCH: u16 = 100;
/// A worker that was not heard of for so long is not shown any more.
const FORGET_AFTER: Duration = Duration::from_mins(5);
/// The most workers that are shown. Others are not counted.
const MAX_WORKERS: usize = 1000;
/// Percentiles are of the decisions of so many ticks.
const LATENCY_TICKS: usize = 10;

/// What all workers say of themselves, and what waits in the queues. Keeps itself up to date until it is dropped.
pub struct StatusBoard {
    overviews: watch::Receiver<Overview>,
    _watching: [AbortOnDropHandle<()>; 2],
}

impl StatusBoard {
    /// Begins to watch. Fails when the broker can't be reached.
    pub async fn start(
        broker: Arc<dyn Broker>,
        shard_map: Option<Arc<dyn ShardMap>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        let queue = Queue::Private(format!("status.{}", Uuid::now_v7()));
        let statuses = broker.subscribe(queue, &[Topic::Status], PREFETCH).await?;
        let (tell_depths, depths) = watch::channel(Depths::default());
        let (tell, overviews) = watch::channel(Overview::default());
        let looking = watch_depths(broker, shard_map, metrics.broker.clone(), TICK, tell_depths);
        let gathering = gather(statuses, depths, tell, metrics);
        let watching = [tokio::spawn(looking), tokio::spawn(gathering)];
        Ok(Self { overviews, _watching: watching.map(AbortOnDropHandle::new) })
    }

    /// The latest overview, from now on each second.
    pub fn follow(&self) -> watch::Receiver<Overview> {
        self.overviews.clone()
    }

    /// The latest overview.
    pub fn now(&self) -> watch::Ref<'_, Overview> {
        self.overviews.borrow()
    }
}

async fn gather(
    mut statuses: Deliveries,
    depths: watch::Receiver<Depths>,
    tell: watch::Sender<Overview>,
    metrics: Arc<Metrics>,
) {
    let mut seen = SeenWorkers::default();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                let overview = seen.overview(&depths.borrow(), Instant::now());
                metrics.broker.set_oldest(overview.oldest_s);
                tell.send_replace(overview);
            }
            Some(delivery) = statuses.next() => {
                match serde_json::from_slice(&delivery.body) {
                    Ok(status) => seen.take(status, Instant::now()),
                    Err(error) => tracing::debug!(%error, "a status that can't be read"),
                }
                delivery.ack();
            }
            else => return,
        }
    }
}

/// Workers and what they have said.
#[derive(Default)]
struct SeenWorkers {
    workers: HashMap<WorkerId, Heard>,
    decisions: BTreeMap<String, u64>,
    /// Since the last tick.
    fresh: BTreeMap<String, u64>,
    ticked_at: Option<Instant>,
    /// Decisions by their time: since the last tick, and of the ticks before.
    latency: Vec<LatencyBucket>,
    latencies: VecDeque<Vec<LatencyBucket>>,
    dead_letters: BTreeMap<String, u64>,
    /// Since when orders wait and no worker is there.
    unattended_since: Option<Instant>,
}

struct Heard {
    status: WorkerStatus,
    at: Instant,
}

impl SeenWorkers {
    fn take(&mut self, status: WorkerStatus, now: Instant) {
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(&status.worker) {
            return;
        }
        if let Some(Heard { status: before, .. }) = self.workers.get(&status.worker) {
            for (counted, latest, earlier) in [
                (&mut self.decisions, &status.decisions, &before.decisions),
                (&mut self.fresh, &status.decisions, &before.decisions),
            ] {
                add_growth(counted, latest, earlier);
            }
            add_growth(&mut self.dead_letters, &status.dead_letters, &before.dead_letters);
            add_latency(&mut self.latency, &status.latency, &before.latency);
        }
        if status.state == WorkerState::Ended {
            self.workers.remove(&status.worker);
        } else {
            self.workers.insert(status.worker, Heard { status, at: now });
        }
    }

    fn overview(&mut self, depths: &Depths, now: Instant) -> Overview {
        self.workers.retain(|_, heard| now - heard.at < FORGET_AFTER);
        let seconds = self.ticked_at.map_or(1.0, |at| (now - at).as_secs_f64().max(0.001));
        self.ticked_at = Some(now);
        self.latencies.push_back(std::mem::take(&mut self.latency));
        if self.latencies.len() > LATENCY_TICKS {
            self.latencies.pop_front();
        }
        let mut latency = Vec::new();
        for tick in &self.latencies {
            add_latency(&mut latency, tick, &[]);
        }
        let mut workers: Vec<WorkerView> =
            self.workers.values().map(|heard| heard.view(now)).collect();
        workers.sort_by(|one, other| one.worker.cmp(&other.worker));
        let waiting = depths.intents() + depths.returned();
        let attended = !workers.is_empty() || waiting == 0;
        self.unattended_since = (!attended).then(|| self.unattended_since.unwrap_or(now));
        let unattended_s = self.unattended_since.map_or(0.0, |since| (now - since).as_secs_f64());
        let oldest_s = workers.iter().map(|worker| worker.oldest_s).fold(unattended_s, f64::max);
        let drain_rate = workers.iter().map(|worker| worker.drain_rate).sum::<f64>();
        let in_flight: usize = workers.iter().map(|worker| worker.in_flight).sum();
        let ahead = waiting as f64 + in_flight as f64;
        let wait_s =
            if ahead < 1.0 { Some(0.0) } else { (drain_rate > 0.0).then(|| ahead / drain_rate) };
        let fresh = std::mem::take(&mut self.fresh).into_iter();
        Overview {
            at: Utc::now(),
            decisions: self.decisions.clone(),
            per_second: fresh.map(|(code, count)| (code, count as f64 / seconds)).collect(),
            latency: Latency::of(&latency),
            queues: depths.by_queue().map(|(queue, count)| (queue.to_owned(), count)).into(),
            oldest_s,
            drain_rate,
            wait_s,
            dead_letters: self.dead_letters.clone(),
            dependencies: self.dependencies(),
            workers,
        }
    }

    fn dependencies(&self) -> BTreeMap<String, Answering> {
        let mut all: BTreeMap<String, Answering> = BTreeMap::new();
        for heard in self.workers.values() {
            for (server, up) in &heard.status.dependencies {
                let answering = all.entry(server.clone()).or_default();
                *(if *up { &mut answering.up } else { &mut answering.down }) += 1;
            }
        }
        all
    }
}

impl Heard {
    fn view(&self, now: Instant) -> WorkerView {
        let silent_s = (now - self.at).as_secs_f64();
        let WorkerStatus { worker, host, process, version, state, in_flight, .. } = &self.status;
        // What it has not settled gets older while it says nothing, and it is done with nothing.
        let is_silent = silent_s > 3.0;
        WorkerView {
            worker: worker.to_string(),
            host: host.clone(),
            process: *process,
            version: version.clone(),
            state: *state,
            silent_s,
            in_flight: *in_flight,
            oldest_s: if *in_flight > 0 { self.status.oldest_s + silent_s } else { 0.0 },
            drain_rate: if is_silent { 0.0 } else { self.status.drain_rate },
        }
    }
}

/// Adds what `latest` has more than `earlier`.
fn add_growth(
    counted: &mut BTreeMap<String, u64>,
    latest: &BTreeMap<String, u64>,
    earlier: &BTreeMap<String, u64>,
) {
    for (name, count) in latest {
        let before = earlier.get(name).copied().unwrap_or_default();
        *counted.entry(name.clone()).or_default() += count.saturating_sub(before);
    }
}

/// The same of buckets, which are those of the first worker; of one that has others nothing is added.
fn add_latency(
    counted: &mut Vec<LatencyBucket>,
    latest: &[LatencyBucket],
    earlier: &[LatencyBucket],
) {
    if counted.is_empty() {
        counted.extend(latest.iter().map(|bucket| LatencyBucket { count: 0, ..*bucket }));
    }
    for (index, bucket) in latest.iter().enumerate() {
        let before = earlier.get(index).map_or(0, |bucket| bucket.count);
        if let Some(counted) = counted.get_mut(index).filter(|one| one.seconds == bucket.seconds) {
            counted.count += bucket.count.saturating_sub(before);
        }
    }
}
