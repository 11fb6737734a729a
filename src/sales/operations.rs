//! What operators do to a running sale. What changed something is in the operators' log, before they are
//! answered.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};

use crate::broker::Broker;
use crate::domain::event::rfc3339;
use crate::domain::order::{AdjustmentId, Quantity, SaleId};
use crate::domain::sale::{PauseMode, Sale};
use crate::fault::crash_point;
use crate::ledger::{Change, Changed, Ledger, LedgerError, Opening};
use crate::operator_log::{Action, Entry, Journal, Operator};
use crate::sales::announce::{AnnounceError, announce};

/// How long it may take to write down an act of which the ledger has not told whether it is done. The call
/// may have taken all the time that the API has for an answer but for a second.
const UNSURE_LIMIT: Duration = Duration::from_millis(500);

/// Changes sales in the ledger, and tells subscribers. The inventory learns of a change by the first hint
/// that the ledger overrules.
#[derive(Clone)]
pub struct Operations {
    /// Where sales are changed.
    pub ledger: Arc<dyn Ledger>,
    /// Where subscribers are told.
    pub broker: Arc<dyn Broker>,
    /// Where it is written down who did what.
    pub journal: Journal,
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
        by: &Operator,
        sale: &SaleId,
        adjustment_id: AdjustmentId,
        units: Quantity,
        now: DateTime<Utc>,
    ) -> Result<Changed, OperationError> {
        let at = now.trunc_subsecs(3);
        self.change(by, sale, Change::Restock { adjustment_id, units, at }).await
    }

    /// Ends a sale for orders submitted from now on. Earlier ones that wait are still decided as
    /// they would have been.
    pub async fn close(
        &self,
        by: &Operator,
        sale: &SaleId,
        now: DateTime<Utc>,
    ) -> Result<Changed, OperationError> {
        self.change(by, sale, Change::Close { at: now.trunc_subsecs(3) }).await
    }

    /// Has the users of a sale checked before they get a unit, or sells to them without checks. No
    /// event tells of it: subscribers count units, and none moves; every process reads the sales in
    /// use each second. Switched off, orders that wait for the user service to come back are sold
    /// when they are next taken up; a check that is under way still counts.
    pub async fn verify(
        &self,
        by: &Operator,
        sale: &SaleId,
        on: bool,
    ) -> Result<Changed, OperationError> {
        self.change(by, sale, Change::Verify { on }).await
    }

    /// Pauses a sale, changes how it is paused, or resumes it, without a `mode`. No event tells of it: every
    /// process reads the sales in use each second. Orders that were held are decided when they are next
    /// taken up, within half a minute.
    pub async fn pause(
        &self,
        by: &Operator,
        sale: &SaleId,
        mode: Option<PauseMode>,
        now: DateTime<Utc>,
    ) -> Result<Changed, OperationError> {
        self.change(by, sale, Change::Pause { mode, at: now.trunc_subsecs(3) }).await
    }

    /// Goes on with a sale that is held because its ledger was restored. What was committed before must be forgotten
    /// by the inventory first.
    pub async fn accept_ledger(
        &self,
        by: &Operator,
        sale: &SaleId,
        now: DateTime<Utc>,
    ) -> Result<Changed, OperationError> {
        self.change(by, sale, Change::Accept { at: now.trunc_subsecs(3) }).await
    }

    async fn change(
        &self,
        by: &Operator,
        sale: &SaleId,
        change: Change,
    ) -> Result<Changed, OperationError> {
        let (operations, by, sale) = (self.clone(), by.clone(), sale.clone());
        to_its_end(async move { operations.changed(&by, &sale, &change).await }).await
    }

    async fn changed(
        &self,
        by: &Operator,
        sale: &SaleId,
        change: &Change,
    ) -> Result<Changed, OperationError> {
        let changed = self.ledger.change(sale, change).await;
        crash_point("changed");
        let entry = became(change, &changed)
            .map(|detail| Entry::new(by, action(change), Some(sale.clone()), &detail));
        record(&self.journal, &changed, entry.as_slice()).await;
        let changed = changed?;
        if let Changed::Done { restock: Some(_), .. } = &changed {
            let of = std::slice::from_ref(sale);
            let announced = announce(self.ledger.as_ref(), self.broker.as_ref(), of).await;
            announced.map_err(OperationError::NotTold)?;
        }
        Ok(changed)
    }
}

