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
use crate::metrics::{Dependency, Metrics};
use crate::shards::{ShardMap, WorkerId};

const TICK: Duration = Duration::from_secs(1);
/// Statuses taken from the broker at once.
const PREFETCH: u16 = 100;
/// A worker says something each second. One that does not for so long is frozen, cut off or gone.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// A worker that was not heard of for so long is not shown any more.
const FORGET_AFTER: Duration = Duration::from_mins(5);
/// The most workers that are shown. Others are not counted.
const MAX_WORKERS: usize = 1000;
/// Percentiles are of the decisions of so many ticks.
const LATENCY_TICKS: usize = 10;

/// The pace is of so many ticks at most, and not told before so many.
const PACE_TICKS: usize = 10;
const MIN_PACE_TICKS: usize = 3;

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
                // Without the broker nothing is heard of workers, which says nothing about them.
                let hears = metrics.dependencies.is_up(Dependency::RabbitMq);
                let overview = seen.overview(&depths.borrow(), hears, Instant::now());
                metrics.broker.set_oldest(overview.oldest_s);
                let are = |state| overview.workers.iter().filter(move |one| one.state == state).count();
                metrics.broker.set_workers(are(WorkerState::Running), are(WorkerState::Silent));
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
    settled: u64,
    /// Messages settled and seconds, of the latest ticks at which messages waited.
    paces: VecDeque<(u64, f64)>,
    settled_before: u64,
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
            self.settled += status.settled.saturating_sub(before.settled);
            add_growth(&mut self.dead_letters, &status.dead_letters, &before.dead_letters);
            add_latency(&mut self.latency, &status.latency, &before.latency);
        }
        if status.state == WorkerState::Ended {
            self.workers.remove(&status.worker);
        } else {
            self.workers.insert(status.worker, Heard { status, at: now });
        }
    }

    /// `hears`: the broker answers this process.
    fn overview(&mut self, depths: &Depths, hears: bool, now: Instant) -> Overview {
        if !hears {
            self.workers.values_mut().for_each(|heard| heard.at = now);
        }
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
        let speaking = self.workers.values().filter(|heard| !heard.is_silent(now)).count();
        let all_speak = depths.workers() as usize <= speaking;
        let views = self.workers.values().map(|heard| heard.view(now, all_speak));
        let mut workers: Vec<WorkerView> = views.collect();
        workers.sort_by(|one, other| one.worker.cmp(&other.worker));
        let waiting = depths.intents() + depths.returned();
        let is_there = |worker: &WorkerView| worker.state != WorkerState::Gone;
        let attended = workers.iter().any(is_there) || waiting == 0 || !hears;
        self.unattended_since = (!attended).then(|| self.unattended_since.unwrap_or(now));
        let unattended_s = self.unattended_since.map_or(0.0, |since| (now - since).as_secs_f64());
        let oldest_s = workers.iter().map(|worker| worker.oldest_s).fold(unattended_s, f64::max);
        let drain_rate = workers.iter().map(|worker| worker.drain_rate).sum::<f64>();
        let in_flight: usize =
            workers.iter().filter(|worker| is_there(worker)).map(|worker| worker.in_flight).sum();
        let ahead = waiting + in_flight as u64;
        let wait_s = self.wait_s(waiting, ahead, seconds);
        let fresh = std::mem::take(&mut self.fresh).into_iter();
        Overview {
            at: Utc::now(),
            alarm: None,
            decisions: self.decisions.clone(),
            per_second: fresh.map(|(code, count)| (code, count as f64 / seconds)).collect(),
            latency: Latency::of(&latency),
            queues: depths.by_queue().map(|(queue, count)| (queue.to_owned(), count)).into(),
            oldest_s,
            drain_rate,
            ahead,
            settled: self.settled,
            wait_s,
            dead_letters: self.dead_letters.clone(),
            dependencies: self.dependencies(hears, now, all_speak),
            paused: self.workers.values().flat_map(|heard| heard.status.paused.clone()).collect(),
            workers,
        }
        .with_alarm()
    }

    /// How long one that arrives now waits. A rate from before messages began to wait would be that of their arrival.
    fn wait_s(&mut self, waiting: u64, ahead: u64, seconds: f64) -> Option<f64> {
        let settled = self.settled - std::mem::replace(&mut self.settled_before, self.settled);
        if waiting == 0 {
            self.paces.clear();
            // What workers hold is no queue, unless they are done with none of it.
            return (ahead == 0 || settled > 0).then_some(0.0);
        }
        self.paces.push_back((settled, seconds));
        if self.paces.len() > PACE_TICKS {
            self.paces.pop_front();
        }
        let (settled, seconds) = self
            .paces
            .iter()
            .fold((0, 0.0), |(all, time), (settled, seconds)| (all + settled, time + seconds));
        let is_known = self.paces.len() >= MIN_PACE_TICKS && settled > 0;
        is_known.then(|| ahead as f64 * seconds / settled as f64)
    }

    /// By the workers that are not gone. What they have told of the broker does not count while this process gets no
    /// answer from it.
    fn dependencies(
        &self,
        hears: bool,
        now: Instant,
        all_speak: bool,
    ) -> BTreeMap<String, Answering> {
        let mut all: BTreeMap<String, Answering> = BTreeMap::new();
        for heard in self.workers.values().filter(|heard| !(heard.is_silent(now) && all_speak)) {
            for (server, up) in &heard.status.dependencies {
                let answering = all.entry(server.clone()).or_default();
                let up = *up && (hears || server != Dependency::RabbitMq.name());
                *(if up { &mut answering.up } else { &mut answering.down }) += 1;
            }
        }
        all
    }
}

