//! Reconcile: compare the inventory's stock with the ledger's, and repair what stands still.
//!
//! Units can be left reserved for nobody: an order that was deducted and then dead-lettered, a lost
//! reply followed by a lost memory. While orders are in flight the two counts differ rightly. A
//! difference that is the same in two looks, with neither count moving, belongs to nobody. Should
//! it belong to an order that is merely slow, then the inventory proposes too much for a moment,
//! and the ledger refuses it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::inventory::{Correction, Inventory};
use crate::ledger::Ledger;
use crate::order::SaleId;

/// The most sales looked at in one round; the others get their turn when they are touched again.
const MAX_SALES: usize = 10_000;

/// The sales that orders were proposed for since the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct Touched(Arc<Mutex<BTreeSet<SaleId>>>);

impl Touched {
    pub(super) fn note<'a>(&self, sales: impl Iterator<Item = &'a SaleId>) {
        let mut touched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for sale in sales {
            if touched.len() < MAX_SALES && !touched.contains(sale) {
                touched.insert(sale.clone());
            }
        }
    }

    fn take(&self) -> BTreeSet<SaleId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Compares now and then, for as long as it is polled.
pub(super) struct Reconciler {
    pub inventory: Arc<dyn Inventory>,
    pub ledger: Arc<dyn Ledger>,
    pub touched: Touched,
    pub every: Duration,
}

impl Reconciler {
    pub(super) async fn run(self) {
        let mut suspects = HashMap::new();
        let mut ticks = tokio::time::interval(self.every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.look(&suspects).await {
                Ok(found) => suspects = found,
                // Servers that are away are somebody else's story; this one tries again.
                Err(error) => tracing::debug!(%error, "can't reconcile"),
            }
        }
    }

    /// One look. Returns the differences seen, by sale.
    async fn look(
        &self,
        suspects: &HashMap<SaleId, Correction>,
    ) -> Result<HashMap<SaleId, Correction>, Box<dyn std::error::Error + Send + Sync>> {
        let mut sales = self.touched.take();
        sales.extend(suspects.keys().cloned());
        if sales.is_empty() {
            return Ok(HashMap::new());
        }
        let sales: Vec<SaleId> = sales.into_iter().collect();
        let states = self.ledger.sales(Some(&sales)).await?;
        let sales: Vec<SaleId> = states.iter().map(|state| state.sale.id.clone()).collect();
        let counts = self.inventory.remaining(&sales).await?;
        let found: Vec<Correction> = states
            .iter()
            .zip(counts)
            .filter_map(|(state, count)| {
                let (seen, actual) = (count?, state.remaining());
                let sale_id = state.sale.id.clone();
                (seen != actual).then_some(Correction { sale_id, seen, actual })
            })
            .collect();
        let (standing, moving): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|correction| suspects.get(&correction.sale_id) == Some(correction));
        if let Some(Correction { sale_id, seen, actual }) = standing.first() {
            let corrected = self.inventory.correct(&standing).await?;
            let sales = corrected.iter().filter(|&&done| done).count();
            tracing::warn!(sales, first = %sale_id, seen, actual, "corrected the inventory's stock");
        }
        Ok(moving.into_iter().map(|correction| (correction.sale_id.clone(), correction)).collect())
    }
}
