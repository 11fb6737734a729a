//! Decide: have the ledger decide a batch, whatever the hints were.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::SubsecRound;
use tokio::time::Instant;

use super::amend::{FollowUps, amendments, overruled};
use super::batch::{Batch, Deferred, Entry, PendingDeadLetter};
use super::propose::ProposedBatch;
use super::wait::{age, held};
use crate::clock::Clock;
use crate::domain::decision::Decision;
use crate::domain::intent::Fault;
use crate::domain::order::{Eligibility, Order, SaleId, UserId};
use crate::domain::rules::{Answer, Until};
use crate::domain::sale::{SaleState, Watermark};
use crate::fault::crash_point;
use crate::inventory::{Amendment, Inventory};
use crate::ledger::{Change, Changed, Decided, Ledger, LedgerError, Proposed};
use crate::metrics::{Metrics, Stage};
use crate::retry::Backoff;
use crate::traces::Traced;

/// Reason of a dead letter whose sale is not there: not opened yet, or another id was meant.
pub const UNKNOWN_SALE: &str = "unknown_sale";
/// Reason of a dead letter whose order id was used before for another order of the sale.
pub const ORDER_ID_CONFLICT: &str = "order_id_conflict";
/// Reason of a dead letter that the ledger refuses every time.
pub const UNDECIDABLE: &str = "undecidable";

/// The reasons of a worker's dead letters.
pub fn dead_letter_reasons() -> impl Iterator<Item = &'static str> {
    let of_orders = [UNKNOWN_SALE, ORDER_ID_CONFLICT, UNDECIDABLE];
    Fault::ALL.into_iter().map(Fault::name).chain(of_orders)
}

/// When it is logged that a ledger which answers cannot decide.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// A batch whose decisions are final.
#[derive(Default)]
pub(super) struct DecidedBatch {
    pub decided: Vec<Settled>,
    pub dead_letters: Vec<PendingDeadLetter>,
    pub deferred: Vec<Deferred>,
    pub amendments: Vec<Amendment>,
    /// Sales as it has left them, where that is further than the inventory knew.
    pub committed: Vec<SaleState>,
    pub traced: Traced,
}

/// An order with its decision.
pub(super) struct Settled {
    pub entry: Entry,
    pub decision: Decision,
    /// It was decided just now, and not before.
    pub is_new: bool,
}

impl DecidedBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Orders in it.
    pub(super) fn len(&self) -> usize {
        self.decided.len() + self.dead_letters.len() + self.deferred.len()
    }
}

/// What verification has to know of a batch that the ledger has seen.
#[derive(Default)]
pub(super) struct Seen {
    /// Orders whose users are to be verified, each with the time that the ledger gave it.
    pub unchecked: Vec<Entry>,
    /// Units left of the batch's sales.
    pub left: HashMap<SaleId, u32>,
    /// Users who were verified, of orders that need no more decision.
    pub settled: Vec<(SaleId, UserId)>,
    /// Sales that have sold their last unit.
    pub sold_out: HashSet<SaleId>,
}

/// Has batches decided.
pub(super) struct Decider {
    pub inventory: Option<Arc<dyn Inventory>>,
    pub ledger: Arc<dyn Ledger>,
    pub max_age: Duration,
    pub metrics: Arc<Metrics>,
    /// The time, for delays only.
    pub clock: Clock,
    /// Sales to be amended again.
    pub follow_ups: FollowUps,
}

