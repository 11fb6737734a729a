//! What operators do to a running sale.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};

use crate::announce::{AnnounceError, announce};
use crate::broker::Broker;
use crate::fault::crash_point;
use crate::ledger::{Change, Changed, Ledger, LedgerError};
use crate::order::{AdjustmentId, Quantity, SaleId};

/// Changes sales in the ledger, and tells subscribers. The inventory learns of a change by the first hint
/// that the ledger overrules.
#[derive(Clone)]
pub struct Operations {
    /// Where sales are changed.
    pub ledger: Arc<dyn Ledger>,
    /// Where subscribers are told.
    pub broker: Arc<dyn Broker>,
}

/// Why a change isn't done, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The ledger didn't take it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It is in the ledger and holds, but subscribers may not know yet.
    #[error("it is stored, but subscribers could not be told yet; a running worker will: {0}")]
    NotTold(#[source] AnnounceError),
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
        crash_point("changed");
        if let Changed::Done { restock: Some(_), .. } = &changed {
            let announced = announce(self.ledger.as_ref(), self.broker.as_ref()).await;
            announced.map_err(OperationError::NotTold)?;
        }
        Ok(changed)
    }
}
