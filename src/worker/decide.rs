//! Decide: have the ledger decide a batch, whatever the hints were.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::SubsecRound;

use super::batch::{Batch, Deferred, Entry, Parked};
use super::propose::ProposedBatch;
use super::tally::Tally;
use crate::decision::{Decision, Hint};
use crate::fault::crash_point;
use crate::ledger::{Decided, Ledger, LedgerError, Proposed};
use crate::order::{Eligibility, Order, SaleId, UserId};
use crate::retry::Backoff;
use crate::rules::Answer;
use crate::sale::SaleState;

/// Reason of a dead letter whose sale is not open: an operator's slip, to be redriven.
pub const UNKNOWN_SALE: &str = "unknown_sale";
/// Reason of a dead letter whose order id was used before for another order of the sale.
pub const ORDER_ID_CONFLICT: &str = "order_id_conflict";
/// Reason of a dead letter that the ledger refuses every time.
pub const UNDECIDABLE: &str = "undecidable";

/// A batch whose decisions are final.
#[derive(Default)]
pub(super) struct DecidedBatch {
    pub decided: Vec<(Entry, Decision)>,
    pub parked: Vec<Parked>,
    pub deferred: Vec<Deferred>,
    pub corrections: Corrections,
}

impl DecidedBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.decided.is_empty() && self.parked.is_empty() && self.deferred.is_empty()
    }
}

/// Where the hints of a batch were wrong, and what the ledger says instead.
#[derive(Default)]
pub(super) struct Corrections {
    /// Orders that got another answer than the hint, and whether they have their units.
    pub orders: Vec<(Order, bool)>,
    pub sales: HashMap<SaleId, SaleState>,
    pub units: HashMap<(SaleId, UserId), u32>,
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
    /// A sale has sold its last unit.
    pub sold_out: bool,
}

/// Has batches decided.
pub(super) struct Decider {
    pub ledger: Arc<dyn Ledger>,
    pub max_age: Duration,
    pub tally: Arc<Tally>,
}

impl Decider {
    /// Decides a batch. Returns only when its decisions are stored, however long the ledger is
    /// unavailable.
    pub(super) async fn decide(&self, proposed: ProposedBatch) -> (DecidedBatch, Seen) {
        let ProposedBatch { batch: Batch { entries, parked, deferred }, hints } = proposed;
        let orders: Vec<Proposed<'_>> = entries
            .iter()
            .zip(&hints)
            .map(|(entry, hint)| Proposed {
                candidate: &entry.candidate,
                hint: *hint,
                redelivered: entry.ticket.redelivered(),
            })
            .collect();
        let mut result = Decided::default();
        let answers = self.persist(&orders, &mut result).await;
        crash_point("decided");
        let corrections = corrections(&orders, &answers, result);
        drop(orders);
        let mut decided = DecidedBatch { parked, deferred, corrections, ..DecidedBatch::default() };
        let mut seen = Seen::default();
        for (entry, answer) in entries.into_iter().zip(answers) {
            self.sort(entry, answer, &mut decided, &mut seen);
        }
        for (id, state) in &decided.corrections.sales {
            seen.left.insert(id.clone(), state.remaining());
        }
        let sold_out = |(_, decision): &(Entry, Decision)| {
            let state = decided.corrections.sales.get(&decision.order.sale_id);
            state.is_some_and(|state| state.sold_out_at == Some(decision.decided_at))
        };
        seen.sold_out = decided.decided.iter().any(sold_out);
        (decided, seen)
    }

    /// Puts an order where its answer sends it.
    fn sort(
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
        match answer {
            Ok(Answer::Decided { decision, is_new }) => {
                self.tally.decided(&decision, !is_new);
                decided.decided.push((entry, decision));
            }
            Ok(Answer::Unchecked { submitted_at }) => {
                // Later than the ledger's time is as good as missing: the order would never expire.
                if candidate.submitted_at.is_none_or(|at| at.trunc_subsecs(3) > submitted_at) {
                    candidate.submitted_at = Some(submitted_at);
                    entry.has_ledger_time = true;
                }
                seen.unchecked.push(entry);
            }
            Ok(Answer::Conflict) => decided.parked.push(conflict(entry)),
            Ok(Answer::UnknownSale) => decided.parked.push(unknown_sale(entry)),
            Err(detail) => decided.parked.push(entry.park(UNDECIDABLE, detail)),
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
        loop {
            match self.ledger.decide(orders, self.max_age).await {
                Ok(Decided { answers, sales, units }) => {
                    result.sales.extend(sales);
                    result.units.extend(units);
                    return answers.into_iter().map(Ok).collect();
                }
                Err(error @ LedgerError::Transient(_)) => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?delay, orders = orders.len(), "cannot decide");
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

/// The orders of which the answer is not what the hint has said.
fn corrections(
    orders: &[Proposed<'_>],
    answers: &[Result<Answer, String>],
    Decided { sales, units, .. }: Decided,
) -> Corrections {
    let mut wrong = Vec::new();
    let mut told = HashSet::new();
    // The last answer of an order that comes twice is the one to be told.
    for (proposed, answer) in orders.iter().zip(answers).rev() {
        let granted = answer.as_ref().is_ok_and(Answer::is_granted);
        let differs = proposed.hint.is_some_and(|hint| (hint == Hint::Granted) != granted);
        let order = &proposed.candidate.order;
        if differs && told.insert(order) {
            wrong.push((order.clone(), granted));
        }
    }
    Corrections { orders: wrong, sales, units }
}

fn conflict(entry: Entry) -> Parked {
    let key = entry.candidate.order.key();
    let detail = format!("order {key} was decided before for another user or quantity");
    entry.park(ORDER_ID_CONFLICT, detail)
}

fn unknown_sale(entry: Entry) -> Parked {
    let sale = &entry.candidate.order.sale_id;
    let detail = format!("sale {sale} is not open; open it and redrive: floodgate sale open");
    entry.park(UNKNOWN_SALE, detail)
}
