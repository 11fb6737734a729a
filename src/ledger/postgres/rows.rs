//! The statements of the ledger. Sets go in as arrays, one for each column.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, FromRow, Row, query, query_as, query_scalar};

use crate::decision::Decision;
use crate::ledger::MAX_ANNOUNCEMENTS;
use crate::ledger::rows::{self, letter, waited_ms};
use crate::order::{AdjustmentId, OrderId, OrderKey, SaleId, UserId};
use crate::sale::{Announcement, Restock, Sale, SaleState};

const SALES: &str =
    "select sale_id, stock, sold, per_user_limit, opens_at, closes_at, verification,
    version, sold_out_at from sales";
const ANNOUNCEMENTS: &str =
    "select sale_id, version, adjustment_id, units, stock, at from announcements";

/// What fits: the domain bounds stock and quantities to four bytes with a sign.
fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// One column of a set.
fn column<'a, T, C>(set: &'a [T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    set.iter().map(of).collect()
}

/// All sales, by id.
pub(super) async fn all_sales(db: &mut PgConnection) -> Result<Vec<SaleState>, sqlx::Error> {
    let sql = AssertSqlSafe(format!("{SALES} order by sale_id"));
    let rows: Vec<rows::SaleRow> = query_as(sql).fetch_all(db).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Sales of a batch, and the ledger's time when the last of them was read.
pub(super) type SalesRead = (DateTime<Utc>, HashMap<SaleId, SaleState>);

/// Those of `ids` that exist.
pub(super) async fn sales(
    db: &mut PgConnection,
    ids: &[&SaleId],
) -> Result<SalesRead, sqlx::Error> {
    named_sales(db, ids, "").await
}

/// Those of `ids` that exist, locked in the order of their ids, so that no other transaction sells or
/// changes them. The rows are as the transaction before the lock has left them, and the time is after it.
pub(super) async fn lock_sales(
    db: &mut PgConnection,
    ids: &[&SaleId],
) -> Result<SalesRead, sqlx::Error> {
    named_sales(db, ids, "order by sale_id for no key update").await
}

async fn named_sales(
    db: &mut PgConnection,
    ids: &[&SaleId],
    how: &str,
) -> Result<SalesRead, sqlx::Error> {
    // The clock is read above the part that locks, once a row has come out of it.
    let sql = AssertSqlSafe(format!(
        "with read as materialized ({SALES} where sale_id = any ($1) {how})
         select *, clock_timestamp() as read_at from read"
    ));
    let rows = query(sql).bind(column(ids, |id| id.as_str())).fetch_all(db).await?;
    let (mut now, mut states) = (DateTime::UNIX_EPOCH, Vec::with_capacity(rows.len()));
    for row in &rows {
        now = now.max(row.try_get("read_at")?);
        states.push(rows::SaleRow::from_row(row)?);
    }
    Ok((now.trunc_subsecs(3), rows::sales(states)?))
}

/// The units of `buyers`, 0 for those who have none.
pub(super) async fn units(
    db: &mut PgConnection,
    buyers: &[(&SaleId, &UserId)],
) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
    if buyers.is_empty() {
        return Ok(HashMap::new());
    }
    let select = query_as(
        "select i.sale_id, i.user_id, coalesce(b.units, 0) as units
         from unnest($1::text[], $2::text[]) as i (sale_id, user_id)
         left join buyers b on b.sale_id = i.sale_id and b.user_id = i.user_id",
    )
    .bind(column(buyers, |(sale, _)| sale.as_str()))
    .bind(column(buyers, |(_, user)| user.as_str()));
    Ok(rows::units(select.fetch_all(db).await?))
}

