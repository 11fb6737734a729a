//! Propose: ask the inventory for hints, in queue order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{Batch, Entry};
use crate::domain::order::{Candidate, SaleId};
use crate::fault::crash_point;
use crate::inventory::{Inventory, InventoryError, Proposal, WhenUnavailable};
use crate::ledger::Ledger;
use crate::metrics::{Metrics, Stage};
use crate::outage::Outage;
use crate::retry::Backoff;
use crate::traces::{Traced, Traces};

/// A batch with its hints.
pub(super) struct ProposedBatch {
    pub batch: Batch,
    /// Of its entries.
    pub proposal: Proposal,
    /// The inventory has answered.
    pub is_proposed: bool,
    /// Sales that were loaded into the inventory for it.
    pub primed: BTreeSet<SaleId>,
    /// From now until it is settled, if an order in it is recorded.
    pub traced: Traced,
}

/// Asks the inventory.
pub(super) struct Proposer {
    /// Without one the ledger decides without hints.
    pub inventory: Option<Arc<dyn Inventory>>,
    pub ledger: Arc<dyn Ledger>,
    pub when_unavailable: WhenUnavailable,
    pub retry_after: Duration,
    pub max_age: Duration,
    /// Leave the inventory alone until then.
    pub unavailable_until: Option<Instant>,
    pub metrics: Arc<Metrics>,
    pub traces: Traces,
    pub outage: Outage,
}

impl Proposer {
    /// Gives every order of `batch` its hint, if there is one to be had.
    pub(super) async fn propose(&mut self, mut batch: Batch) -> ProposedBatch {
        let _timer = self.metrics.worker.time(Stage::Propose);
        let count = batch.entries.len();
        let orders = batch.entries.iter_mut().map(|entry| &mut entry.traced);
        let traced = self.traces.batch(count, orders);
        let part = traced.as_ref().map(|batch| batch.part("propose"));
        let mut primed = BTreeSet::new();
        let proposal = self.proposal(&batch.entries, &mut primed).await;
        let is_proposed = proposal.is_some();
        let nothing = || Proposal { hints: vec![None; count], ..Proposal::default() };
        let proposal = proposal.unwrap_or_else(nothing);
        crash_point("proposed");
        drop(part);
        ProposedBatch { batch, proposal, is_proposed, primed, traced }
    }

    /// What the inventory says, if it is to be had.
    async fn proposal(
        &mut self,
        entries: &[Entry],
        primed: &mut BTreeSet<SaleId>,
    ) -> Option<Proposal> {
        let inventory = self.inventory.clone().filter(|_| !entries.is_empty())?;
        let mut backoff = Backoff::step();
        loop {
            if self.unavailable_until.is_none_or(|until| until <= Instant::now()) {
                match self.ask(inventory.as_ref(), entries, primed).await {
                    Ok(proposal) => {
                        self.unavailable_until = None;
                        self.outage.answered();
                        return Some(proposal);
                    }
                    Err(error) => {
                        self.outage.failed(&error);
                        self.unavailable_until = Some(Instant::now() + self.retry_after);
                    }
                }
            }
            match self.when_unavailable {
                WhenUnavailable::Ledger => return None,
                WhenUnavailable::Wait => tokio::time::sleep(backoff.next_delay()).await,
            }
        }
    }

    /// What the inventory says. Sales that it does not hold are loaded, and their orders proposed once
    /// more; what it still does not hold goes on without a hint.
    async fn ask(
        &self,
        inventory: &dyn Inventory,
        entries: &[Entry],
        primed: &mut BTreeSet<SaleId>,
    ) -> Result<Proposal, InventoryError> {
        let orders: Vec<&Candidate> = entries.iter().map(|entry| &entry.candidate).collect();
        let mut proposal = inventory.propose(&orders, self.max_age).await?;
        let hints = &proposal.hints;
        let absent: Vec<usize> = (0..hints.len()).filter(|&index| hints[index].is_none()).collect();
        if absent.is_empty() {
            return Ok(proposal);
        }
        let sales: BTreeSet<&SaleId> =
            absent.iter().map(|&index| &orders[index].order.sale_id).collect();
        let sales: Vec<SaleId> = sales.into_iter().cloned().collect();
        let states = match self.ledger.sales(Some(&sales)).await {
            Ok(states) => states,
            Err(error) => {
                // Deciding waits for the ledger; proposing need not.
                tracing::debug!(%error, "cannot load sales into the inventory");
                return Ok(proposal);
            }
        };
        if states.is_empty() {
            return Ok(proposal);
        }
        inventory.prime(&states).await?;
        primed.extend(states.into_iter().map(|state| state.sale.id));
        let again: Vec<&Candidate> = absent.iter().map(|&index| orders[index]).collect();
        let again = inventory.propose(&again, self.max_age).await?;
        for (index, hint) in absent.into_iter().zip(again.hints) {
            proposal.hints[index] = hint;
        }
        Ok(proposal)
    }
}
