//! The worker: takes intents through the stages of an order, from the queue to its decision.
//!
//! Proposing and deciding each go batch by batch in queue order; while the ledger decides a batch the
//! next one grows and is proposed. What follows, amending, publishing and acknowledging, runs for several
//! batches at once, so that all servers work at the same time.

mod amend;
mod batch;
mod batcher;
mod blocked;
mod decide;
mod intake;
mod outgoing;
mod parse;
mod propose;
mod publish;
mod report;
mod settings;
mod steer;
mod verify;
mod wait;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::broker::{Broker, BrokerError, Queue};
use crate::clock::Clock;
use crate::domain::order::SaleId;
use crate::inventory::Inventory;
use crate::ledger::{Ledger, MAX_ANNOUNCEMENTS};
use crate::metrics::{Dependency, Metrics, Stage};
use crate::outage::Outage;
use crate::retry::Backoff;
use crate::sales::announce::{announce, announce_left};
use crate::shards::ShardMap;
use crate::status::WorkerHealth;
use crate::traces::Traces;
use crate::verification::{Limits, Verification, Verifier};
use amend::{FollowUps, amend, remember};
use batcher::Batcher;
use blocked::Blocked;
use decide::{DecidedBatch, Decider, Seen};
use intake::{Intake, Next};
use propose::{ProposedBatch, Proposer};
use publish::EventPublisher;
use report::{log, report};
use steer::steer;
use verify::Verify;

pub use settings::{Options, WorkerSettings};

pub use decide::{ORDER_ID_CONFLICT, UNDECIDABLE, UNKNOWN_SALE, dead_letter_reasons};
pub use outgoing::Outgoing;

/// How often the workers on the queue are counted: for the first few times, and then.
const LOOK_OFTEN: Duration = Duration::from_millis(50);
const FIRST_LOOKS: u64 = 100;
const LOOK_SELDOM: Duration = Duration::from_secs(2);

/// How long a worker that ends may take to leave its shards to the others.
const LEAVING: Duration = Duration::from_secs(1);

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
    /// Says which shards of the intake it takes; without it the intake is not divided.
    pub shard_map: Option<Arc<dyn ShardMap>>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it is recorded what becomes of orders.
    pub traces: Traces,
    /// Where it shows that it moves.
    pub health: Arc<WorkerHealth>,
    /// The time, for delays only: orders are decided by the ledger's clock.
    pub clock: Clock,
    /// What it is told.
    pub options: Options,
}

/// Why a worker ended other than by being stopped and drained.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The queue can't be consumed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It didn't finish in time. What was in flight goes back to the queue.
    #[error("not drained within {0:?}; what was in flight goes back to the queue")]
    NotDrained(Duration),
}

/// Amends, publishes and acknowledges batches that are decided.
struct Committer {
    inventory: Option<Arc<dyn Inventory>>,
    metrics: Arc<Metrics>,
    publisher: EventPublisher,
}

