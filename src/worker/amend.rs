//! Amend: overwrite what the inventory holds where its hints were wrong.

use std::collections::{BTreeMap, HashSet};

use crate::domain::decision::Hint;
use crate::domain::rules::Answer;
use crate::fault::crash_point;
use crate::inventory::{Amendment, Inventory};
use crate::ledger::{Decided, Proposed};

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
    for (Proposed { candidate, hint, .. }, answer) in orders.iter().zip(answers).rev() {
        let order = &candidate.order;
        let granted = answer.as_ref().is_ok_and(Answer::is_granted);
        let is_right = hint.is_none_or(|hint| (hint == Hint::Granted) == granted);
        let Some(state) = result.sales.get(&order.sale_id) else { continue };
        if is_right || !told.insert(order) {
            continue;
        }
        let amendment =
            by_sale.entry(&order.sale_id).or_insert_with(|| Amendment::of(state.clone()));
        amendment.orders.push((order.clone(), granted));
        let buyer = (order.sale_id.clone(), order.user_id.clone());
        amendment.buyers.extend(result.units.get(&buyer).map(|units| (buyer.1, *units)));
    }
    by_sale.into_values().collect()
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
