//! Amend: overwrite what the inventory holds where its hints were wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decide::Corrections;
use crate::fault::crash_point;
use crate::inventory::{Amendment, Inventory};

/// Amends the inventory.
pub(super) struct Amender {
    pub inventory: Option<Arc<dyn Inventory>>,
}

impl Amender {
    /// Tells the inventory of `corrections`. A failure costs speed: the next wrong hint brings the next
    /// amendment.
    pub(super) async fn amend(&self, corrections: &Corrections) {
        let amendments = amendments(corrections);
        let Some(inventory) = self.inventory.as_ref().filter(|_| !amendments.is_empty()) else {
            return;
        };
        if let Err(error) = inventory.amend(&amendments).await {
            tracing::debug!(%error, sales = amendments.len(), "cannot amend the inventory");
        }
        crash_point("amended");
    }
}

/// One amendment for each sale.
fn amendments(corrections: &Corrections) -> Vec<Amendment<'_>> {
    let mut by_sale = BTreeMap::new();
    for (order, granted) in &corrections.orders {
        let Some(state) = corrections.sales.get(&order.sale_id) else { continue };
        let amendment = by_sale.entry(&order.sale_id).or_insert_with(|| Amendment {
            state,
            buyers: Vec::new(),
            orders: Vec::new(),
        });
        amendment.orders.push((order, *granted));
        let buyer = (order.sale_id.clone(), order.user_id.clone());
        if let Some(units) = corrections.units.get(&buyer) {
            amendment.buyers.push((&order.user_id, *units));
        }
    }
    by_sale.into_values().collect()
}
