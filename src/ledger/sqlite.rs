//! The ledger in a SQLite file.
//!
//! A batch is one transaction. Only one writes at a time, so what it reads stays true until it is
//! committed: there is nothing to lock and no hint that could save anything.

mod rows;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::batch::{Batch, Changes, limited};
use super::{Change, Changed, Decided, Ledger, LedgerError, Opening, Outbox, Proposed};
use crate::clock::Clock;
use crate::decision::Decision;
use crate::order::{OrderKey, SaleId};
use crate::rules::State;
use crate::sale::{Announcement, Sale, SaleState};
use crate::sqlite::{SqliteFile, Survives, Trouble};

/// [`Ledger`] in a file.
#[derive(Clone)]
pub struct SqliteLedger {
    file: SqliteFile,
    clock: Clock,
}

impl SqliteLedger {
    /// The ledger in `file`, whose time is that of `clock`.
    pub fn new(file: SqliteFile, clock: Clock) -> Self {
        Self { file, clock }
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

    /// Reads what the rule needs to know of a batch.
    async fn read(
        &self,
        connection: &mut SqliteConnection,
        batch: &Batch<'_>,
        max_age: Duration,
    ) -> Result<State, sqlx::Error> {
        let ids = batch.sales();
        let sales = rows::sales_by_id(&mut *connection, &ids).await?;
        let buyers = limited(&sales, batch.orders_of(&ids));
        let units = rows::units(&mut *connection, &buyers).await?;
        let orders = batch.orders_of(&ids).map(|candidate| &candidate.order);
        let keys: Vec<_> = orders.map(|order| (&order.sale_id, &order.id)).collect();
        let decisions = rows::decisions(connection, &keys).await?;
        let now = rows::whole_ms((self.clock)());
        Ok(State { now, max_age, sales, units, decisions })
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        let sales: Vec<Sale> = sales.iter().map(rows::in_whole_ms).collect();
        let ids: Vec<&SaleId> = sales.iter().map(|sale| &sale.id).collect();
        let mut writing = self.file.begin(Survives::PowerLoss).await.map_err(classify)?;
        let connection = writing.connection();
        let new = rows::insert_sales(connection, &sales).await.map_err(classify)?;
        let states = rows::sales_by_id(connection, &ids).await.map_err(classify)?;
        writing.commit().await.map_err(classify)?;
        Opening::all(&sales, new, &states)
    }

    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError> {
        let mut writing = self.file.begin(Survives::PowerLoss).await.map_err(classify)?;
        let connection = writing.connection();
        let states = rows::sales_by_id(connection, &[sale]).await.map_err(classify)?;
        let Some(mut state) = states.into_values().next() else {
            writing.roll_back().await.map_err(classify)?;
            return Ok(Changed::UnknownSale);
        };
        let first = match change {
            Change::Restock { adjustment_id, .. } => {
                rows::restock(connection, sale, adjustment_id).await.map_err(classify)?
            }
            Change::Close { .. } | Change::Verify { .. } => None,
        };
        let (changed, is_new) = match change.apply(&mut state, first) {
            Ok(applied) => applied,
            Err(refused) => {
                writing.roll_back().await.map_err(classify)?;
                return Err(LedgerError::Permanent(Box::new(refused)));
            }
        };
        if is_new {
            store_change(connection, &state, &changed).await.map_err(classify)?;
        }
        writing.commit().await.map_err(classify)?;
        Ok(changed)
    }

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        rows::sales(self.file.readers(), ids).await.map_err(classify)
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
        let mut writing = self.file.begin(Survives::PowerLoss).await.map_err(classify)?;
        let state = self.read(writing.connection(), &batch, max_age).await.map_err(classify)?;
        batch.decide(&batch.sales(), state);
        write(writing.connection(), &batch.changes()).await.map_err(classify)?;
        writing.commit().await.map_err(classify)?;
        Ok(batch.finish())
    }

    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError> {
        let keys: Vec<_> = orders.iter().map(|key| (&key.sale_id, &key.order_id)).collect();
        let found = rows::decisions(self.file.readers(), &keys).await.map_err(classify)?;
        Ok(orders.iter().map(|key| found.get(key).cloned()).collect())
    }
}

#[async_trait]
impl Outbox for SqliteLedger {
    async fn unpublished(&self) -> Result<Vec<Announcement>, LedgerError> {
        rows::announcements(self.file.readers()).await.map_err(classify)
    }

    async fn published(&self, announcements: &[Announcement]) -> Result<(), LedgerError> {
        let mut writing = self.file.begin(Survives::Kill).await.map_err(classify)?;
        let forgotten = rows::forget_announcements(writing.connection(), announcements).await;
        forgotten.map_err(classify)?;
        writing.commit().await.map_err(classify)
    }
}

/// Writes what a batch came to.
async fn write(
    connection: &mut SqliteConnection,
    changes: &Changes<'_>,
) -> Result<(), sqlx::Error> {
    let Changes { decisions, sales, buyers, announcements } = changes;
    rows::insert_decisions(&mut *connection, decisions).await?;
    rows::update_sold(&mut *connection, sales).await?;
    rows::set_units(&mut *connection, buyers).await?;
    rows::announce(connection, announcements).await
}

/// Writes what has become of a sale that an operator changed.
async fn store_change(
    connection: &mut SqliteConnection,
    state: &SaleState,
    changed: &Changed,
) -> Result<(), sqlx::Error> {
    rows::update_sale(&mut *connection, state).await?;
    if let Changed::Done { restock: Some(restock), .. } = changed {
        rows::insert_restock(&mut *connection, restock).await?;
        rows::announce(connection, &[Announcement::Restocked(restock.clone())]).await?;
    }
    Ok(())
}

fn classify(error: sqlx::Error) -> LedgerError {
    match Trouble::of(&error) {
        Trouble::Stays => LedgerError::Permanent(Box::new(error)),
        Trouble::Full | Trouble::Passes => LedgerError::Transient(Box::new(error)),
    }
}
