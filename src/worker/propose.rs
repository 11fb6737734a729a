//! Propose: ask the inventory for outcomes, in queue order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::batch::{Batch, Entry, Parked, PutOff};
use super::reconcile::Touched;
use crate::config::WhenUnavailable;
use crate::decision::{Decision, Outcome, Reason};
use crate::fault::crash_point;
use crate::inventory::{Inventory, InventoryError, Proposal, Proposals};
use crate::ledger::{Ledger, LedgerError};
use crate::order::{Candidate, Clearance, Order, OrderKey, SaleId};
use crate::retry::Backoff;
use crate::sale::{Phase, SaleState};
use crate::watch::SaleWatch;

/// Reason of a dead letter whose sale is not open: an operator's slip, to be redriven.
pub const UNKNOWN_SALE: &str = "unknown_sale";
/// Reason of a dead letter whose order id was used before for another order.
pub const ORDER_ID_CONFLICT: &str = "order_id_conflict";

/// Who proposed a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The inventory has answered.
    Inventory,
    /// The inventory is away: every order is proposed as created, and the ledger decides. Such
    /// batches must be recorded one after the other, or later orders could overtake earlier ones.
    LedgerAlone,
}

/// A batch with its proposals.
pub(super) struct ProposedBatch {
    pub entries: Vec<ProposedEntry>,
    pub parked: Vec<Parked>,
    pub put_off: Vec<PutOff>,
    pub source: Source,
}

impl ProposedBatch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.parked.is_empty() && self.put_off.is_empty()
    }
}

/// Orders that get no proposal until their users are checked.
pub(super) struct Unchecked {
    pub entries: Vec<Entry>,
    /// Units left of the sales that the whole batch was about.
    pub left: HashMap<SaleId, u32>,
}

/// An order with the outcome proposed for it.
pub(super) struct ProposedEntry {
    pub entry: Entry,
    pub decision: Decision,
    /// The inventory took stock for it just now.
    pub deducted: bool,
    /// The inventory had answered it before.
    pub repeat: bool,
}

/// Asks the inventory, or stands in for it.
pub(super) struct Proposer {
    pub inventory: Arc<dyn Inventory>,
    pub ledger: Arc<dyn Ledger>,
    pub watch: Arc<SaleWatch>,
    pub when_unavailable: WhenUnavailable,
    pub retry_after: Duration,
    pub touched: Touched,
    /// Leave the inventory alone until then.
    pub away_until: Option<Instant>,
}

impl Proposer {
    /// Gives every order of `batch` a proposal, but for those whose users are to be checked first;
    /// orders that can't get one are parked. Returns only when all have one, however long a server
    /// is away.
    pub(super) async fn propose(
        &mut self,
        batch: Batch,
        now: DateTime<Utc>,
    ) -> (ProposedBatch, Unchecked) {
        let Batch { entries, mut parked, put_off } = batch;
        let (Proposals { answers, left }, source) = self.proposals(&entries).await;
        let mut proposed = Vec::with_capacity(entries.len());
        let mut unchecked = Vec::new();
        for (entry, proposal) in entries.into_iter().zip(answers) {
            match proposal {
                Proposal::Decided { outcome, fresh } => {
                    let order = entry.candidate.order.clone();
                    let deducted =
                        fresh && outcome == Outcome::Created && source == Source::Inventory;
                    let decision = Decision { order, outcome, decided_at: now };
                    proposed.push(ProposedEntry { entry, decision, deducted, repeat: !fresh });
                }
                Proposal::Unchecked => unchecked.push(entry),
                Proposal::Conflict => parked.push(conflict(entry)),
                Proposal::Absent => parked.push(unknown_sale(entry)),
            }
        }
        crash_point("proposed");
        let proposed = ProposedBatch { entries: proposed, parked, put_off, source };
        (proposed, Unchecked { entries: unchecked, left })
    }

