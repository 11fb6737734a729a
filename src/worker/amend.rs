//! Amend: overwrite what the inventory holds where its hints were wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::domain::decision::Hint;
use crate::domain::order::SaleId;
use crate::domain::rules::Answer;
use crate::domain::sale::SaleState;
use crate::fault::crash_point;
use crate::inventory::{Amendment, Inventory};
use crate::ledger::{Decided, Proposed};

/// The hint of an order that got another answer.
pub(super) fn overruled(order: &Proposed<'_>, answer: &Result<Answer, String>) -> Option<Hint> {
    let granted = answer.as_ref().is_ok_and(Answer::is_granted);
    order.hint.filter(|hint| (*hint == Hint::Granted) != granted)
}

/// What the inventory is to be told: of the orders that got another answer than the hint, one amendment
/// for each sale.
pub(super) fn amendments(
    orders: &[Proposed<'_>],
    answers: &[Result<Answer, String>],
    result: &Decided,
) -> Vec<Amendment> {
    let mut by_sale = BTreeMap::new();
    let mut told = HashSet::new();
    // The last answer of an order that comes twice is the one to be told.
    for (proposed, answer) in orders.iter().zip(answers).rev() {
        let order = &proposed.candidate.order;
        let Some(state) = result.sales.get(&order.sale_id) else { continue };
        if overruled(proposed, answer).is_none() || !told.insert(order) {
            continue;
        }
        let granted = answer.as_ref().is_ok_and(Answer::is_granted);
        let amendment =
            by_sale.entry(&order.sale_id).or_insert_with(|| Amendment::of(state.clone()));
        amendment.orders.push((order.clone(), granted));
        let buyer = (order.sale_id.clone(), order.user_id.clone());
        amendment.buyers.extend(result.units.get(&buyer).map(|units| (buyer.1, *units)));
    }
    by_sale.into_values().collect()
}

/// Sales to be amended again. An amendment, and the loading of a sale, overwrite what was deducted meanwhile for
/// the batches in flight; what those leave is told with each of them.
pub(super) struct FollowUps {
    /// How many batches are in flight at most.
    batches_in_flight: usize,
    /// For how many more batches each sale is amended, if they have orders of it.
    left: BTreeMap<SaleId, usize>,
}

impl FollowUps {
    pub(super) fn new(batches_in_flight: usize) -> Self {
        Self { batches_in_flight, left: BTreeMap::new() }
    }

    /// Adds to the amendments of a batch, which has left `sales`, those that follow up on earlier ones.
    /// `primed` were loaded for this batch.
    pub(super) fn add(
        &mut self,
        amendments: &mut Vec<Amendment>,
        primed: BTreeSet<SaleId>,
        sales: &HashMap<SaleId, SaleState>,
    ) {
        let amended: BTreeSet<SaleId> =
            amendments.iter().map(|amendment| amendment.state.sale.id.clone()).collect();
        let due = self.left.keys().filter(|sale| !amended.contains(sale));
        amendments.extend(due.filter_map(|sale| sales.get(sale)).cloned().map(Amendment::of));
        self.left.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        let fresh = amended.into_iter().chain(primed);
        self.left.extend(fresh.map(|sale| (sale, self.batches_in_flight)));
    }
}

/// Tells the inventory. A failure costs speed: the next wrong hint brings the next amendment.
pub(super) async fn amend(inventory: &dyn Inventory, amendments: &[Amendment]) {
    if amendments.is_empty() {
        return;
    }
    if let Err(error) = inventory.amend(amendments).await {
        tracing::debug!(%error, sales = amendments.len(), "cannot amend the inventory");
    }
    crash_point("amended");
}

/// Has the inventory remember how far sales are committed. A failure costs nothing unless the ledger is lost before
/// the next batch of the sale.
pub(super) async fn remember(inventory: &dyn Inventory, committed: &[SaleState]) {
    if committed.is_empty() {
        return;
    }
    if let Err(error) = inventory.committed(committed).await {
        tracing::debug!(%error, sales = committed.len(), "cannot tell the inventory what is committed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sale::Sale;

    fn state(id: &str) -> SaleState {
        SaleState::opened(Sale {
            id: SaleId::parse(id).unwrap(),
            stock: 5,
            per_user_limit: None,
            opens_at: None,
            closes_at: None,
            verification: false,
        })
    }

    #[test]
    fn a_sale_is_amended_with_each_batch_that_was_in_flight_when_it_was_amended_or_loaded() {
        let mut follow_ups = FollowUps::new(2);
        let mut told = |amended: &[&str], primed: &[&str], sales: &[&str]| {
            let mut amendments: Vec<_> =
                amended.iter().map(|id| Amendment::of(state(id))).collect();
            let primed = primed.iter().map(|id| state(id).sale.id).collect();
            let sales = sales.iter().map(|id| (state(id).sale.id, state(id))).collect();
            follow_ups.add(&mut amendments, primed, &sales);
            let ids = amendments.iter().map(|amendment| amendment.state.sale.id.to_string());
            ids.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(&["s"], &["t"], &["s", "t"]), "s");
        assert_eq!(told(&[], &[], &["t", "u"]), "t");
        assert_eq!(told(&["s"], &[], &["s", "t"]), "s t");
        assert_eq!(told(&[], &[], &["s", "t"]), "s");
        assert_eq!(told(&[], &[], &["s"]), "s");
        assert_eq!(told(&[], &[], &["s"]), "");
    }
}
