//! The operators' log in a SQLite file.

use async_trait::async_trait;

use super::SqliteLedger;
use crate::ledger::operator_log as statements;
use crate::operator_log::{Entry, OperatorLog, OperatorLogError, Wanted};
use crate::sqlite::Survives;

#[async_trait]
impl OperatorLog for SqliteLedger {
    async fn record(&self, entries: &[Entry]) -> Result<(), OperatorLogError> {
        let insert = async |db: &mut _| statements::insert(db, entries).await;
        self.run(Survives::PowerLoss, insert).await.map_err(OperatorLogError::new)
    }

    async fn entries(&self, wanted: &Wanted) -> Result<Vec<Entry>, OperatorLogError> {
        let found = self.read(async |db| statements::entries(db, wanted).await).await;
        found.map_err(OperatorLogError::new)
    }
}