impl Heard {
    fn is_silent(&self, now: Instant) -> bool {
        now - self.at > SILENT_AFTER
    }

    /// `all_speak`: as many workers as the broker knows do.
    fn view(&self, now: Instant, all_speak: bool) -> WorkerView {
        let silent_s = (now - self.at).as_secs_f64();
        let WorkerStatus { worker, host, process, version, state, in_flight, .. } = &self.status;
        let is_silent = self.is_silent(now);
        let is_gone = is_silent && all_speak;
        // A worker that is frozen gets deliveries from the broker that it does not know of.
        let may_hold = !is_gone && (self.status.oldest_s > 0.0 || is_silent);
        WorkerView {
            worker: worker.to_string(),
            host: host.clone(),
            process: *process,
            version: version.clone(),
            state: match is_silent {
                true if all_speak => WorkerState::Gone,
                true => WorkerState::Silent,
                false => *state,
            },
            silent_s,
            in_flight: *in_flight,
            oldest_s: if may_hold { self.status.oldest_s + silent_s } else { 0.0 },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::status::{ShardDepth, WorkerHealth, WorkerName};

    fn status(name: &WorkerName, created: u64, in_flight: usize) -> WorkerStatus {
        let decisions = [("created".to_owned(), created)].into();
        let status = WorkerStatus::of(name, &Metrics::new(), &WorkerHealth::default());
        WorkerStatus { decisions, settled: created, in_flight, oldest_s: 0.5, ..status }
    }

    fn depths(intents: u32, consumers: u32) -> Depths {
        let shard = ShardDepth { shard: None, intents, returned: 0, consumers };
        Depths { shards: vec![shard], ..Depths::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_workers_did_since_they_were_first_heard_is_counted() {
        let (mut seen, start) = (SeenWorkers::default(), Instant::now());
        let (one, two) = (WorkerName::here(), WorkerName::here());
        seen.overview(&depths(0, 0), true, start);
        seen.take(status(&one, 1000, 1), start);
        seen.take(status(&two, 0, 0), start);
        let second = start + TICK;
        seen.take(status(&one, 1010, 1), second);
        seen.take(status(&two, 20, 0), second);
        let overview = seen.overview(&depths(99, 2), true, second);
        assert_eq!(overview.decisions["created"], 30);
        assert!((overview.per_second["created"] - 30.0).abs() < 1e-9, "{overview:?}");
        assert_eq!(overview.workers.len(), 2);
        assert_eq!((overview.ahead, overview.settled, overview.wait_s), (100, 30, None));
        let ended = WorkerStatus { state: WorkerState::Ended, ..status(&one, 1011, 0) };
        seen.take(ended, second);
        let overview = seen.overview(&depths(99, 1), true, second);
        assert_eq!((overview.workers.len(), overview.decisions["created"]), (1, 31));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_silent_is_frozen_while_the_broker_has_its_connection_and_else_gone() {
        let (mut seen, start) = (SeenWorkers::default(), Instant::now());
        let name = WorkerName::here();
        seen.take(status(&name, 0, 0), start);
        let later = start + 10 * TICK;
        let unheard = seen.overview(&depths(0, 1), false, start + 5 * TICK);
        assert!(unheard.workers[0].silent_s < 1.0, "the broker is unavailable: {unheard:?}");
        seen.take(status(&name, 0, 0), start);
        let frozen = seen.overview(&depths(0, 1), true, later);
        assert!((frozen.oldest_s - 10.5).abs() < 1e-9, "{frozen:?}");
        assert_eq!(frozen.workers[0].state, WorkerState::Silent);
        assert_eq!(frozen.alarm.as_deref(), Some("1 of 1 workers say nothing"));
        let gone = seen.overview(&depths(0, 0), true, later);
        assert!(gone.oldest_s.abs() < 1e-9 && gone.workers[0].state == WorkerState::Gone);
        assert_eq!(gone.alarm.as_deref(), Some("1 of 1 workers have gone without a word"));
        let paused = [("s".to_owned(), "hold".to_owned()), ("t".to_owned(), "refuse".to_owned())];
        seen.take(WorkerStatus { paused: paused.into(), ..status(&name, 0, 0) }, later);
        let held = seen.overview(&depths(0, 1), true, later);
        assert_eq!(held.alarm.as_deref(), Some("An operator holds the orders of s"));
        assert!(seen.overview(&depths(0, 0), true, later + FORGET_AFTER).workers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_follows_from_what_is_ahead_and_the_pace_while_messages_wait() {
        let (mut seen, start, name) = (SeenWorkers::default(), Instant::now(), WorkerName::here());
        let mut wait_s = |tick: u32, settled: u64, waiting: u32| {
            let now = start + tick * TICK;
            seen.take(status(&name, settled, 10), now);
            seen.overview(&depths(waiting, 1), true, now)
                .wait_s
                .map(|wait_s| wait_s.round().to_string())
        };
        assert_eq!(wait_s(0, 0, 0), None, "some are held, and none is done with");
        assert_eq!(
            wait_s(1, 1, 0).as_deref(),
            Some("0"),
            "a slow trickle says nothing of the pace"
        );
        assert_eq!(wait_s(2, 101, 990), None);
        assert_eq!(wait_s(3, 201, 990), None);
        assert_eq!(wait_s(4, 301, 990).as_deref(), Some("10"));
        assert_eq!(wait_s(5, 401, 490).as_deref(), Some("5"));
        assert_eq!(wait_s(6, 402, 0).as_deref(), Some("0"));
        assert_eq!(wait_s(7, 402, 990), None);
    }

    #[tokio::test(start_paused = true)]
    async fn orders_that_no_worker_takes_get_older() {
        let (mut seen, start) = (SeenWorkers::default(), Instant::now());
        seen.overview(&depths(1, 0), true, start);
        let overview = seen.overview(&depths(1, 0), true, start + 7 * TICK);
        assert!((overview.oldest_s - 7.0).abs() < 1e-9 && overview.wait_s.is_none());
        assert!(seen.overview(&depths(0, 0), true, start + 8 * TICK).oldest_s.abs() < 1e-9);
    }
}
