//! The worker: takes intents through the stages of an order, from the queue to its decision.
//!
//! Proposing goes batch by batch in queue order. What follows, record, amend, publish and
//! acknowledge, runs for several batches at once, so that all servers work at the same time.

mod batch;
mod check;
mod intake;
mod line;
mod propose;
mod publish;
mod reconcile;
mod record;
mod sources;
mod tally;
mod verify;
mod wait;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::broker::{Broker, BrokerError, Queue};
use crate::config::Settings;
use crate::inventory::Inventory;
use crate::ledger::Ledger;
use crate::retry::Backoff;
use crate::verification::Verifier;
use crate::watch::SaleWatch;
use batch::Batcher;
use propose::{ProposedBatch, Proposer, Source};
use publish::Outlet;
use reconcile::{Reconciler, Touched};
use record::Recorder;
use sources::Sources;
use tally::Tally;
use verify::{Verification, expire};

pub use propose::{ORDER_ID_CONFLICT, UNKNOWN_SALE};
pub use record::UNDECIDABLE;

/// How often a busy worker says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// How often the workers on the queue are counted: for the first few times, and then.
const LOOK_OFTEN: Duration = Duration::from_millis(50);
const FIRST_LOOKS: u64 = 100;
const LOOK_SELDOM: Duration = Duration::from_secs(2);

/// Tells the time, so that tests can have a worker whose clock is wrong.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// A worker and what it works with.
pub struct Worker {
    /// Where intents come from and decisions go.
    pub broker: Arc<dyn Broker>,
    /// What proposes.
    pub inventory: Arc<dyn Inventory>,
    /// What decides.
    pub ledger: Arc<dyn Ledger>,
    /// What checks users; without it, orders of sales that want it wait until they are too old.
    pub verifier: Option<Arc<dyn Verifier>>,
    /// What is known of sales without asking.
    pub watch: Arc<SaleWatch>,
    /// What time it is.
    pub clock: Clock,
    /// All settings.
    pub settings: Settings,
}

/// Why a worker ended other than by being stopped and drained.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The queue can't be consumed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It didn't finish in time. What it had in hand goes back to the queue.
    #[error("not drained within {0:?}; what was in flight goes back to the queue")]
    NotDrained(Duration),
}

/// Finishes batches that are proposed.
struct Finisher {
    recorder: Recorder,
    outlet: Outlet,
}

impl Worker {
    /// Works until `stop`, then takes no more deliveries, finishes those in hand and leaves.
    pub async fn run(self, stop: CancellationToken) -> Result<(), WorkerError> {
        let deadline = self.settings.worker.drain_deadline();
        let tally = Arc::new(Tally::default());
        let touched = Touched::default();
        let _reconciler = AbortOnDropHandle::new(tokio::spawn(self.reconciler(&touched).run()));
        let _reporter = AbortOnDropHandle::new(tokio::spawn(report(tally.clone())));
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(deadline).await;
        };
        let workers = Arc::new(AtomicU32::new(1));
        let counting = count_workers(self.broker.clone(), workers.clone());
        let _counter = AbortOnDropHandle::new(tokio::spawn(counting));
        let ended = tokio::select! {
            worked = self.work(touched, tally.clone(), workers, &stop) => worked.map_err(WorkerError::from),
            () = too_late => Err(WorkerError::NotDrained(deadline)),
        };
        tally.log(if ended.is_ok() { "drained" } else { "ended" });
        ended
    }

    async fn work(
        &self,
        touched: Touched,
        tally: Arc<Tally>,
        workers: Arc<AtomicU32>,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let settings = &self.settings;
        let broker = self.broker.as_ref();
        let mut sources = Sources::consume(broker, settings.broker.prefetch).await?;
        let (limits, clock) = (settings.intent.limits(), self.clock.clone());
        let mut batcher = Batcher::new(settings.worker.max_batch, move |delivery| {
            intake::take_apart(delivery, limits, clock())
        });
        let (verifier, clock) = (self.verifier.clone(), self.clock.clone());
        let mut verification = Verification::new(verifier, settings, clock, workers);
        let mut proposer = self.proposer(touched);
        let finisher = Arc::new(self.finisher(tally));
        let in_flight = u32::try_from(settings.worker.batches_in_flight).unwrap_or(u32::MAX);
        let slots = Arc::new(Semaphore::new(settings.worker.batches_in_flight));
        let mut finishing = JoinSet::new();
        tracing::info!("consuming");
        loop {
            // Waiting for a slot before taking a batch lets the batch grow meanwhile.
            let slot = slot(&slots, 1).await;
            let next = next(&mut batcher, &mut sources, &mut verification, stop).await;
            let now = (self.clock)().trunc_subsecs(3);
            let batch = match next {
                Next::Arrived(mut batch) => {
                    expire(&mut batch, now, settings.intent.max_age());
                    batch
                }
                Next::Verified(batch) => batch,
                Next::End => break,
            };
            let (batch, unchecked) = proposer.propose(batch, now).await;
            verification.take(unchecked);
            if batch.is_empty() {
                continue;
            }
            let slot = match batch.source {
                Source::Inventory => slot,
                Source::LedgerAlone => {
                    drop(slot);
                    self::slot(&slots, in_flight).await
                }
            };
            finishing.spawn(finisher.clone().finish(batch, slot));
            while let Some(finished) = finishing.try_join_next() {
                propagate(finished);
            }
        }
        while let Some(finished) = finishing.join_next().await {
            propagate(finished);
        }
        sources.finished().await;
        Ok(())
    }

    fn proposer(&self, touched: Touched) -> Proposer {
        Proposer {
            inventory: self.inventory.clone(),
            ledger: self.ledger.clone(),
            watch: self.watch.clone(),
            when_unavailable: self.settings.inventory.when_unavailable,
            retry_after: self.settings.inventory.retry_after(),
            touched,
            away_until: None,
        }
    }

    fn finisher(&self, tally: Arc<Tally>) -> Finisher {
        let (ledger, inventory) = (self.ledger.clone(), self.inventory.clone());
        Finisher {
            recorder: Recorder { ledger, inventory, tally: tally.clone() },
            outlet: Outlet { broker: self.broker.clone(), tally },
        }
    }

    fn reconciler(&self, touched: &Touched) -> Reconciler {
        Reconciler {
            inventory: self.inventory.clone(),
            ledger: self.ledger.clone(),
            touched: touched.clone(),
            every: self.settings.inventory.reconcile_every(),
        }
    }
}