impl Decider {
    /// Decides a batch. Returns only when its decisions are stored, however long the ledger is
    /// unavailable.
    pub(super) async fn decide(&mut self, proposed: ProposedBatch) -> (DecidedBatch, Seen) {
        let ProposedBatch { batch, proposal, is_proposed, primed, traced } = proposed;
        let Batch { entries, dead_letters, deferred } = batch;
        let orders: Vec<Proposed<'_>> = entries
            .iter()
            .zip(&proposal.hints)
            .map(|(entry, hint)| Proposed {
                candidate: &entry.candidate,
                hint: *hint,
                redelivered: entry.handle.redelivered(),
                watermark: proposal.watermarks.get(&entry.candidate.order.sale_id).copied(),
            })
            .collect();
        let mut result = Decided::default();
        let timer = self.metrics.worker.time(Stage::Decide);
        let part = traced.as_ref().map(|batch| batch.part("decide"));
        let answers = self.persist(&orders, &mut result).await;
        drop((timer, part));
        self.observe(&orders, &answers, &result);
        crash_point("decided");
        self.hold_restored(&result).await;
        let mut amendments = amendments(&orders, &answers, &result);
        self.follow_ups.add(&mut amendments, primed, &result.sales);
        drop(orders);
        let mut decided =
            DecidedBatch { dead_letters, deferred, amendments, traced, ..DecidedBatch::default() };
        if is_proposed {
            let is_news = |state: &&SaleState| {
                let known = proposal.watermarks.get(&state.sale.id);
                known.is_none_or(|known| Watermark::of(state).is_lost_in(*known))
            };
            decided.committed = result.sales.values().filter(is_news).cloned().collect();
        }
        let left = result.sales.iter().map(|(id, state)| (id.clone(), state.remaining())).collect();
        let mut seen = Seen { left, ..Seen::default() };
        for (entry, answer) in entries.into_iter().zip(answers) {
            self.apply(entry, answer, &mut decided, &mut seen);
        }
        let sold = decided.decided.iter().filter(|Settled { decision, .. }| {
            let state = result.sales.get(&decision.order.sale_id);
            state.is_some_and(|state| state.sold_out_at == Some(decision.decided_at))
        });
        seen.sold_out =
            sold.map(|Settled { decision, .. }| decision.order.sale_id.clone()).collect();
        (decided, seen)
    }

    /// Holds sales of which the ledger has lost what it had committed, until an operator accepts it: unless one
    /// has since the batch was proposed.
    async fn hold_restored(&self, result: &Decided) {
        for sale in &result.lost {
            let Some(committed) = self.watermark(sale).await else { continue };
            let Some(seen) = result.sales.get(sale) else {
                tracing::error!(
                    %sale, committed_sold = committed.sold,
                    "the ledger has lost this sale: its orders wait; open it again, and see: floodgate sale accept-ledger"
                );
                continue;
            };
            if !committed.is_lost_in(Watermark::of(seen)) {
                continue;
            }
            let change =
                Change::Lost { version: seen.version, at: (self.clock)().trunc_subsecs(3) };
            match self.ledger.change(sale, &change).await {
                Ok(Changed::Done { state, is_new: true, .. }) => tracing::error!(
                    %sale, committed_sold = committed.sold, ledger_sold = state.sold,
                    "the ledger has lost what it had committed: the sale is held; see: floodgate sale accept-ledger"
                ),
                Ok(_) => {}
                // The next batch holds it.
                Err(error) => tracing::debug!(%sale, %error, "cannot hold a sale"),
            }
        }
    }

    /// How far the ledger had committed a sale, if the inventory says so now.
    async fn watermark(&self, sale: &SaleId) -> Option<Watermark> {
        self.inventory.as_ref()?.watermark(sale).await.unwrap_or_else(|error| {
            // The next batch asks again.
            tracing::debug!(%sale, %error, "cannot read how far a sale is committed");
            None
        })
    }

