//! The operators' log on PostgreSQL.

use async_trait::async_trait;

use super::PostgresLedger;
use crate::ledger::operator_log as statements;
use crate::operator_log::{Entry, OperatorLog, OperatorLogError, Wanted};

#[async_trait]
impl OperatorLog for PostgresLedger {
    async fn record(&self, entries: &[Entry]) -> Result<(), OperatorLogError> {
        let recorded = self.run(async |db| statements::insert(db, entries).await).await;
        recorded.map_err(OperatorLogError::new)
    }

    async fn entries(&self, wanted: &Wanted) -> Result<Vec<Entry>, OperatorLogError> {
        let found = self.run(async |db| statements::entries(db, wanted).await).await;
        found.map_err(OperatorLogError::new)
    }
}
