//! The ledger on a distributed PostgreSQL, which keeps the rows of a sale on one of its nodes: a transaction is about
//! one sale, and so goes to one node. See docs/adr/0015-one-sale-to-a-transaction.md.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, query_scalar};

use super::one_sale::{self, OneSale};
use super::transaction::{Begin, Transaction};
use super::{PostgresLedger, classify, connect, permanent};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{OrderKey, SaleId, UserId};
use crate::domain::sale::{Announcement, Sale, SaleState};
use crate::ledger::recipe::{self, Transaction as _};
use crate::ledger::{
    Balance, Book, Change, Changed, Decided, Discrepancy, LedgerError, MAX_ANNOUNCEMENTS, Opening,
    Proposed, books,
};

/// The tables that are distributed, all by the sale, so that the rows of a sale are on the same node.
const TABLES: [&str; 7] = [
    "sales",
    "decisions",
    "buyers",
    "announcements",
    "archived_orders",
    "archives",
    "erased_buyers",
];

/// Distributes the tables of the database at `url`. Running it again changes nothing.
pub(super) async fn distribute(url: &SecretString) -> Result<(), LedgerError> {
    let mut db = connect(url, |options| options).await?;
    let has_citus = "select exists (select 1 from pg_extension where extname = 'citus')";
    if !query_scalar(has_citus).fetch_one(&mut db).await.map_err(classify)? {
        let problem = "the database has no extension citus, which distributes tables; an administrator makes it \
            with: create extension citus";
        return Err(permanent(problem));
    }
    for table in TABLES {
        if is_distributed(&mut db, table).await.map_err(classify)? {
            continue;
        }
        let beside = if table == TABLES[0] { "none" } else { TABLES[0] };
        let sql = format!(
            "select create_distributed_table('{table}', 'sale_id', colocate_with => '{beside}')"
        );
        db.execute(AssertSqlSafe(sql)).await.map_err(classify)?;
    }
    db.close().await.map_err(classify)
}

/// Whether a table is distributed.
pub(super) async fn is_distributed(
    db: &mut PgConnection,
    table: &str,
) -> Result<bool, sqlx::Error> {
    let catalog = "select to_regclass('pg_dist_partition') is not null";
    if !query_scalar::<_, bool>(catalog).fetch_one(&mut *db).await? {
        return Ok(false);
    }
    let found =
        "select exists (select 1 from pg_dist_partition where logicalrelid = to_regclass($1))";
    query_scalar(found).bind(table).fetch_one(db).await
}

/// The parts of `all` that belong to one sale each, with the place of each in `all`.
fn by_sale<'a, T>(
    all: &'a [T],
    sale: impl Fn(&'a T) -> &'a SaleId,
) -> BTreeMap<&'a SaleId, Vec<(usize, &'a T)>> {
    let mut parts: BTreeMap<&SaleId, Vec<(usize, &T)>> = BTreeMap::new();
    for (place, one) in all.iter().enumerate() {
        parts.entry(sale(one)).or_default().push((place, one));
    }
    parts
}

/// Something about one sale.
type Part<'a, T> = BoxFuture<'a, Result<T, LedgerError>>;

impl PostgresLedger {
    /// Does all of `parts`, and says what came of each.
    async fn each<T>(&self, parts: Vec<Part<'_, T>>) -> Result<Vec<T>, LedgerError> {
        // Others need connections too.
        let at_once = self.pool.options().get_max_connections() as usize / 2;
        stream::iter(parts).buffered(at_once.max(1)).try_collect().await
    }

    pub(super) async fn open_each(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        let mut opening: Vec<Part<'_, _>> = Vec::new();
        for part in by_sale(sales, |sale| &sale.id).into_values() {
            let first_mention = part[0].1;
            opening.push(Box::pin(self.run(async move |db| {
                let is_new = one_sale::insert_sale(db, first_mention).await?;
                let new = is_new.then(|| (first_mention.id.to_string(),));
                Ok((new, one_sale::read(db, &first_mention.id).await?))
            })));
        }
        let (new, states): (Vec<_>, Vec<_>) = self.each(opening).await?.into_iter().unzip();
        let states = states.into_iter().flatten().collect();
        Opening::all(sales, new.into_iter().flatten().collect(), &states)
    }

    pub(super) async fn change_one(
        &self,
        sale: &SaleId,
        change: &Change,
    ) -> Result<Changed, LedgerError> {
        self.run(async |db| {
            let Some(mut state) = one_sale::lock(db, sale).await? else {
                return Ok(Changed::UnknownSale);
            };
            let first = one_sale::restock(db, sale, change.adjustment_id()).await?;
            let changed = change.apply(&mut state, first);
            if changed.is_new() {
                one_sale::update_sale(db, &state).await?;
                one_sale::announce(db, &changed.owed()).await?;
            }
            Ok(changed)
        })
        .await
    }

    pub(super) async fn sales_each(
        &self,
        ids: Option<&[SaleId]>,
    ) -> Result<HashMap<SaleId, SaleState>, LedgerError> {
        let Some(ids) = ids else {
            return self.run(async |db| one_sale::every_sale(db).await).await;
        };
        let mut reading: Vec<Part<'_, _>> = Vec::new();
        for id in ids {
            reading.push(Box::pin(self.run(async move |db| one_sale::read(db, id).await)));
        }
        Ok(self.each(reading).await?.into_iter().flatten().collect())
    }

