//! The ledger in a SQLite file.
//!
//! A batch is one transaction. Only one writes at a time, so what it reads stays true until it is
//! committed: the batch is judged here in queue order, and the checks of the tables are only the
//! last guard.

mod judge;
mod rows;

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::{Change, Changed, Ledger, LedgerError, Opening, Proposed, Recording};
use crate::decision::Decision;
use crate::order::{OrderId, OrderKey, SaleId};
use crate::sale::{Restock, Sale, SaleState};
use crate::sqlite::{SqliteFile, Survives, Trouble};
use judge::{Books, Judged};

/// [`Ledger`] in a file.
#[derive(Debug, Clone)]
pub struct SqliteLedger {
    file: SqliteFile,
}

impl SqliteLedger {
    /// The ledger in `file`.
    pub fn new(file: SqliteFile) -> Self {
        Self { file }
    }

    /// Bytes of the whole file, and how many decisions are in it.
    pub async fn usage(&self) -> Result<(u64, u64), LedgerError> {
        let query = sqlx::query_as(
            "select page_count * page_size, (select count(*) from decisions)
             from pragma_page_count, pragma_page_size",
        );
        let (bytes, count): (i64, i64) =
            query.fetch_one(self.file.readers()).await.map_err(sorted)?;
        Ok((bytes.cast_unsigned(), count.cast_unsigned()))
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        let sales: Vec<Sale> = sales.iter().map(rows::in_whole_ms).collect();
        let ids: Vec<&SaleId> = sales.iter().map(|sale| &sale.id).collect();
        let mut writing = self.file.begin(Survives::PowerLoss).await.map_err(sorted)?;
        let connection = writing.connection();
        let mut new: HashSet<String> =
            rows::insert_sales(connection, &sales).await.map_err(sorted)?.into_iter().collect();
        let states = rows::sales_by_id(connection, &ids).await.map_err(sorted)?;
        writing.commit().await.map_err(sorted)?;
        sales
            .iter()
            .map(|sale| match states.get(&sale.id) {
                // Only its first mention opened it, should the same sale be asked for twice.
                _ if new.remove(sale.id.as_str()) => Ok(Opening::Opened),
                Some(state) if state.sale == *sale => Ok(Opening::Unchanged),
                Some(state) => Ok(Opening::Differs(state.clone())),
                None => Err(LedgerError::Permanent(format!("sale {} is gone", sale.id).into())),
            })
            .collect()
    }

    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError> {
        let mut writing = self.file.begin(Survives::PowerLoss).await.map_err(sorted)?;
        let changed = apply(writing.connection(), sale, change).await.map_err(sorted)?;
        writing.commit().await.map_err(sorted)?;
        Ok(changed)
    }

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        rows::sales(self.file.readers(), ids).await.map_err(sorted)
    }

    async fn record(&self, proposals: &[Proposed<'_>]) -> Result<Recording, LedgerError> {
        if proposals.is_empty() {
            return Ok(Recording { answers: Vec::new(), sold_out: Vec::new() });
        }
        let mut writing = self.file.begin(Survives::PowerLoss).await.map_err(sorted)?;
        let books = look_up(writing.connection(), proposals).await.map_err(sorted)?;
        let judged = match books.judge(proposals) {
            Ok(judged) => judged,
            Err(unknown) => {
                writing.roll_back().await.map_err(sorted)?;
                let problem = format!("sale {unknown} is unknown to the ledger");
                return Err(LedgerError::Permanent(problem.into()));
            }
        };
        store(writing.connection(), &judged).await.map_err(sorted)?;
        writing.commit().await.map_err(sorted)?;
        Ok(judged.recording)
    }

    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError> {
        let wanted: Vec<&OrderId> = orders.iter().map(|order| &order.order_id).collect();
        let found = rows::decisions(self.file.readers(), &wanted).await.map_err(sorted)?;
        // The same order may be asked for twice.
        let decisions = orders.iter().map(|order| {
            let decision = found.get(&order.order_id)?;
            (decision.order.sale_id == order.sale_id).then(|| decision.clone())
        });
        Ok(decisions.collect())
    }
}

/// Everything that the tables say about the orders of `proposals`.
async fn look_up(
    connection: &mut SqliteConnection,
    proposals: &[Proposed<'_>],
) -> Result<Books, sqlx::Error> {
    let orders = || proposals.iter().map(|proposed| &proposed.decision.order);
    let ids: Vec<&OrderId> = orders().map(|order| &order.id).collect();
    let known = rows::decisions(&mut *connection, &ids).await?;
    let sales: HashSet<&SaleId> = orders().map(|order| &order.sale_id).collect();
    let sales: Vec<&SaleId> = sales.into_iter().collect();
    let sales = rows::sales_by_id(&mut *connection, &sales).await?;
    let limited: HashSet<_> = orders()
        .filter(|order| {
            sales.get(&order.sale_id).is_some_and(|state| state.sale.per_user_limit.is_some())
        })
        .map(|order| (&order.sale_id, &order.user_id))
        .collect();
    let bought = rows::bought(connection, limited).await?;
    Ok(Books::new(known, sales, bought))
}

/// Writes what a batch came to.
async fn store(connection: &mut SqliteConnection, judged: &Judged) -> Result<(), sqlx::Error> {
    rows::insert_decisions(&mut *connection, &judged.new).await?;
    rows::update_sold(&mut *connection, &judged.sold).await?;
    rows::set_bought(connection, &judged.bought).await
}

/// Changes a sale, and says how it stands then.
async fn apply(
    connection: &mut SqliteConnection,
    sale: &SaleId,
    change: &Change,
) -> Result<Changed, sqlx::Error> {
    let restock = match change {
        Change::Restock { adjustment_id, units, at } => {
            rows::restock(&mut *connection, adjustment_id, sale, *units, *at).await?
        }
        Change::Close { at } => {
            rows::close(&mut *connection, sale, *at).await?;
            None
        }
        Change::Verify { on } => {
            rows::verify(&mut *connection, sale, *on).await?;
            None
        }
    };
    let Some(state) = rows::sales_by_id(connection, &[sale]).await?.remove(sale) else {
        return Ok(Changed::UnknownSale);
    };
    Ok(match (change, restock) {
        (Change::Restock { units, .. }, Some(first)) if !is(&first, sale, units.get()) => {
            Changed::Conflict(first)
        }
        (_, restock) => Changed::Done { state, restock },
    })
}

/// Whether `restock` adds `units` to `sale`.
fn is(restock: &Restock, sale: &SaleId, units: u32) -> bool {
    restock.sale_id == *sale && restock.units.get() == units
}

fn sorted(error: sqlx::Error) -> LedgerError {
    match Trouble::of(&error) {
        Trouble::Stays => LedgerError::Permanent(Box::new(error)),
        Trouble::Full | Trouble::Passes => LedgerError::Transient(Box::new(error)),
    }
}
