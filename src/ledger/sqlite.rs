//! The ledger in a SQLite file.
//!
//! A batch is one transaction. Only one writes at a time, so what it reads stays true until it is
//! committed: there is nothing to lock and no hint that could save anything.

mod archive;
mod erasure;
mod operator_log;
mod rows;
mod webhooks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::SubsecRound;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::batch::{Batch, Changes, is_archived, limited, tokens};
use super::changes::sorted;
use super::{
    Balance, Books, Change, Changed, Decided, Ledger, LedgerError, Opening, Outbox, Proposed,
};
use super::{books, statements};
use crate::clock::Clock;
use crate::domain::decision::Decision;
use crate::domain::order::{OrderId, OrderKey, SaleId, UserId};
use crate::domain::rules::State;
use crate::domain::sale::{Announcement, Sale, SaleState};
use crate::metrics::{Dependency, Metrics};
use crate::outage::Outage;
use crate::sqlite::{SqliteFile, Survives, Trouble};

/// [`Ledger`] in a file.
#[derive(Clone)]
pub struct SqliteLedger {
    file: SqliteFile,
    clock: Clock,
    outage: Arc<Outage>,
}

impl SqliteLedger {
    /// The ledger in `file`, whose time is that of `clock`.
    pub fn new(file: SqliteFile, clock: Clock, metrics: &Metrics) -> Self {
        let outage = Outage::new(metrics.dependencies.of(Dependency::Sqlite));
        Self { file, clock, outage: Arc::new(outage) }
    }

    /// Bytes of the whole file, and how many decisions are in it.
    pub async fn usage(&self) -> Result<(u64, u64), LedgerError> {
        let query = sqlx::query_as(
            "select page_count * page_size, (select count(*) from decisions)
             from pragma_page_count, pragma_page_size",
        );
        let (bytes, count): (i64, i64) =
            query.fetch_one(self.file.readers()).await.map_err(classify)?;
        Ok((bytes.cast_unsigned(), count.cast_unsigned()))
    }

    /// Does `work` in a transaction that writes.
    async fn run<T>(
        &self,
        survives: Survives,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, LedgerError> {
        let transaction = async {
            let mut writing = self.file.begin(survives).await?;
            let result = work(writing.connection()).await?;
            writing.commit().await?;
            Ok(result)
        };
        self.outage.noted(transaction.await.map_err(classify), LedgerError::is_transient)
    }

    /// Does `work`, which only reads, beside the transactions.
    async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, LedgerError> {
        let reading = async { work(&mut *self.file.readers().acquire().await?).await };
        self.outage.noted(reading.await.map_err(classify), LedgerError::is_transient)
    }

    /// Reads what the rule needs to know of a batch.
    async fn state_of(
        &self,
        db: &mut SqliteConnection,
        batch: &Batch<'_>,
        max_age: Duration,
    ) -> Result<State, sqlx::Error> {
        let ids = batch.sales();
        let sales = rows::sales(db, Some(&ids)).await?;
        let mut erased = tokens(&sales, batch.orders_of(&ids));
        let keys: Vec<_> = erased.iter().map(|((sale, _), token)| (sale, token)).collect();
        let known = statements::erased(db, &keys).await?;
        erased.retain(|(sale, _), token| known.contains(&(sale.clone(), token.clone())));
        let buyers = limited(&sales, batch.orders_of(&ids), &erased);
        let units = statements::units(db, &buyers).await?;
        let orders = batch.orders_of(&ids).map(|candidate| &candidate.order);
        let keys: Vec<_> = orders.map(|order| (&order.sale_id, &order.id)).collect();
        let decisions = statements::decisions(db, &keys).await?;
        let archived = keys.into_iter().filter(|(sale, _)| is_archived(&sales, sale));
        let archived = statements::archived(db, &archived.collect::<Vec<_>>()).await?;
        let now = (self.clock)().trunc_subsecs(3);
        Ok(State { now, max_age, sales, units, decisions, archived, erased })
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        let (new, states) = self
            .run(Survives::PowerLoss, async |db| {
                let new = statements::insert_sales(db, sales).await?;
                let ids: Vec<&SaleId> = sales.iter().map(|sale| &sale.id).collect();
                Ok((new, rows::sales(db, Some(&ids)).await?))
            })
            .await?;
        Opening::all(sales, new, &states)
    }

    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError> {
        self.run(Survives::PowerLoss, async |db| {
            let Some(mut state) = rows::sales(db, Some(&[sale])).await?.remove(sale) else {
                return Ok(Changed::UnknownSale);
            };
            let first = statements::restock(db, sale, change.adjustment_id()).await?;
            let changed = change.apply(&mut state, first);
            if changed.is_new() {
                statements::update_sale(db, &state).await?;
                statements::announce(db, &changed.owed()).await?;
            }
            Ok(changed)
        })
        .await
    }

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        let ids: Option<Vec<&SaleId>> = ids.map(|ids| ids.iter().collect());
        Ok(sorted(self.read(async |db| rows::sales(db, ids.as_deref()).await).await?))
    }

