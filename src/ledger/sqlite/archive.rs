//! Archives in a SQLite file. It has one writer, so nobody has to be waited for.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteLedger, rows};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{OrderId, OrderKey, SaleId};
use crate::ledger::archive::{Archive, ArchiveRecord, ArchivedOrders};
use crate::ledger::archiving::{self, Blocks, Locked, OneSaleSql, Stored};
use crate::ledger::{LedgerError, keys, statements};
use crate::sqlite::Survives;

impl OneSaleSql for SqliteConnection {
    async fn lock(&mut self, sale: &SaleId) -> Locked {
        Ok(rows::sales(self, Some(&[sale])).await?.remove(sale))
    }

    async fn stored(&mut self, orders: &[(&SaleId, &OrderId)]) -> Stored {
        statements::decisions(self, orders).await
    }

    async fn blocks(&mut self, orders: &[(&SaleId, &OrderId)]) -> Blocks {
        statements::blocks(self, orders).await
    }
}

#[async_trait]
impl ArchivedOrders for SqliteLedger {
    async fn archived(
        &self,
        orders: &[OrderKey],
    ) -> Result<Vec<Option<ArchivedOrder>>, LedgerError> {
        let keys: Vec<_> = orders.iter().map(|key| (&key.sale_id, &key.order_id)).collect();
        let found = self.read(async |db| statements::archived(db, &keys).await).await?;
        Ok(orders.iter().map(|key| found.get(key).cloned()).collect())
    }
}

#[async_trait]
impl Archive for SqliteLedger {
    async fn archives(&self, sale: Option<&SaleId>) -> Result<Vec<ArchiveRecord>, LedgerError> {
        self.read(async |db| archiving::archives(db, sale).await).await
    }

    async fn record(&self, archive: &ArchiveRecord, max_age: Duration) -> Result<(), LedgerError> {
        let (key, now) = (keys::random(), (self.clock)());
        let recorded = self.run(Survives::PowerLoss, async |db| {
            archiving::record(db, archive, &key, (now, max_age)).await
        });
        recorded.await?.map_err(refused)
    }

    async fn move_out(
        &self,
        archive: &ArchiveRecord,
        decisions: &[Decision],
    ) -> Result<u64, LedgerError> {
        let moved = self
            .run(Survives::PowerLoss, async |db| archiving::move_out(db, archive, decisions).await);
        moved.await?.map_err(refused)
    }

    async fn move_back(
        &self,
        archive: &ArchiveRecord,
        decisions: &[Decision],
    ) -> Result<u64, LedgerError> {
        let moved = self.run(Survives::PowerLoss, async |db| {
            archiving::move_back(db, archive, decisions).await
        });
        moved.await?.map_err(refused)
    }

    async fn forget(&self, archive: &ArchiveRecord) -> Result<(), LedgerError> {
        let forgotten =
            self.run(Survives::PowerLoss, async |db| archiving::forget(db, archive).await);
        forgotten.await?.map_err(refused)
    }
}

pub(super) fn refused(refusal: String) -> LedgerError {
    LedgerError::Permanent(refusal.into())
}
