//! Erasure in a SQLite file.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::SqliteLedger;
use super::archive::refused;
use crate::domain::order::{SaleId, UserId};
use crate::ledger::archive::ArchiveRecord;
use crate::ledger::erasure::{Erasure, KeptOfUser};
use crate::ledger::{LedgerError, erasing, keys};
use crate::sqlite::Survives;

/// Decisions changed in one transaction.
const CHUNK: usize = 1000;

#[async_trait]
impl Erasure for SqliteLedger {
    async fn kept_of(&self, user: &UserId) -> Result<BTreeMap<SaleId, KeptOfUser>, LedgerError> {
        self.read(async |db| erasing::kept_of(db, user).await).await
    }

    async fn begin(
        &self,
        user: &UserId,
        sales: &[SaleId],
    ) -> Result<BTreeMap<SaleId, UserId>, LedgerError> {
        let mut tokens = BTreeMap::new();
        for sale in sales {
            let key = keys::random();
            let work = async |db: &mut _| erasing::begin(db, user, sale, &key).await;
            let token = self.run(Survives::PowerLoss, work).await?.map_err(refused)?;
            tokens.extend(token.map(|token| (sale.clone(), token)));
        }
        Ok(tokens)
    }

    async fn replace(
        &self,
        user: &UserId,
        sale: &SaleId,
        token: &UserId,
    ) -> Result<u64, LedgerError> {
        // No index has the user, so the sale is read whole, which must not keep others from writing.
        let orders = self.read(async |db| erasing::orders_of(db, user, sale).await).await?;
        for chunk in orders.chunks(CHUNK) {
            let work = async |db: &mut _| erasing::replace(db, (user, token), sale, chunk).await;
            self.run(Survives::PowerLoss, work).await?.map_err(refused)?;
        }
        Ok(orders.len() as u64)
    }

    async fn replace_file(
        &self,
        before: &ArchiveRecord,
        now: &ArchiveRecord,
    ) -> Result<(), LedgerError> {
        let replaced = self
            .run(Survives::PowerLoss, async |db| erasing::replace_file(db, before, now).await)
            .await?;
        replaced.map_err(refused)
    }
}