impl Finisher {
    async fn finish(self: Arc<Self>, batch: ProposedBatch, _slot: OwnedSemaphorePermit) {
        let decided = self.recorder.record(batch).await;
        self.outlet.publish(decided).await;
    }
}

/// Places for `count` more batches in flight.
async fn slot(slots: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    match slots.clone().acquire_many_owned(count).await {
        Ok(slot) => slot,
        Err(_) => unreachable!("the semaphore is never closed"),
    }
}

/// What is to be worked on next.
enum Next {
    /// From the queues.
    Arrived(batch::Batch),
    /// Whose users were checked, or are not to be checked now.
    Verified(batch::Batch),
    /// Nothing will come any more.
    End,
}

/// The next batch. After `stop` those that were handed over still come, and those whose check is
/// under way.
async fn next<F>(
    batcher: &mut Batcher<F>,
    sources: &mut Sources,
    verification: &mut Verification,
    stop: &CancellationToken,
) -> Next
where
    F: Fn(crate::broker::Delivery) -> VecDeque<batch::Item>,
{
    if !stop.is_cancelled() {
        tokio::select! {
            verified = verification.next() => return Next::Verified(verified),
            arrived = batcher.next(sources) => if let Some(batch) = arrived {
                return Next::Arrived(batch);
            },
            () = stop.cancelled() => {}
        }
    }
    sources.stop();
    if let Some(batch) = batcher.next(sources).await {
        return Next::Arrived(batch);
    }
    verification.give_up();
    if verification.is_working() { Next::Verified(verification.next().await) } else { Next::End }
}

/// A batch that panicked holds deliveries that nobody settles; better to end here and now, and let
/// the broker deliver them to somebody else.
fn propagate(finished: Result<(), tokio::task::JoinError>) {
    if let Err(error) = finished
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// Keeps count of the workers on the queue for as long as it is polled. Looks often at first, so that
/// several which start together know of each other before the first checks come back.
async fn count_workers(broker: Arc<dyn Broker>, workers: Arc<AtomicU32>) {
    let mut backoff = Backoff::reconnect();
    for look in 0_u64.. {
        match broker.depth(Queue::Intents).await {
            Ok(depth) => {
                workers.store(depth.consumers.max(1), Ordering::Relaxed);
                backoff.reset();
                let often = look < FIRST_LOOKS;
                tokio::time::sleep(if often { LOOK_OFTEN } else { LOOK_SELDOM }).await;
            }
            Err(error) => {
                tracing::debug!(%error, "can't count the workers");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn report(tally: Arc<Tally>) {
    let mut before = 0;
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let total = tally.total();
        if total != before {
            tally.log("working");
        }
        before = total;
    }
}