    /// Decides each sale's orders apart. When some can't be decided, others may be: the same again gives the same
    /// decisions.
    pub(super) async fn decide_each(
        &self,
        orders: &[Proposed<'_>],
        max_age: Duration,
    ) -> Result<Decided, LedgerError> {
        let mut deciding: Vec<Part<'_, _>> = Vec::new();
        for part in by_sale(orders, |proposed| &proposed.candidate.order.sale_id).into_values() {
            deciding.push(Box::pin(async move {
                let orders: Vec<Proposed<'_>> = part.iter().map(|(_, order)| **order).collect();
                let begin =
                    || async { Transaction::begin(&self.pool, &self.begin).await.map(OneSale) };
                let decided = recipe::decide(begin, &orders, max_age, &self.has_repeats);
                let decided = self.within(decided).await?;
                let places: Vec<usize> = part.iter().map(|(place, _)| *place).collect();
                Ok((places, decided))
            }));
        }
        let (mut all, mut answers) = (Decided::default(), BTreeMap::new());
        for (places, decided) in self.each(deciding).await? {
            answers.extend(places.into_iter().zip(decided.answers));
            all.sales.extend(decided.sales);
            all.units.extend(decided.units);
            all.lost.extend(decided.lost);
        }
        all.answers = answers.into_values().collect();
        Ok(all)
    }

    pub(super) async fn decisions_each(
        &self,
        orders: &[OrderKey],
    ) -> Result<HashMap<OrderKey, Decision>, LedgerError> {
        let mut reading: Vec<Part<'_, _>> = Vec::new();
        for part in by_sale(orders, |order| &order.sale_id).into_values() {
            reading.push(Box::pin(self.run(async move |db| {
                let keys: Vec<_> =
                    part.iter().map(|(_, key)| (&key.sale_id, &key.order_id)).collect();
                one_sale::decisions(db, &keys).await
            })));
        }
        Ok(self.each(reading).await?.into_iter().flatten().collect())
    }

    pub(super) async fn archived_each(
        &self,
        orders: &[OrderKey],
    ) -> Result<HashMap<OrderKey, ArchivedOrder>, LedgerError> {
        let mut reading: Vec<Part<'_, _>> = Vec::new();
        for part in by_sale(orders, |order| &order.sale_id).into_values() {
            reading.push(Box::pin(self.run(async move |db| {
                let keys: Vec<_> =
                    part.iter().map(|(_, key)| (&key.sale_id, &key.order_id)).collect();
                one_sale::archived(db, &keys).await
            })));
        }
        Ok(self.each(reading).await?.into_iter().flatten().collect())
    }

    pub(super) async fn unpublished_each(
        &self,
        sales: Option<&[SaleId]>,
    ) -> Result<Vec<Announcement>, LedgerError> {
        let Some(sales) = sales else {
            return self.run(async |db| one_sale::unpublished(db, None).await).await;
        };
        let mut reading: Vec<Part<'_, _>> = Vec::new();
        for sale in by_sale(sales, |sale| sale).into_keys() {
            let unpublished =
                async move |db: &mut PgConnection| one_sale::unpublished(db, Some(sale)).await;
            reading.push(Box::pin(self.run(unpublished)));
        }
        let owed = self.each(reading).await?.into_iter().flatten();
        Ok(owed.take(MAX_ANNOUNCEMENTS).collect())
    }

    pub(super) async fn published_each(
        &self,
        announcements: &[Announcement],
    ) -> Result<(), LedgerError> {
        for announcement in announcements {
            self.run(async |db| one_sale::published(db, announcement).await).await?;
        }
        Ok(())
    }

    pub(super) async fn units_each(
        &self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, LedgerError> {
        let mut units = HashMap::new();
        for part in by_sale(buyers, |(sale, _)| *sale).into_values() {
            let buyers: Vec<_> = part.into_iter().map(|(_, buyer)| *buyer).collect();
            units.extend(self.run(async |db| one_sale::units(db, &buyers).await).await?);
        }
        Ok(units)
    }

    /// Balances the books of each sale apart, each as it is at one moment.
    pub(super) async fn balance_each(
        &self,
        sale: Option<&SaleId>,
        ms: fn(&str) -> String,
    ) -> Result<Balance, LedgerError> {
        let ids = match sale {
            Some(sale) => vec![sale.to_string()],
            None => self.auditing(async |db| one_sale::every_id(db).await).await?,
        };
        let mut all = Balance { sales: 0, decisions: 0, discrepancies: Vec::new() };
        for sale_id in ids {
            let Ok(sale) = SaleId::parse(sale_id.clone()) else {
                let (book, about) = (Book::Sales, "sale".to_owned());
                let detail = "is no sale id".to_owned();
                all.discrepancies.push(Discrepancy { book, sale_id, about, detail });
                continue;
            };
            let balancing = self.auditing(async |db| books::balance(db, Some(&sale), ms).await);
            let Balance { sales, decisions, discrepancies } = balancing.await?;
            all.sales += sales;
            all.decisions += decisions;
            all.discrepancies.extend(discrepancies);
        }
        all.discrepancies.sort_by_key(|found| found.book);
        Ok(all)
    }

    /// Does `work` in a transaction for audits.
    pub(super) async fn auditing<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, LedgerError> {
        let working = async {
            self.server.settle(&self.pool, self.timeout / 5).await?;
            let mut transaction = Transaction::begin(&self.pool, &Begin::audit()).await?;
            let result = work(transaction.connection()).await?;
            transaction.roll_back().await?;
            Ok(result)
        };
        working.await.map_err(classify)
    }
}
