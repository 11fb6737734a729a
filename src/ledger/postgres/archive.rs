//! Archives on PostgreSQL, distributed or not: every transaction is about one sale.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_scalar};

use super::{PostgresLedger, one_sale, permanent};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{OrderId, OrderKey, SaleId};
use crate::ledger::archive::{Archive, ArchiveRecord, ArchiveStage, ArchivedOrders};
use crate::ledger::archiving::{self, Blocks, Locked, OneSaleSql, Stored};
use crate::ledger::{LedgerError, keys, statements};

/// The first version of the schema with archived orders, and with tokens of users.
const SINCE: i32 = 6;
/// How long transactions that began before are waited for. Those of floodgate end sooner; an export or an audit
/// may take longer.
const PATIENCE: Duration = Duration::from_mins(5);
/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl OneSaleSql for PgConnection {
    async fn lock(&mut self, sale: &SaleId) -> Locked {
        one_sale::lock(self, sale).await
    }

    async fn stored(&mut self, orders: &[(&SaleId, &OrderId)]) -> Stored {
        one_sale::decisions(self, orders).await
    }

    async fn blocks(&mut self, orders: &[(&SaleId, &OrderId)]) -> Blocks {
        one_sale::blocks(self, orders).await
    }
}

#[async_trait]
impl ArchivedOrders for PostgresLedger {
    async fn archived(
        &self,
        orders: &[OrderKey],
    ) -> Result<Vec<Option<ArchivedOrder>>, LedgerError> {
        let found = if self.distributed {
            self.archived_each(orders).await?
        } else {
            let keys: Vec<_> = orders.iter().map(|key| (&key.sale_id, &key.order_id)).collect();
            self.run(async |db| statements::archived(db, &keys).await).await?
        };
        Ok(orders.iter().map(|key| found.get(key).cloned()).collect())
    }
}

#[async_trait]
impl Archive for PostgresLedger {
    async fn archives(&self, sale: Option<&SaleId>) -> Result<Vec<ArchiveRecord>, LedgerError> {
        self.run(async |db| archiving::archives(db, sale).await).await
    }

    async fn record(&self, archive: &ArchiveRecord, max_age: Duration) -> Result<(), LedgerError> {
        let moves = archive.stage == ArchiveStage::Moving;
        if moves {
            self.shut_out_older().await?;
        }
        let key = keys::random();
        let recorded = self.run(async |db| {
            // Before the lock, so that the sale has been closed for as long at least.
            let now: DateTime<Utc> =
                query_scalar("select clock_timestamp()").fetch_one(&mut *db).await?;
            archiving::record(db, archive, &key, (now, max_age)).await
        });
        recorded.await?.map_err(permanent)?;
        if moves { self.wait_for_older().await } else { Ok(()) }
    }

    async fn move_out(
        &self,
        archive: &ArchiveRecord,
        decisions: &[Decision],
    ) -> Result<u64, LedgerError> {
        let moved = self.run(async |db| archiving::move_out(db, archive, decisions).await);
        moved.await?.map_err(permanent)
    }

    async fn move_back(
        &self,
        archive: &ArchiveRecord,
        decisions: &[Decision],
    ) -> Result<u64, LedgerError> {
        let moved = self.run(async |db| archiving::move_back(db, archive, decisions).await);
        moved.await?.map_err(permanent)
    }

    async fn forget(&self, archive: &ArchiveRecord) -> Result<(), LedgerError> {
        let forgotten = self.run(async |db| archiving::forget(db, archive).await);
        forgotten.await?.map_err(permanent)
    }
}

impl PostgresLedger {
    /// Keeps processes from starting that know nothing of archived orders and of tokens; refused while a worker
    /// runs that does not. Both are for versions from 0.3.0 on: 0.2.0 does not read `ledger_schema`, and its workers do
    /// not register, so an operator has to stop them.
    pub(super) async fn shut_out_older(&self) -> Result<(), LedgerError> {
        let older: i64 = self
            .run(async |db| {
                let raise = "update ledger_schema set usable_from = $1 where usable_from < $1";
                query(raise).bind(SINCE).execute(&mut *db).await?;
                let older = "select count(*) from workers
                     where knows < $1 and seen_at > clock_timestamp() - interval '5 seconds'";
                query_scalar(older).bind(SINCE).fetch_one(db).await
            })
            .await?;
        if older > 0 {
            return Err(permanent(format!(
                "{older} workers of an older version run, which would decide archived orders anew; upgrade them first"
            )));
        }
        Ok(())
    }

    /// Waits until every transaction has ended that runs now: it may not have seen what was committed just before.
    pub(super) async fn wait_for_older(&self) -> Result<(), LedgerError> {
        // Each has a lock on its own virtual id until it ends (PostgreSQL's page on pg_locks). An autovacuum worker, the
        // one process there without a user, reads no decisions and may take hours.
        let running = "select l.virtualtransaction from pg_locks l join pg_stat_activity a on a.pid = l.pid
             where l.locktype = 'virtualxid' and a.datname = current_database() and l.pid <> pg_backend_pid()
                 and a.usesysid is not null
                 and ($1::text[] is null or l.virtualtransaction = any ($1))";
        let begun = Instant::now();
        let mut older: Option<Vec<String>> = None;
        loop {
            let before = older.take();
            let left: Vec<String> = self
                .run(async |db| query_scalar(running).bind(&before).fetch_all(db).await)
                .await?;
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let problem = format!(
                    "{} transactions of others on this database have not ended for {} s (pg_stat_activity has them); \
                     repeat the command when they have",
                    left.len(),
                    PATIENCE.as_secs()
                );
                return Err(LedgerError::Transient(problem.into()));
            }
            older = Some(left);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
