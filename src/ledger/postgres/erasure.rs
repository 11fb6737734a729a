//! Erasure on PostgreSQL, distributed or not.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{PostgresLedger, permanent};
use crate::domain::order::{SaleId, UserId};
use crate::ledger::archive::ArchiveRecord;
use crate::ledger::erasure::{Erasure, KeptOfUser};
use crate::ledger::{LedgerError, erasing, keys};

/// Decisions changed in one transaction.
const CHUNK: usize = 1000;

#[async_trait]
impl Erasure for PostgresLedger {
    async fn kept_of(&self, user: &UserId) -> Result<BTreeMap<SaleId, KeptOfUser>, LedgerError> {
        // No index has the user, so whole tables are read.
        self.auditing(async |db| erasing::kept_of(db, user).await).await
    }

    async fn begin(
        &self,
        user: &UserId,
        sales: &[SaleId],
    ) -> Result<BTreeMap<SaleId, UserId>, LedgerError> {
        self.shut_out_older().await?;
        let mut tokens = BTreeMap::new();
        for sale in sales {
            let key = keys::random();
            let begun = self.run(async |db| erasing::begin(db, user, sale, &key).await);
            let token = begun.await?.map_err(permanent)?;
            tokens.extend(token.map(|token| (sale.clone(), token)));
        }
        self.wait_for_older().await?;
        Ok(tokens)
    }

    async fn replace(
        &self,
        user: &UserId,
        sale: &SaleId,
        token: &UserId,
    ) -> Result<u64, LedgerError> {
        let orders = self.auditing(async |db| erasing::orders_of(db, user, sale).await).await?;
        for chunk in orders.chunks(CHUNK) {
            let replaced =
                self.run(async |db| erasing::replace(db, (user, token), sale, chunk).await);
            replaced.await?.map_err(permanent)?;
        }
        Ok(orders.len() as u64)
    }

    async fn replace_file(
        &self,
        before: &ArchiveRecord,
        now: &ArchiveRecord,
    ) -> Result<(), LedgerError> {
        let replaced = self.run(async |db| erasing::replace_file(db, before, now).await);
        replaced.await?.map_err(permanent)
    }
}
