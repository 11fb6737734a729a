//! A transaction that blocks others for a short time only, whatever becomes of the worker that began it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres};

use super::rows;
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{OrderId, OrderKey, SaleId, UserId};
use crate::ledger::recipe::{self, Changes, SalesRead};
use crate::ledger::statements;

/// A worker that stands still within a transaction loses it after this, and others go on.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// The statement that begins a transaction.
#[derive(Debug)]
pub(super) struct Begin(String);

impl Begin {
    /// For transactions whose statements, waiting for locks included, take no longer than `limit`.
    ///
    /// Every setting is local to the transaction, so that it also works behind a pooler that hands
    /// the connection on afterwards. Read committed, whatever the database's default: what is read
    /// after a lock was granted must be what the one before left. Plans are made for the arrays of
    /// this very call: those kept from when the tables were empty would read them whole. The rows of
    /// a set are found by nested loops over the key: to a planner that has never analyzed a table, or
    /// one of some 20,000 rows, a hash of the whole table looks cheaper and takes up to 40 times as
    /// long.
    pub(super) fn new(limit: Duration) -> Self {
        let (limit_ms, idle_ms) = (limit.as_millis(), IDLE_LIMIT.as_millis());
        Self(format!(
            "begin isolation level read committed;
             set local idle_in_transaction_session_timeout = {idle_ms};
             set local lock_timeout = {limit_ms};
             set local statement_timeout = {limit_ms};
             set local plan_cache_mode = force_custom_plan;
             set local enable_hashjoin = off;
             set local enable_mergejoin = off"
        ))
    }

    /// For an audit: it sees one moment, locks nothing, and takes its time.
    pub(super) fn audit() -> Self {
        Self(
            "begin isolation level repeatable read read only;
             set local statement_timeout = 0"
                .to_owned(),
        )
    }
}

/// A transaction. Dropped before the server has confirmed its end, it closes its connection, so that
/// no open transaction gets back to the pool, and the server rolls it back.
pub(super) struct Transaction(Option<PoolConnection<Postgres>>);

impl Transaction {
    pub(super) async fn begin(pool: &PgPool, begin: &Begin) -> Result<Self, sqlx::Error> {
        let mut transaction = Self(Some(pool.acquire().await?));
        run(transaction.connection(), &begin.0).await?;
        Ok(transaction)
    }

    /// To run statements on.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        match &mut self.0 {
            Some(connection) => connection,
            None => unreachable!("taken only when it ends"),
        }
    }

    async fn end(mut self, how: &str) -> Result<(), sqlx::Error> {
        run(self.connection(), how).await?;
        drop(self.0.take());
        Ok(())
    }
}

impl recipe::Transaction for Transaction {
    type Error = sqlx::Error;

    async fn sales(&mut self, ids: &[&SaleId]) -> Result<SalesRead, sqlx::Error> {
        rows::sales(self.connection(), Some(ids)).await
    }

    async fn lock_sales(&mut self, ids: &[&SaleId]) -> Result<SalesRead, sqlx::Error> {
        rows::lock_sales(self.connection(), ids).await
    }

    async fn units(
        &mut self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
        statements::units(self.connection(), buyers).await
    }

    async fn decisions(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
        statements::decisions(self.connection(), orders).await
    }

    async fn archived(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> Result<HashMap<OrderKey, ArchivedOrder>, sqlx::Error> {
        statements::archived(self.connection(), orders).await
    }

    async fn erased(
        &mut self,
        tokens: &[(&SaleId, &UserId)],
    ) -> Result<HashSet<(SaleId, UserId)>, sqlx::Error> {
        statements::erased(self.connection(), tokens).await
    }

    async fn write(&mut self, changes: &Changes<'_>) -> Result<bool, sqlx::Error> {
        let Changes { decisions, sales, buyers, announcements } = changes;
        let connection = self.connection();
        if !rows::insert_decisions(connection, decisions, sales).await? {
            return Ok(false);
        }
        statements::set_units(connection, buyers).await?;
        statements::announce(connection, announcements).await?;
        Ok(true)
    }

    async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("commit").await
    }

    async fn roll_back(self) -> Result<(), sqlx::Error> {
        self.end("rollback").await
    }

    /// A serialization failure (40001) or a deadlock (40P01), PostgreSQL's appendix A.
    fn is_lost_to_another(error: &sqlx::Error) -> bool {
        super::sqlstate(error).is_some_and(|code| matches!(&*code, "40001" | "40P01"))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

async fn run(connection: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await.map(drop)
}