/// The decisions that are stored for `orders`.
pub(super) async fn decisions(
    db: &mut PgConnection,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    if orders.is_empty() {
        return Ok(HashMap::new());
    }
    let select = query_as(
        "select d.sale_id, d.order_id, d.user_id, d.quantity, d.outcome::text as outcome,
                d.waited_ms, d.decided_at, d.version, d.sold
         from unnest($1::text[], $2::text[]) as i (sale_id, order_id)
         join decisions d on d.sale_id = i.sale_id and d.order_id = i.order_id",
    )
    .bind(column(orders, |(sale, _)| sale.as_str()))
    .bind(column(orders, |(_, order)| order.as_str()));
    rows::decisions(select.fetch_all(db).await?)
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

/// Writes how many units buyers of locked sales have, with their limit.
pub(super) async fn set_units(
    db: &mut PgConnection,
    buyers: &[(&SaleId, &UserId, u32, u32)],
) -> Result<(), sqlx::Error> {
    if buyers.is_empty() {
        return Ok(());
    }
    let upsert = query(
        "insert into buyers (sale_id, user_id, units, unit_limit)
         select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
         on conflict (sale_id, user_id) do update set units = excluded.units",
    )
    .bind(column(buyers, |buyer| buyer.0.as_str()))
    .bind(column(buyers, |buyer| buyer.1.as_str()))
    .bind(column(buyers, |buyer| i64::from(buyer.2)))
    .bind(column(buyers, |buyer| i64::from(buyer.3)));
    upsert.execute(db).await.map(drop)
}

/// Stores the sales that are not there, and names them.
pub(super) async fn insert_sales(
    db: &mut PgConnection,
    sales: &[Sale],
) -> Result<Vec<String>, sqlx::Error> {
    let insert = query_scalar(
        "insert into sales (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
         select * from unnest($1::text[], $2::integer[], $3::bigint[], $4::timestamptz[],
                $5::timestamptz[], $6::boolean[])
             as i (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
         order by sale_id
         on conflict (sale_id) do nothing returning sale_id",
    )
    .bind(column(sales, |sale| sale.id.as_str()))
    .bind(column(sales, |sale| int(sale.stock)))
    .bind(column(sales, |sale| sale.per_user_limit.map(i64::from)))
    .bind(column(sales, |sale| sale.opens_at))
    .bind(column(sales, |sale| sale.closes_at))
    .bind(column(sales, |sale| sale.verification));
    insert.fetch_all(db).await
}

/// Writes what an operator may change of a sale, which is locked.
pub(super) async fn update_sale(
    db: &mut PgConnection,
    state: &SaleState,
) -> Result<(), sqlx::Error> {
    let update = query(
        "update sales set stock = $2, closes_at = $3, verification = $4, version = $5,
                sold_out_at = $6
         where sale_id = $1",
    )
    .bind(state.sale.id.as_str())
    .bind(int(state.sale.stock))
    .bind(state.sale.closes_at)
    .bind(state.sale.verification)
    .bind(int(state.version))
    .bind(state.sold_out_at);
    update.execute(db).await.map(drop)
}

/// The restock that an adjustment id stands for.
pub(super) async fn restock(
    db: &mut PgConnection,
    sale: &SaleId,
    adjustment: &AdjustmentId,
) -> Result<Option<Restock>, sqlx::Error> {
    let sql = AssertSqlSafe(format!("{ANNOUNCEMENTS} where sale_id = $1 and adjustment_id = $2"));
    let select = query_as(sql).bind(sale.as_str()).bind(adjustment.as_str());
    rows::restock(select.fetch_optional(db).await?)
}

/// Stores what subscribers are owed.
pub(super) async fn announce(
    db: &mut PgConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    for announcement in announcements {
        let (sale_id, version, adjustment_id) = announcement.key();
        let (units, stock, at) = announcement.contents();
        let insert = query(
            "insert into announcements (sale_id, version, adjustment_id, units, stock, at)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(sale_id.as_str())
        .bind(int(version))
        .bind(adjustment_id)
        .bind(units.map(|units| int(units.get())))
        .bind(int(stock))
        .bind(at);
        insert.execute(&mut *db).await?;
    }
    Ok(())
}

/// What subscribers are owed, for each sale in the order in which it happened.
pub(super) async fn unpublished(db: &mut PgConnection) -> Result<Vec<Announcement>, sqlx::Error> {
    let sql = AssertSqlSafe(format!(
        "{ANNOUNCEMENTS} where not published
         order by sale_id, version, units nulls last limit {MAX_ANNOUNCEMENTS}"
    ));
    rows::announcements(query_as(sql).fetch_all(db).await?)
}

/// Marks what subscribers were told.
pub(super) async fn published(
    db: &mut PgConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let keys = column(announcements, Announcement::key);
    let update = query(
        "update announcements a set published = true
         from unnest($1::text[], $2::integer[], $3::text[]) as i (sale_id, version, adjustment_id)
         where a.sale_id = i.sale_id and a.version = i.version
           and a.adjustment_id = i.adjustment_id",
    )
    .bind(column(&keys, |key| key.0.as_str()))
    .bind(column(&keys, |key| int(key.1)))
    .bind(column(&keys, |key| key.2));
    update.execute(db).await.map(drop)
}