    async fn decide(
        &self,
        orders: &[Proposed<'_>],
        max_age: Duration,
    ) -> Result<Decided, LedgerError> {
        if orders.is_empty() {
            return Ok(Decided::default());
        }
        let mut batch = Batch::new(orders);
        self.run(Survives::PowerLoss, async |db| {
            let mut state = self.state_of(db, &batch, max_age).await?;
            batch.hold_restored(&mut state.sales);
            batch.decide(&batch.sales(), state);
            write(db, &batch.changes()).await
        })
        .await?;
        Ok(batch.finish())
    }

    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError> {
        let keys: Vec<_> = orders.iter().map(|key| (&key.sale_id, &key.order_id)).collect();
        let found = self.read(async |db| statements::decisions(db, &keys).await).await?;
        Ok(orders.iter().map(|key| found.get(key).cloned()).collect())
    }
}

#[async_trait]
impl Outbox for SqliteLedger {
    async fn unpublished(
        &self,
        sales: Option<&[SaleId]>,
    ) -> Result<Vec<Announcement>, LedgerError> {
        self.read(async |db| statements::unpublished(db, sales).await).await
    }

    async fn published(&self, announcements: &[Announcement]) -> Result<(), LedgerError> {
        self.run(Survives::Kill, async |db| statements::published(db, announcements).await).await
    }
}

#[async_trait]
impl Books for SqliteLedger {
    async fn balance(&self, sale: Option<&SaleId>) -> Result<Balance, LedgerError> {
        self.read(async |db| {
            let mut moment = db.begin().await?;
            let ms =
                |time: &str| format!("cast(unixepoch({time}, 'subsec') * 1000 + 0.5 as integer)");
            let balance = books::balance(&mut *moment, sale, ms).await?;
            moment.rollback().await?;
            Ok(balance)
        })
        .await
    }

    async fn decided(
        &self,
        sale: &SaleId,
        after: Option<&OrderId>,
        limit: u32,
    ) -> Result<Vec<Decision>, LedgerError> {
        self.read(async |db| books::decided(db, sale, after, limit).await).await
    }

    async fn units(
        &self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, LedgerError> {
        self.read(async |db| statements::units(db, buyers).await).await
    }
}

/// Writes what a batch came to.
async fn write(db: &mut SqliteConnection, changes: &Changes<'_>) -> Result<(), sqlx::Error> {
    let Changes { decisions, sales, buyers, announcements } = changes;
    if !decisions.is_empty() {
        rows::insert_decisions(db, decisions).await?;
    }
    if !sales.is_empty() {
        rows::update_sold(db, sales).await?;
    }
    statements::set_units(db, buyers).await?;
    statements::announce(db, announcements).await
}

fn classify(error: sqlx::Error) -> LedgerError {
    match Trouble::of(&error) {
        Trouble::Stays => LedgerError::Permanent(Box::new(error)),
        Trouble::Full | Trouble::Passes => LedgerError::Transient(Box::new(error)),
    }
}