/// Opens sales in `ledger`, and writes down which are new.
pub async fn open(
    ledger: Arc<dyn Ledger>,
    journal: Journal,
    by: &Operator,
    sales: &[Sale],
) -> Result<Vec<Opening>, LedgerError> {
    let (by, sales) = (by.clone(), sales.to_vec());
    to_its_end(async move {
        let openings = ledger.open(&sales).await;
        let opened = |(n, sale)| {
            let detail = match &openings {
                Ok(openings) => (openings.get(n) == Some(&Opening::Opened)).then(|| in_words(sale)),
                Err(error) => unknown(&in_words(sale), error),
            }?;
            Some(Entry::new(&by, Action::Opened, Some(sale.id.clone()), &detail))
        };
        let entries: Vec<Entry> = sales.iter().enumerate().filter_map(opened).collect();
        record(&journal, &openings, &entries).await;
        openings
    })
    .await
}

/// Runs an act to its end, even after the client has hung up: that must not leave
/// an act without its entry.
async fn to_its_end<T: Send + 'static>(act: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(act).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and this task with it.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Writes down what became of a call of the ledger.
async fn record<T>(journal: &Journal, called: &Result<T, LedgerError>, entries: &[Entry]) {
    match called {
        Ok(_) => journal.record(entries).await,
        Err(_) => journal.record_within(UNSURE_LIMIT, entries).await,
    }
}

fn action(change: &Change) -> Action {
    match change {
        Change::Restock { .. } => Action::Restocked,
        Change::Close { .. } => Action::Closed,
        Change::Verify { .. } => Action::VerificationSwitched,
        Change::Pause { mode: Some(_), .. } | Change::Lost { .. } => Action::Paused,
        Change::Pause { mode: None, .. } => Action::Resumed,
        Change::Accept { .. } => Action::LedgerAccepted,
    }
}

/// What a change came to, if it has changed the sale, or may have.
fn became(change: &Change, changed: &Result<Changed, LedgerError>) -> Option<String> {
    let wanted = match change {
        Change::Restock { adjustment_id, units, .. } => {
            format!("{} units, adjustment {adjustment_id}", units.get())
        }
        Change::Close { at } => format!("at {}", rfc3339(*at)),
        Change::Verify { on } => if *on { "on" } else { "off" }.to_owned(),
        Change::Pause { mode, .. } => match mode {
            Some(PauseMode::Refuse) => "orders are refused",
            Some(PauseMode::Hold | PauseMode::Restored) => "orders are held",
            None => "orders are decided again",
        }
        .to_owned(),
        Change::Lost { .. } => "orders are held".to_owned(),
        Change::Accept { .. } => "orders are decided again".to_owned(),
    };
    match changed {
        Ok(Changed::Done { state, is_new: true, .. }) => Some(match change {
            Change::Restock { .. } => format!("{wanted}, stock {}", state.sale.stock),
            // A sale closes no earlier than it opens.
            Change::Close { at } => format!("at {}", rfc3339(state.sale.closes_at.unwrap_or(*at))),
            Change::Accept { .. } => format!("{wanted}, {} units are sold", state.sold),
            Change::Verify { .. } | Change::Pause { .. } | Change::Lost { .. } => wanted,
        }),
        Ok(_) => None,
        Err(error) => unknown(&wanted, error),
    }
}

/// What to write down of an act that has failed: nothing, unless it may be done all the same.
fn unknown(wanted: &str, error: &LedgerError) -> Option<String> {
    error.is_transient().then(|| format!("{wanted}; not known whether it is done: {error}"))
}

/// How a sale was opened.
fn in_words(sale: &Sale) -> String {
    let Sale { stock, per_user_limit, opens_at, closes_at, verification, .. } = sale;
    let parts = [
        Some(format!("stock {stock}")),
        per_user_limit.map(|limit| format!("limit {limit}")),
        opens_at.map(|at| format!("opens {}", rfc3339(at))),
        closes_at.map(|at| format!("closes {}", rfc3339(at))),
        verification.then(|| "users are checked".to_owned()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