    async fn proposals(&mut self, entries: &[Entry]) -> (Proposals, Source) {
        if entries.is_empty() {
            return (Proposals::default(), Source::Inventory);
        }
        let mut backoff = Backoff::step();
        loop {
            if self.away_until.is_none_or(|until| until <= Instant::now()) {
                match self.ask_inventory(entries).await {
                    Ok(proposals) => {
                        if self.away_until.take().is_some() {
                            tracing::info!("inventory is back");
                        }
                        return (proposals, Source::Inventory);
                    }
                    Err(error) => {
                        if self.away_until.is_none() {
                            tracing::warn!(%error, mode = ?self.when_unavailable, "inventory is away");
                        }
                        self.away_until = Some(Instant::now() + self.retry_after);
                    }
                }
            }
            match self.when_unavailable {
                WhenUnavailable::Ledger => match self.stand_in(entries).await {
                    Ok(proposals) => return (proposals, Source::LedgerAlone),
                    Err(error) => tracing::warn!(%error, "can't look up sales"),
                },
                WhenUnavailable::Wait => {}
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// The inventory's answers; sales that it doesn't hold are loaded once. What is absent after
    /// that is unknown to the ledger.
    async fn ask_inventory(&self, entries: &[Entry]) -> Result<Proposals, InventoryError> {
        let mut candidates: Vec<_> = entries.iter().map(|entry| entry.candidate.clone()).collect();
        let mut proposals = self.inventory.propose(&candidates).await?;
        let absent: Vec<usize> =
            (0..entries.len()).filter(|&i| proposals.answers[i] == Proposal::Absent).collect();
        if !absent.is_empty() {
            let sales: BTreeSet<SaleId> =
                absent.iter().map(|&place| candidates[place].order.sale_id.clone()).collect();
            let sales: Vec<SaleId> = sales.into_iter().collect();
            let states =
                self.ledger.sales(Some(&sales)).await.map_err(|e| InventoryError(e.into()))?;
            if !states.is_empty() {
                self.inventory.prime(&states).await?;
                candidates = absent.iter().map(|&place| candidates[place].clone()).collect();
                let again = self.inventory.propose(&candidates).await?;
                for (place, answer) in absent.into_iter().zip(again.answers) {
                    proposals.answers[place] = answer;
                }
                proposals.left.extend(again.left);
            }
        }
        self.touched.note(entries.iter().map(|entry| &entry.candidate.order.sale_id));
        self.watch.note(entries.iter().map(|entry| &entry.candidate.order.sale_id));
        Ok(proposals)
    }

    /// Without an inventory: everything is proposed as created, but for orders that are refused, those
    /// whose users are to be checked, and sales that the ledger doesn't know.
    async fn stand_in(&self, entries: &[Entry]) -> Result<Proposals, LedgerError> {
        let sales: BTreeSet<SaleId> =
            entries.iter().map(|entry| entry.candidate.order.sale_id.clone()).collect();
        let sales: Vec<SaleId> = sales.into_iter().collect();
        let states = self.ledger.sales(Some(&sales)).await?;
        let known: HashMap<_, _> = states.iter().map(|state| (&state.sale.id, state)).collect();
        let decided = self.decided_unchecked(entries, &known).await?;
        let answers = entries.iter().map(|entry| {
            let candidate = &entry.candidate;
            let Some(state) = known.get(&candidate.order.sale_id) else { return Proposal::Absent };
            let fresh = true;
            match candidate.clearance {
                Clearance::Refused(reason) => {
                    Proposal::Decided { outcome: Outcome::Rejected(reason), fresh }
                }
                Clearance::Unchecked if state.sale.verification => {
                    match decided.get(&candidate.order.key()) {
                        Some(&outcome) => Proposal::Decided { outcome, fresh: false },
                        None => unchecked(candidate, state),
                    }
                }
                _ => Proposal::Decided { outcome: Outcome::Created, fresh },
            }
        });
        let answers = answers.collect();
        let left = states.iter().map(|state| (state.sale.id.clone(), state.remaining())).collect();
        Ok(Proposals { answers, left })
    }

    /// What the ledger has decided of the orders whose users would have to be checked.
    async fn decided_unchecked(
        &self,
        entries: &[Entry],
        known: &HashMap<&SaleId, &SaleState>,
    ) -> Result<HashMap<OrderKey, Outcome>, LedgerError> {
        let orders: Vec<OrderKey> = entries
            .iter()
            .map(|entry| &entry.candidate)
            .filter(|candidate| candidate.clearance == Clearance::Unchecked)
            .map(|candidate| &candidate.order)
            .filter(|order| known.get(&order.sale_id).is_some_and(|state| state.sale.verification))
            .map(Order::key)
            .collect();
        if orders.is_empty() {
            return Ok(HashMap::new());
        }
        let decided = self.ledger.decisions(&orders).await?.into_iter().flatten();
        Ok(decided.map(|decision| (decision.order.key(), decision.outcome)).collect())
    }
}

/// What becomes of an order whose user is not checked: nothing yet, unless the sale as the ledger
/// knows it speaks against it.
fn unchecked(candidate: &Candidate, state: &SaleState) -> Proposal {
    let outcome = match state.phase(candidate.at) {
        Phase::NotOpen => Outcome::Rejected(Reason::NotOpen),
        Phase::Closed => Outcome::Rejected(Reason::Closed),
        Phase::Open if candidate.order.quantity.get() <= state.remaining() => {
            return Proposal::Unchecked;
        }
        Phase::Open | Phase::SoldOut => Outcome::SoldOut,
    };
    Proposal::Decided { outcome, fresh: true }
}

/// Parks an order whose id was used before for another one.
pub(super) fn conflict(entry: Entry) -> Parked {
    let id = &entry.candidate.order.id;
    let detail = format!("order id {id} was decided before for another sale, user or quantity");
    entry.park(ORDER_ID_CONFLICT, detail)
}

fn unknown_sale(entry: Entry) -> Parked {
    let sale = &entry.candidate.order.sale_id;
    let detail = format!("sale {sale} is not open; open it and redrive: floodgate sale open");
    entry.park(UNKNOWN_SALE, detail)
}
