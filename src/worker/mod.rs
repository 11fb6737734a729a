//! The worker: takes intents through the stages of an order, from the queue to its decision.
//!
//! Proposing and deciding each go batch by batch in queue order; while the ledger decides a batch the
//! next one grows and is proposed. What follows, amending, publishing and acknowledging, runs for several
//! batches at once, so that all servers work at the same time.

mod amend;
mod batch;
mod batcher;
mod blocked;
mod check;
mod decide;
mod intake;
mod line;
mod parse;
mod propose;
mod publish;
mod tally;
mod verify;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::broker::{Broker, BrokerError, Queue};
use crate::clock::Clock;
use crate::config::Settings;
use crate::inventory::Inventory;
use crate::ledger::Ledger;
use crate::outage::Outage;
use crate::retry::Backoff;
use crate::sales::announce::announce;
use crate::verification::Verifier;
use amend::amend;
use batcher::Batcher;
use blocked::Blocked;
use decide::{DecidedBatch, Decider, Seen};
use intake::{Intake, Next};
use propose::{ProposedBatch, Proposer};
use publish::Outlet;
use tally::Tally;
use verify::Verification;

pub use decide::{ORDER_ID_CONFLICT, UNDECIDABLE, UNKNOWN_SALE};

/// How often a busy worker says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// How often the workers on the queue are counted: for the first few times, and then.
const LOOK_OFTEN: Duration = Duration::from_millis(50);
const FIRST_LOOKS: u64 = 100;
const LOOK_SELDOM: Duration = Duration::from_secs(2);

/// How often a worker looks for announcements that another one has left unpublished.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);

/// A worker and its dependencies.
pub struct Worker {
    /// Where intents come from and decisions go.
    pub broker: Arc<dyn Broker>,
    /// Gives hints; without it the ledger decides without any.
    pub inventory: Option<Arc<dyn Inventory>>,
    /// Decides.
    pub ledger: Arc<dyn Ledger>,
    /// Checks users; without it, orders of sales that want it wait until they are too old.
    pub verifier: Option<Arc<dyn Verifier>>,
    /// The time, for delays only: orders are decided by the ledger's clock.
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

/// Finishes batches that are decided.
struct Finisher {
    inventory: Option<Arc<dyn Inventory>>,
    outlet: Outlet,
}

impl Worker {
    /// Works until `stop`, then takes no more deliveries, finishes those in flight and leaves.
    pub async fn run(self, stop: CancellationToken) -> Result<(), WorkerError> {
        let deadline = self.settings.worker.drain_deadline();
        let tally = Arc::new(Tally::default());
        let _reporter =
            AbortOnDropHandle::new(tokio::spawn(report(tally.clone(), self.broker.clone())));
        let sold_out = Arc::new(Notify::new());
        let announcing =
            keep_announcing(self.ledger.clone(), self.broker.clone(), sold_out.clone());
        let _announcer = AbortOnDropHandle::new(tokio::spawn(announcing));
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(deadline).await;
        };
        let workers = Arc::new(AtomicU32::new(1));
        let counting = count_workers(self.broker.clone(), workers.clone());
        let _counter = AbortOnDropHandle::new(tokio::spawn(counting));
        let ended = tokio::select! {
            biased;
            worked = self.work(tally.clone(), workers, sold_out, &stop) => worked.map_err(WorkerError::from),
            () = too_late => Err(WorkerError::NotDrained(deadline)),
        };
        let how = if ended.is_ok() { "drained" } else { "ended" };
        tally.log(how, self.broker.dropped_replies());
        ended
    }

