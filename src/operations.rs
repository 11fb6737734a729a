//! What operators do to a running sale.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};

use crate::broker::{Broker, BrokerError, Message};
use crate::event::Event;
use crate::inventory::Inventory;
use crate::ledger::{Change, Changed, Ledger, LedgerError};
use crate::order::{AdjustmentId, Quantity, SaleId};

/// Changes sales: first in the ledger, then in the inventory, then subscribers are told.
#[derive(Clone)]
pub struct Operations {
    /// What has the final word.
    pub ledger: Arc<dyn Ledger>,
    /// What proposes.
    pub inventory: Arc<dyn Inventory>,
    /// What tells subscribers.
    pub broker: Arc<dyn Broker>,
}

/// Why a change isn't done, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The ledger didn't take it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It is in the ledger and holds, but subscribers may not know.
    #[error(
        "it is recorded, but subscribers could not be told; repeat it with the same adjustment id: {0}"
    )]
    NotTold(#[source] BrokerError),
}

impl Operations {
    /// Puts `units` more on offer, once for each adjustment id.
    pub async fn restock(
        &self,
        sale: &SaleId,
        adjustment_id: AdjustmentId,
        units: Quantity,
        now: DateTime<Utc>,
    ) -> Result<Changed, OperationError> {
        let at = now.trunc_subsecs(3);
        self.change(sale, Change::Restock { adjustment_id, units, at }).await
    }

    /// Ends a sale for orders submitted from now on. Earlier ones that wait are still decided as
    /// they would have been.
    pub async fn close(
        &self,
        sale: &SaleId,
        now: DateTime<Utc>,
    ) -> Result<Changed, OperationError> {
        self.change(sale, Change::Close { at: now.trunc_subsecs(3) }).await
    }

    /// Has the users of a sale checked before they get a unit, or sells to them without checks. No
    /// event tells of it: subscribers count units, and none moves; every process reads the sales in
    /// use each second. Switched off, orders that wait for the user service to come back are sold
    /// when they are next taken up; a check that is under way still counts.
    pub async fn verify(&self, sale: &SaleId, on: bool) -> Result<Changed, OperationError> {
        self.change(sale, Change::Verify { on }).await
    }

    async fn change(&self, sale: &SaleId, change: Change) -> Result<Changed, OperationError> {
        let changed = self.ledger.change(sale, &change).await?;
        if let Changed::Done { state, restock } = &changed {
            if let Err(error) = self.inventory.prime(std::slice::from_ref(state)).await {
                // Whoever watches the sale tries again every second.
                tracing::warn!(%error, sale_id = %sale, "the inventory doesn't know of the change yet");
            }
            if let Some(restock) = restock {
                let event = Event::restocked(restock);
                let told = self.broker.publish(&[Message::Event(&event)]).await;
                told.map_err(OperationError::NotTold)?;
            }
        }
        Ok(changed)
    }
}