    /// Counts what the ledger has said.
    fn observe(
        &self,
        orders: &[Proposed<'_>],
        answers: &[Result<Answer, String>],
        result: &Decided,
    ) {
        let metrics = &self.metrics.worker;
        if !orders.is_empty() {
            metrics.batch(orders.len());
        }
        metrics.units(result.sales.values());
        for (order, answer) in orders.iter().zip(answers) {
            if let Some(hint) = overruled(order, answer) {
                metrics.overruled(hint);
            }
        }
    }

    /// Puts an order where its answer says.
    fn apply(
        &self,
        mut entry: Entry,
        answer: Result<Answer, String>,
        decided: &mut DecidedBatch,
        seen: &mut Seen,
    ) {
        let candidate = &mut entry.candidate;
        if candidate.eligibility != Eligibility::Unchecked {
            let Order { sale_id, user_id, .. } = &candidate.order;
            seen.settled.push((sale_id.clone(), user_id.clone()));
        }
        if let Some(traced) = &mut entry.traced {
            traced.event("answered", [("answer", in_a_word(&answer).to_owned())]);
        }
        match answer {
            Ok(Answer::Decided { decision, is_new }) => {
                if is_new {
                    self.metrics.worker.decided(&decision);
                } else {
                    self.metrics.worker.duplicates.inc();
                }
                decided.decided.push(Settled { entry, decision, is_new });
            }
            Ok(Answer::Undecided { until, submitted_at }) => {
                // Later than the ledger's time is as good as missing: the order would never expire.
                if candidate.submitted_at.is_none_or(|at| at.trunc_subsecs(3) > submitted_at) {
                    candidate.submitted_at = Some(submitted_at);
                    entry.has_ledger_time = true;
                }
                match until {
                    Until::Verified => seen.unchecked.push(entry),
                    Until::Resumed => {
                        let delay = held(age(&entry, (self.clock)()), self.max_age);
                        decided.deferred.push(Deferred::order(entry, delay));
                    }
                }
            }
            Ok(Answer::Conflict) => decided.dead_letters.push(conflict(entry)),
            Ok(Answer::UnknownSale) => decided.dead_letters.push(unknown_sale(entry)),
            Err(detail) => decided.dead_letters.push(entry.dead_letter(UNDECIDABLE, detail)),
        }
    }

    /// Decides until it has worked. A batch that the ledger refuses is halved, so that one order it
    /// cannot take does not keep the others from being decided.
    async fn persist(
        &self,
        orders: &[Proposed<'_>],
        result: &mut Decided,
    ) -> Vec<Result<Answer, String>> {
        let mut backoff = Backoff::step();
        let (begun, mut told) = (Instant::now(), false);
        loop {
            match self.ledger.decide(orders, self.max_age).await {
                Ok(Decided { answers, sales, units, lost }) => {
                    self.metrics.worker.is_deciding_again.store(false, Ordering::Relaxed);
                    result.sales.extend(sales);
                    result.units.extend(units);
                    result.lost.extend(lost);
                    return answers.into_iter().map(Ok).collect();
                }
                Err(error @ LedgerError::Transient(_)) => {
                    self.metrics.worker.is_deciding_again.store(true, Ordering::Relaxed);
                    // That a server is unavailable is logged where it is noticed.
                    let is_down = self.metrics.dependencies.up().iter().any(|(_, up)| !up);
                    if !told && !is_down && begun.elapsed() > TELL_AFTER {
                        told = true;
                        tracing::warn!(%error, "the ledger cannot decide; it is asked again");
                    }
                    let delay = backoff.next_delay();
                    tracing::debug!(%error, ?delay, orders = orders.len(), "cannot decide");
                    tokio::time::sleep(delay).await;
                }
                Err(LedgerError::Permanent(error)) => {
                    let (left, right) = orders.split_at(orders.len() / 2);
                    if left.is_empty() {
                        tracing::error!(%error, "the ledger refuses an order");
                        return vec![Err(error.to_string())];
                    }
                    let mut answers = Box::pin(self.persist(left, result)).await;
                    answers.extend(Box::pin(self.persist(right, result)).await);
                    return answers;
                }
            }
        }
    }
}

/// An answer as it is recorded.
fn in_a_word(answer: &Result<Answer, String>) -> &'static str {
    match answer {
        Ok(Answer::Decided { decision, .. }) => decision.outcome.code(),
        Ok(Answer::Undecided { until: Until::Verified, .. }) => "unchecked",
        Ok(Answer::Undecided { until: Until::Resumed, .. }) => "held",
        Ok(Answer::Conflict) => ORDER_ID_CONFLICT,
        Ok(Answer::UnknownSale) => UNKNOWN_SALE,
        Err(_) => UNDECIDABLE,
    }
}

fn conflict(entry: Entry) -> PendingDeadLetter {
    let key = entry.candidate.order.key();
    let detail = format!("order {key} was decided before for another user or quantity");
    entry.dead_letter(ORDER_ID_CONFLICT, detail)
}

fn unknown_sale(entry: Entry) -> PendingDeadLetter {
    let sale = &entry.candidate.order.sale_id;
    let detail = format!(
        "there is no sale {sale}: open it and redrive if that is its id; else correct who sent it, and purge"
    );
    entry.dead_letter(UNKNOWN_SALE, detail)
}