    async fn work(
        &self,
        tally: Arc<Tally>,
        workers: Arc<AtomicU32>,
        sold_out: Arc<Notify>,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let settings = &self.settings;
        let limits = settings.intent.limits();
        let take_apart = move |delivery| parse::take_apart(delivery, limits);
        let (prefetch, max_batch) = (settings.broker.prefetch, settings.worker.max_batch);
        let batcher =
            Batcher::consume(self.broker.as_ref(), prefetch, max_batch, take_apart).await?;
        let (tell, seen) = mpsc::unbounded_channel();
        let mut intake = Intake {
            batcher,
            verification: Verification::new(
                self.verifier.clone(),
                settings,
                self.clock.clone(),
                workers,
            ),
            seen,
            unseen: 0,
            stopping: false,
            exhausted: false,
        };
        let mut proposer = self.proposer();
        // One batch waits, proposed, while another one is decided.
        let (to_decide, next) = mpsc::channel(1);
        let deciding = self.decide_all(tally, sold_out, next, tell);
        let deciding = AbortOnDropHandle::new(tokio::spawn(deciding));
        tracing::info!("consuming");
        let mut room = None;
        loop {
            // Waiting for room before taking a batch lets the batch grow meanwhile.
            tokio::select! {
                biased;
                reserved = to_decide.reserve(), if room.is_none() => match reserved {
                    Ok(permit) => room = Some(permit),
                    Err(_) => break,
                },
                // Deciding ends by itself only in a panic.
                () = to_decide.closed() => break,
                next = intake.next(room.is_some(), stop) => match next {
                    Next::Seen => {}
                    Next::End => break,
                    Next::Propose(batch) => {
                        let batch = proposer.propose(batch).await;
                        intake.unseen += 1;
                        if let Some(permit) = room.take() {
                            permit.send(batch);
                        }
                    }
                },
            }
        }
        drop(room);
        drop(to_decide);
        propagate(deciding.await);
        intake.batcher.finished().await;
        Ok(())
    }

    /// Decides batch after batch, and finishes up to `batches_in_flight` of them at the same time. Ends
    /// when no more come and all are finished.
    fn decide_all(
        &self,
        tally: Arc<Tally>,
        sold_out: Arc<Notify>,
        mut batches: mpsc::Receiver<ProposedBatch>,
        tell: mpsc::UnboundedSender<Seen>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let max_age = self.settings.intent.max_age();
        let decider = Decider { ledger: self.ledger.clone(), max_age, tally: tally.clone() };
        let finisher = Arc::new(Finisher {
            inventory: self.inventory.clone(),
            outlet: Outlet { broker: self.broker.clone(), tally, blocked: Blocked::default() },
        });
        let slots = Arc::new(Semaphore::new(self.settings.worker.batches_in_flight));
        async move {
            let mut finishing = JoinSet::new();
            while let Some(batch) = batches.recv().await {
                let (batch, seen) = decider.decide(batch).await;
                if seen.sold_out {
                    sold_out.notify_one();
                }
                // Without a receiver the worker is ending.
                let _ = tell.send(seen);
                if !batch.is_empty() {
                    let slot = slot(&slots).await;
                    finishing.spawn(finisher.clone().finish(batch, slot));
                }
                while let Some(finished) = finishing.try_join_next() {
                    propagate(finished);
                }
            }
            while let Some(finished) = finishing.join_next().await {
                propagate(finished);
            }
        }
    }

    fn proposer(&self) -> Proposer {
        Proposer {
            inventory: self.inventory.clone(),
            ledger: self.ledger.clone(),
            when_unavailable: self.settings.inventory.when_unavailable,
            retry_after: self.settings.inventory.retry_after(),
            max_age: self.settings.intent.max_age(),
            unavailable_until: None,
            outage: Outage::new("Redis"),
        }
    }
}

impl Finisher {
    async fn finish(self: Arc<Self>, mut batch: DecidedBatch, _slot: OwnedSemaphorePermit) {
        let amendments = std::mem::take(&mut batch.amendments);
        let amending = self.inventory.as_deref().map(|inventory| amend(inventory, &amendments));
        // Subscribers do not wait for the inventory.
        tokio::join!(self.outlet.publish(batch), OptionFuture::from(amending));
    }
}

/// A place for one more batch in flight.
async fn slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match slots.clone().acquire_owned().await {
        Ok(slot) => slot,
        Err(_) => unreachable!("the semaphore is never closed"),
    }
}

/// Publishes what is owed to subscribers when a sale has sold out here, and now and then what another
/// process has left, for as long as it is polled.
async fn keep_announcing(ledger: Arc<dyn Ledger>, broker: Arc<dyn Broker>, sold_out: Arc<Notify>) {
    loop {
        if let Err(error) = announce(ledger.as_ref(), broker.as_ref()).await {
            tracing::debug!(%error, "cannot announce yet");
        }
        tokio::select! {
            biased;
            () = sold_out.notified() => {}
            () = tokio::time::sleep(ANNOUNCE_EVERY) => {}
        }
    }
}

/// A batch that panicked holds deliveries that nobody settles; better to end here and now, and let
/// the broker deliver them to somebody else.
fn propagate(finished: Result<(), JoinError>) {
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

async fn report(tally: Arc<Tally>, broker: Arc<dyn Broker>) {
    let mut before = 0;
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let total = tally.total();
        if total != before {
            tally.log("working", broker.dropped_replies());
        }
        before = total;
    }
}
