//! Writing to the operators' log.

use std::sync::Arc;
use std::time::Duration;

use super::{Entry, OperatorLog, OperatorLogError};

/// What every line of a log about operators has as its target.
const TARGET: &str = "floodgate::operator_log";

/// How long a write may take: operators wait for it, and so does the end of the process.
const LIMIT: Duration = Duration::from_secs(5);

/// Where acts are written down: each is a line of the process's log, and an entry of the operators' log
/// if there is one.
#[derive(Clone)]
pub struct Journal {
    log: Option<Arc<dyn OperatorLog>>,
}

impl Journal {
    /// A journal that writes to `log`, or to the process's log alone.
    pub fn new(log: Option<Arc<dyn OperatorLog>>) -> Self {
        Self { log }
    }

    /// Whether entries are kept beyond the process's log.
    pub fn is_kept(&self) -> bool {
        self.log.is_some()
    }

    /// Writes entries down. What they tell of has happened, so nothing is undone when that fails: then
    /// the process's log has each of them whole.
    pub async fn record(&self, entries: &[Entry]) {
        self.record_within(LIMIT, entries).await;
    }

    /// The same, when there is less time.
    pub async fn record_within(&self, limit: Duration, entries: &[Entry]) {
        for entry in entries {
            tracing::info!(
                target: TARGET,
                actor = entry.actor.as_str(),
                action = entry.action.name(),
                sale_id = entry.sale_id.as_ref().map(tracing::field::display),
                origin = entry.origin.as_str(),
                detail = entry.detail.as_str(),
                request_id = entry.request_id.as_deref(),
                "entry of the operators' log"
            );
        }
        let Some(log) = self.log.as_ref().filter(|_| !entries.is_empty()) else { return };
        let recorded = tokio::time::timeout(limit, log.record(entries)).await;
        if let Err(error) = recorded.unwrap_or_else(|late| Err(OperatorLogError::new(late))) {
            for entry in entries {
                let entry = serde_json::to_string(entry)
                    .unwrap_or_else(|error| unreachable!("strings and times: {error}"));
                tracing::error!(target: TARGET, %error, %entry, "could not be written to the operators' log");
            }
        }
    }
}
