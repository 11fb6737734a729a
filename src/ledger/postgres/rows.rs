//! The statements that only PostgreSQL has: those of every batch, whose sets go in as arrays, one for
//! each column, which take a tenth of the time of JSON.

use chrono::{DateTime, SubsecRound};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, FromRow, Row, query, query_as, query_scalar};

use crate::domain::decision::Decision;
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;
use crate::ledger::recipe::SalesRead;
use crate::ledger::rows::{self, letter, waited_ms};
use crate::ledger::statements::{AnyRow, SALE, Sql};

impl Sql for PgConnection {
    fn set(table: &str, _: &str) -> String {
        format!("json_populate_recordset(null::{table}, $1::json)")
    }

    fn bytes(name: &str) -> String {
        name.to_owned()
    }

    async fn write(&mut self, sql: String, set: String) -> Result<(), sqlx::Error> {
        query(AssertSqlSafe(sql)).bind(set).execute(self).await.map(drop)
    }

    async fn read<R: AnyRow>(&mut self, sql: String, set: String) -> Result<Vec<R>, sqlx::Error> {
        query_as(AssertSqlSafe(sql)).bind(set).fetch_all(self).await
    }
}

/// What fits: the domain bounds stock and quantities to four bytes with a sign.
pub(super) fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// One column of a set.
pub(super) fn column<'a, T, C>(set: &'a [T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    set.iter().map(of).collect()
}

/// Those of `ids` that exist, or all.
pub(super) async fn sales(
    db: &mut PgConnection,
    ids: Option<&[&SaleId]>,
) -> Result<SalesRead, sqlx::Error> {
    named_sales(db, ids, "").await
}

/// Those of `ids` that exist, locked in the order of their ids, so that no other transaction sells or
/// changes them. The rows are as the transaction before the lock has left them, and the time is after it.
pub(super) async fn lock_sales(
    db: &mut PgConnection,
    ids: &[&SaleId],
) -> Result<SalesRead, sqlx::Error> {
    named_sales(db, Some(ids), "order by sale_id for no key update").await
}

async fn named_sales(
    db: &mut PgConnection,
    ids: Option<&[&SaleId]>,
    how: &str,
) -> Result<SalesRead, sqlx::Error> {
    // The clock is read above the part that locks, once a row has come out of it.
    let sql = AssertSqlSafe(format!(
        "with read as materialized (select {SALE} from sales where $1 is null or sale_id = any ($1::text[]) {how})
         select *, clock_timestamp() as read_at from read"
    ));
    let ids = ids.map(|ids| column(ids, |id| id.as_str()));
    let rows = query(sql).bind(ids).fetch_all(&mut *db).await?;
    let (mut now, mut states) = (DateTime::UNIX_EPOCH, Vec::with_capacity(rows.len()));
    if rows.is_empty() {
        now = query_scalar("select clock_timestamp()").fetch_one(db).await?;
    }
    for row in &rows {
        now = now.max(row.try_get("read_at")?);
        states.push(rows::SaleRow::from_row(row)?);
    }
    Ok((now.trunc_subsecs(3), rows::sales(states)?))
}

/// Stores decisions, in the order given, and how much of `sales`, which are locked, is sold by them.
/// False when one of the decisions is there already: then the transaction can only be rolled back.
///
/// An insert that skips conflicts would make a batch of 256 cost a quarter more, for the rare repeat.
pub(super) async fn insert_decisions(
    db: &mut PgConnection,
    decisions: &[&Decision],
    sales: &[&SaleState],
) -> Result<bool, sqlx::Error> {
    const INSERT: &str = "insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms,
                decided_at, version, sold)
         select sale_id, order_id, user_id, quantity, outcome::\"char\", waited_ms, decided_at,
                version, sold
         from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::integer[],
                $7::timestamptz[], $8::integer[], $9::integer[])
             as i (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold)";
    const SELL: &str = "with sold as (
             update sales s set sold = i.sold, sold_out_at = i.sold_out_at
             from unnest($10::text[], $11::integer[], $12::timestamptz[])
                 as i (sale_id, sold, sold_out_at)
             where s.sale_id = i.sale_id)";
    if decisions.is_empty() {
        return Ok(true);
    }
    let sql = if sales.is_empty() { INSERT.to_owned() } else { format!("{SELL} {INSERT}") };
    let mut insert = query(AssertSqlSafe(sql))
        .bind(column(decisions, |decision| decision.order.sale_id.as_str()))
        .bind(column(decisions, |decision| decision.order.id.as_str()))
        .bind(column(decisions, |decision| decision.order.user_id.as_str()))
        .bind(column(decisions, |decision| int(decision.order.quantity.get())))
        .bind(column(decisions, |decision| letter(decision.outcome)))
        .bind(column(decisions, |decision| waited_ms(decision)))
        .bind(column(decisions, |decision| decision.decided_at))
        .bind(column(decisions, |decision| int(decision.version)))
        .bind(column(decisions, |decision| int(decision.sold)));
    if !sales.is_empty() {
        insert = insert
            .bind(column(sales, |state| state.sale.id.as_str()))
            .bind(column(sales, |state| int(state.sold)))
            .bind(column(sales, |state| state.sold_out_at));
    }
    match insert.execute(db).await {
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("decisions_pkey") => {
            Ok(false)
        }
        result => result.map(|_| true),
    }
}
