//! Propose: ask the inventory for outcomes, in queue order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::batch::{Batch, Entry, Parked};
use super::reconcile::Touched;
use crate::config::WhenUnavailable;
use crate::decision::{Decision, Outcome};
use crate::fault::crash_point;
use crate::inventory::{Inventory, InventoryError, Proposal};
use crate::ledger::Ledger;
use crate::order::SaleId;
use crate::retry::Backoff;
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
    pub source: Source,
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
    /// Gives every order of `batch` a proposal; those that can't get one are parked. Returns only
    /// when all have one, however long a server is away.
    pub(super) async fn propose(&mut self, batch: Batch, now: DateTime<Utc>) -> ProposedBatch {
        let Batch { entries, mut parked } = batch;
        let (proposals, source) = self.proposals(&entries).await;
        let mut proposed = Vec::with_capacity(entries.len());
        for (entry, proposal) in entries.into_iter().zip(proposals) {
            match proposal {
                Proposal::Decided { outcome, fresh } => {
                    let order = entry.candidate.order.clone();
                    let deducted =
                        fresh && outcome == Outcome::Created && source == Source::Inventory;
                    let decision = Decision { order, outcome, decided_at: now };
                    proposed.push(ProposedEntry { entry, decision, deducted, repeat: !fresh });
                }
                Proposal::Conflict => parked.push(conflict(entry)),
                Proposal::Absent => parked.push(unknown_sale(entry)),
            }
        }
        crash_point("proposed");
        ProposedBatch { entries: proposed, parked, source }
    }

    async fn proposals(&mut self, entries: &[Entry]) -> (Vec<Proposal>, Source) {
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
    async fn ask_inventory(&self, entries: &[Entry]) -> Result<Vec<Proposal>, InventoryError> {
        let mut candidates: Vec<_> = entries.iter().map(|entry| entry.candidate.clone()).collect();
        let mut proposals = self.inventory.propose(&candidates).await?;
        let absent: Vec<usize> =
            (0..proposals.len()).filter(|&place| proposals[place] == Proposal::Absent).collect();
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
                for (place, proposal) in absent.into_iter().zip(again) {
                    proposals[place] = proposal;
                }
            }
        }
        self.touched.note(entries.iter().map(|entry| &entry.candidate.order.sale_id));
        self.watch.note(entries.iter().map(|entry| &entry.candidate.order.sale_id));
        Ok(proposals)
    }

    /// Without an inventory: everything is proposed as created, but for verdicts and for sales
    /// that the ledger doesn't know.
    async fn stand_in(
        &self,
        entries: &[Entry],
    ) -> Result<Vec<Proposal>, crate::ledger::LedgerError> {
        let sales: BTreeSet<SaleId> =
            entries.iter().map(|entry| entry.candidate.order.sale_id.clone()).collect();
        let sales: Vec<SaleId> = sales.into_iter().collect();
        let states = self.ledger.sales(Some(&sales)).await?;
        let known: HashMap<_, _> = states.iter().map(|state| (&state.sale.id, state)).collect();
        let proposals = entries.iter().map(|entry| {
            let candidate = &entry.candidate;
            if !known.contains_key(&candidate.order.sale_id) {
                return Proposal::Absent;
            }
            let outcome = candidate.verdict.map_or(Outcome::Created, Outcome::Rejected);
            Proposal::Decided { outcome, fresh: true }
        });
        Ok(proposals.collect())
    }
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