impl Worker {
    /// Works until `stop`, then takes no more deliveries, finishes those in flight and leaves.
    pub async fn run(self, stop: CancellationToken) -> Result<(), WorkerError> {
        let deadline = self.options.worker.drain_deadline;
        self.metrics.worker.expect_dead_letters(dead_letter_reasons());
        let _reporter =
            AbortOnDropHandle::new(tokio::spawn(report(self.metrics.clone(), self.health.clone())));
        let (sold_out, to_announce) = mpsc::unbounded_channel();
        let announcing = keep_announcing(self.ledger.clone(), self.broker.clone(), to_announce);
        let _announcer = AbortOnDropHandle::new(tokio::spawn(announcing));
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(deadline).await;
        };
        let workers = Arc::new(AtomicU32::new(1));
        let counting = count_workers(self.broker.clone(), workers.clone());
        let _counter = AbortOnDropHandle::new(tokio::spawn(counting));
        let steering =
            self.shard_map.clone().map(|map| steer(map, self.broker.clone(), stop.clone()));
        let steerer = steering.map(|steering| AbortOnDropHandle::new(tokio::spawn(steering)));
        let ended = tokio::select! {
            biased;
            worked = self.work(workers, sold_out, &stop) => worked.map_err(WorkerError::from),
            () = too_late => Err(WorkerError::NotDrained(deadline)),
        };
        if let Some(steerer) = steerer.filter(|_| stop.is_cancelled()) {
            // It leaves the shards to the others; if it cannot, they notice that it is silent.
            let _ = tokio::time::timeout(LEAVING, steerer).await;
        }
        let how = if ended.is_ok() { "drained" } else { "ended" };
        log(how, &self.metrics);
        ended
    }

    async fn work(
        &self,
        workers: Arc<AtomicU32>,
        sold_out: mpsc::UnboundedSender<SaleId>,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let options = &self.options;
        let limits = options.limits;
        let traces = self.traces.clone();
        let parse = move |delivery| parse::parse(delivery, limits, &traces);
        let (prefetch, max_batch) = (options.prefetch, options.worker.max_batch);
        let batcher = Batcher::consume(self.broker.as_ref(), prefetch, max_batch, parse).await?;
        let (tell, seen) = mpsc::unbounded_channel();
        let mut intake = Intake {
            batcher,
            verification: self.verify(workers),
            seen,
            unseen: 0,
            taken_at: None,
            stopping: false,
            exhausted: false,
        };
        let mut proposer = self.proposer();
        // One batch waits, proposed, while another one is decided.
        let (to_decide, next) = mpsc::channel(1);
        let deciding = self.decide_all(sold_out, next, tell);
        let deciding = AbortOnDropHandle::new(tokio::spawn(deciding));
        tracing::info!("consuming");
        self.health.set_consuming(true);
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
        self.health.set_consuming(false);
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
        sold_out: mpsc::UnboundedSender<SaleId>,
        mut batches: mpsc::Receiver<ProposedBatch>,
        tell: mpsc::UnboundedSender<Seen>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let max_age = self.options.max_age;
        let batches_in_flight = self.options.worker.batches_in_flight;
        // Besides those that are committed, one is decided, one waits and one is proposed.
        let follow_ups = FollowUps::new(batches_in_flight + 3);
        let metrics = self.metrics.clone();
        let mut decider = Decider {
            inventory: self.inventory.clone(),
            ledger: self.ledger.clone(),
            max_age,
            metrics: metrics.clone(),
            clock: self.clock.clone(),
            follow_ups,
        };
        let committer = Arc::new(Committer {
            inventory: self.inventory.clone(),
            metrics: metrics.clone(),
            publisher: EventPublisher {
                broker: self.broker.clone(),
                metrics,
                blocked: Blocked::default(),
                settings: self.options.events,
            },
        });
        let permits = Arc::new(Semaphore::new(batches_in_flight));
        async move {
            let mut committing = JoinSet::new();
            while let Some(batch) = batches.recv().await {
                let (batch, mut seen) = decider.decide(batch).await;
                // Without a receiver the worker is ending.
                for sale in seen.sold_out.drain() {
                    let _ = sold_out.send(sale);
                }
                let _ = tell.send(seen);
                if !batch.is_empty() {
                    let permit = permit(&permits).await;
                    committing.spawn(committer.clone().commit(batch, permit));
                }
                while let Some(committed) = committing.try_join_next() {
                    propagate(committed);
                }
            }
            while let Some(committed) = committing.join_next().await {
                propagate(committed);
            }
        }
    }

    fn verify(&self, workers: Arc<AtomicU32>) -> Verify {
        let options = &self.options;
        let limits = Limits {
            // The other half is for the orders that need no check.
            max_waiting: usize::from(options.prefetch / 2).max(1),
            max_batch: options.worker.max_batch,
        };
        let verifier = self.verifier.clone();
        let metrics = self.metrics.verification(verifier.is_some());
        let verification =
            Verification::new(verifier, &options.verification, limits, workers, metrics);
        Verify { verification, clock: self.clock.clone() }
    }

    fn proposer(&self) -> Proposer {
        Proposer {
            inventory: self.inventory.clone(),
            ledger: self.ledger.clone(),
            when_unavailable: self.options.inventory.when_unavailable,
            retry_after: self.options.inventory.retry_after,
            max_age: self.options.max_age,
            unavailable_until: None,
            metrics: self.metrics.clone(),
            traces: self.traces.clone(),
            outage: Outage::new(self.metrics.dependencies.of(Dependency::Redis)),
        }
    }
}

impl Committer {
    async fn commit(self: Arc<Self>, mut batch: DecidedBatch, _permit: OwnedSemaphorePermit) {
        let amendments = std::mem::take(&mut batch.amendments);
        let committed = std::mem::take(&mut batch.committed);
        let amending = self.inventory.as_deref().map(|inventory| async {
            let _timer = self.metrics.worker.time(Stage::Amend);
            amend(inventory, &amendments).await;
            remember(inventory, &committed).await;
        });
        let publishing = async {
            let _timer = self.metrics.worker.time(Stage::Publish);
            self.publisher.publish(batch).await;
        };
        // Subscribers do not wait for the inventory.
        tokio::join!(publishing, OptionFuture::from(amending));
    }
}

/// A permit for one more batch in flight.
async fn permit(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match permits.clone().acquire_owned().await {
        Ok(permit) => permit,
        Err(_) => unreachable!("the semaphore is never closed"),
    }
}

/// Publishes what is owed to subscribers of the sales that have sold out here, and now and then what another
/// process has left, for as long as it is polled. Workers which all published everything at once would repeat
/// each other where many sales end.
async fn keep_announcing(
    ledger: Arc<dyn Ledger>,
    broker: Arc<dyn Broker>,
    mut sold_out: mpsc::UnboundedReceiver<SaleId>,
) {
    let mut everything = tokio::time::interval(ANNOUNCE_EVERY);
    everything.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sales, mut seen) = (Vec::new(), HashSet::new());
    loop {
        let announced = tokio::select! {
            biased;
            _ = everything.tick() => announce_left(ledger.as_ref(), broker.as_ref(), &mut seen).await,
            // Nothing comes when the worker is ending.
            1.. = sold_out.recv_many(&mut sales, MAX_ANNOUNCEMENTS) => {
                announce(ledger.as_ref(), broker.as_ref(), &sales).await
            }
        };
        if let Err(error) = announced {
            tracing::debug!(%error, "cannot announce yet");
        }
        sales.clear();
    }
}

/// A batch that panicked holds deliveries that are never settled; better to end here and now, and let
/// the broker deliver them again.
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
