//! Between the rows of the ledger's tables and the domain. Sets go in as arrays, one for each column.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Row, query};

use crate::decision::{Decision, Outcome, Reason};
use crate::ledger::MAX_ANNOUNCEMENTS;
use crate::order::{AdjustmentId, Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use crate::sale::{Announcement, Restock, Sale, SaleState, SoldOut};

/// A value in the database that this version cannot have written.
fn unexpected(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the ledger holds {what} that is not valid").into())
}

fn count(row: &PgRow, column: &str) -> Result<u32, sqlx::Error> {
    u32::try_from(row.try_get::<i32, _>(column)?).map_err(|_| unexpected("a number"))
}

fn quantity(row: &PgRow, column: &str) -> Result<Quantity, sqlx::Error> {
    Quantity::new(row.try_get::<i32, _>(column)?.into()).ok_or_else(|| unexpected("a quantity"))
}

fn sale_id(row: &PgRow) -> Result<SaleId, sqlx::Error> {
    let id: String = row.try_get("sale_id")?;
    SaleId::parse(id).map_err(|_| unexpected("a sale id"))
}

fn user_id(row: &PgRow) -> Result<UserId, sqlx::Error> {
    let id: String = row.try_get("user_id")?;
    UserId::parse(id).map_err(|_| unexpected("a user id"))
}

fn adjustment_id(row: &PgRow) -> Result<AdjustmentId, sqlx::Error> {
    let id: String = row.try_get("adjustment_id")?;
    AdjustmentId::parse(id).map_err(|_| unexpected("an adjustment id"))
}

/// The letters that stand for outcomes in the table.
const OUTCOMES: [(&str, Outcome); 7] = [
    ("c", Outcome::Created),
    ("s", Outcome::SoldOut),
    ("d", Outcome::Rejected(Reason::UserDenied)),
    ("l", Outcome::Rejected(Reason::PurchaseLimit)),
    ("n", Outcome::Rejected(Reason::NotOpen)),
    ("x", Outcome::Rejected(Reason::Closed)),
    ("e", Outcome::Rejected(Reason::Expired)),
];

fn letter(outcome: Outcome) -> &'static str {
    OUTCOMES.iter().find(|(_, known)| *known == outcome).map_or("?", |(letter, _)| letter)
}

/// How long an order waited for its decision. Four bytes hold 24 days.
fn waited_ms(decision: &Decision) -> i32 {
    let waited = decision.decided_at - decision.submitted_at;
    i32::try_from(waited.num_milliseconds()).unwrap_or(i32::MAX)
}

/// What fits: the domain bounds stock and quantities to four bytes with a sign.
fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn texts<'a, T: 'a>(items: &'a [T], text: impl Fn(&'a T) -> &'a str) -> Vec<&'a str> {
    items.iter().map(text).collect()
}

const SALE: &str = "select sale_id, stock, sold, per_user_limit, opens_at, closes_at, version,
    sold_out_at, verification from sales";

fn sale_state(row: &PgRow) -> Result<SaleState, sqlx::Error> {
    let limit: Option<i64> = row.try_get("per_user_limit")?;
    let limit = limit.map(u32::try_from).transpose().map_err(|_| unexpected("a limit"))?;
    let sale = Sale {
        id: sale_id(row)?,
        stock: count(row, "stock")?,
        per_user_limit: limit,
        opens_at: row.try_get("opens_at")?,
        closes_at: row.try_get("closes_at")?,
        verification: row.try_get("verification")?,
    };
    Ok(SaleState {
        sale,
        sold: count(row, "sold")?,
        version: count(row, "version")?,
        sold_out_at: row.try_get("sold_out_at")?,
    })
}

/// All sales, by id.
pub(super) async fn all_sales(
    connection: &mut PgConnection,
) -> Result<Vec<SaleState>, sqlx::Error> {
    let sql = format!("{SALE} order by sale_id");
    let rows = query(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.iter().map(sale_state).collect()
}

/// Those of `ids` that exist.
pub(super) async fn sales(
    connection: &mut PgConnection,
    ids: &[&SaleId],
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    named_sales(connection, ids, "").await
}

/// Those of `ids` that exist, locked in the order of their ids against whoever would sell or change
/// them. The rows are as the transaction before the lock has left them.
pub(super) async fn lock_sales(
    connection: &mut PgConnection,
    ids: &[&SaleId],
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    named_sales(connection, ids, "order by sale_id for no key update").await
}

async fn named_sales(
    connection: &mut PgConnection,
    ids: &[&SaleId],
    how: &str,
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    let sql = format!("{SALE} where sale_id = any ($1) {how}");
    let query = query(sqlx::AssertSqlSafe(sql)).bind(texts(ids, |id| id.as_str()));
    let rows = query.fetch_all(connection).await?;
    let states = rows.iter().map(|row| {
        let state = sale_state(row)?;
        Ok((state.sale.id.clone(), state))
    });
    states.collect()
}

/// The ledger's time, and the units of `buyers`, 0 for those who have none.
pub(super) async fn units(
    connection: &mut PgConnection,
    buyers: &[(&SaleId, &UserId)],
) -> Result<(DateTime<Utc>, HashMap<(SaleId, UserId), u32>), sqlx::Error> {
    if buyers.is_empty() {
        let row = query("select clock_timestamp() as now").fetch_one(connection).await?;
        return Ok((row.try_get::<DateTime<Utc>, _>("now")?.trunc_subsecs(3), HashMap::new()));
    }
    let rows = query(
        "select i.sale_id, i.user_id, coalesce(b.units, 0) as units, clock_timestamp() as now
         from unnest($1::text[], $2::text[]) as i (sale_id, user_id)
         left join buyers b on b.sale_id = i.sale_id and b.user_id = i.user_id",
    )
    .bind(texts(buyers, |(sale, _)| sale.as_str()))
    .bind(texts(buyers, |(_, user)| user.as_str()))
    .fetch_all(connection)
    .await?;
    let mut now = DateTime::<Utc>::MIN_UTC;
    let mut units = HashMap::with_capacity(rows.len());
    for row in &rows {
        now = now.max(row.try_get("now")?);
        let held = u32::try_from(row.try_get::<i64, _>("units")?);
        let held = held.map_err(|_| unexpected("a number of units"))?;
        units.insert((sale_id(row)?, user_id(row)?), held);
    }
    Ok((now.trunc_subsecs(3), units))
}

/// The decisions that are stored for `orders`.
pub(super) async fn decisions(
    connection: &mut PgConnection,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    if orders.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = query(
        "select d.sale_id, d.order_id, d.user_id, d.quantity, d.outcome::text as outcome,
                d.waited_ms, d.decided_at, d.version, d.sold
         from unnest($1::text[], $2::text[]) as i (sale_id, order_id)
         join decisions d on d.sale_id = i.sale_id and d.order_id = i.order_id",
    )
    .bind(texts(orders, |(sale, _)| sale.as_str()))
    .bind(texts(orders, |(_, order)| order.as_str()))
    .fetch_all(connection)
    .await?;
    let decisions = rows.iter().map(|row| {
        let decision = decision(row)?;
        Ok((decision.order.key(), decision))
    });
    decisions.collect()
}

fn decision(row: &PgRow) -> Result<Decision, sqlx::Error> {
    let id: String = row.try_get("order_id")?;
    let letter: &str = row.try_get("outcome")?;
    let outcome = OUTCOMES.iter().find(|(known, _)| *known == letter);
    let decided_at: DateTime<Utc> = row.try_get("decided_at")?;
    Ok(Decision {
        order: Order {
            id: OrderId::parse(id).map_err(|_| unexpected("an order id"))?,
            sale_id: sale_id(row)?,
            user_id: user_id(row)?,
            quantity: quantity(row, "quantity")?,
        },
        outcome: outcome.ok_or_else(|| unexpected("an outcome"))?.1,
        submitted_at: decided_at
            - TimeDelta::milliseconds(row.try_get::<i32, _>("waited_ms")?.into()),
        decided_at,
        version: count(row, "version")?,
        sold: count(row, "sold")?,
    })
}

/// Stores decisions, in the order given. Returns how many were not there already.
pub(super) async fn insert_decisions(
    connection: &mut PgConnection,
    decisions: &[&Decision],
) -> Result<u64, sqlx::Error> {
    if decisions.is_empty() {
        return Ok(0);
    }
    let insert = query(
        "insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at,
                version, sold)
         select sale_id, order_id, user_id, quantity, outcome::\"char\", waited_ms, decided_at,
                version, sold
         from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::integer[],
                $7::timestamptz[], $8::integer[], $9::integer[])
             as i (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold)
         on conflict do nothing",
    )
    .bind(texts(decisions, |decision| decision.order.sale_id.as_str()))
    .bind(texts(decisions, |decision| decision.order.id.as_str()))
    .bind(texts(decisions, |decision| decision.order.user_id.as_str()))
    .bind(decisions.iter().map(|decision| int(decision.order.quantity.get())).collect::<Vec<_>>())
    .bind(texts(decisions, |decision| letter(decision.outcome)))
    .bind(decisions.iter().map(|decision| waited_ms(decision)).collect::<Vec<_>>())
    .bind(decisions.iter().map(|decision| decision.decided_at).collect::<Vec<_>>())
    .bind(decisions.iter().map(|decision| int(decision.version)).collect::<Vec<_>>())
    .bind(decisions.iter().map(|decision| int(decision.sold)).collect::<Vec<_>>());
    Ok(insert.execute(connection).await?.rows_affected())
}

/// Writes how much of `sales`, which are locked, is sold.
pub(super) async fn update_sold(
    connection: &mut PgConnection,
    sales: &[&SaleState],
) -> Result<(), sqlx::Error> {
    if sales.is_empty() {
        return Ok(());
    }
    let update = query(
        "update sales s set sold = i.sold, sold_out_at = i.sold_out_at
         from unnest($1::text[], $2::integer[], $3::timestamptz[]) as i (sale_id, sold, sold_out_at)
         where s.sale_id = i.sale_id",
    )
    .bind(texts(sales, |state| state.sale.id.as_str()))
    .bind(sales.iter().map(|state| int(state.sold)).collect::<Vec<_>>())
    .bind(sales.iter().map(|state| state.sold_out_at).collect::<Vec<_>>());
    update.execute(connection).await.map(drop)
}

/// Writes how many units buyers of locked sales have, with their limit.
pub(super) async fn set_units(
    connection: &mut PgConnection,
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
    .bind(texts(buyers, |(sale, ..)| sale.as_str()))
    .bind(texts(buyers, |(_, user, ..)| user.as_str()))
    .bind(buyers.iter().map(|buyer| i64::from(buyer.2)).collect::<Vec<_>>())
    .bind(buyers.iter().map(|buyer| i64::from(buyer.3)).collect::<Vec<_>>());
    upsert.execute(connection).await.map(drop)
}

/// Stores the sales that are not there, and names them.
pub(super) async fn insert_sales(
    connection: &mut PgConnection,
    sales: &[Sale],
) -> Result<Vec<String>, sqlx::Error> {
    let limits = sales.iter().map(|sale| sale.per_user_limit.map(i64::from));
    let insert = sqlx::query_scalar(
        "insert into sales (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
         select * from unnest($1::text[], $2::integer[], $3::bigint[], $4::timestamptz[],
                $5::timestamptz[], $6::boolean[])
             as i (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
         order by sale_id
         on conflict (sale_id) do nothing returning sale_id",
    )
    .bind(texts(sales, |sale| sale.id.as_str()))
    .bind(sales.iter().map(|sale| int(sale.stock)).collect::<Vec<_>>())
    .bind(limits.collect::<Vec<_>>())
    .bind(sales.iter().map(|sale| sale.opens_at).collect::<Vec<_>>())
    .bind(sales.iter().map(|sale| sale.closes_at).collect::<Vec<_>>())
    .bind(sales.iter().map(|sale| sale.verification).collect::<Vec<_>>());
    insert.fetch_all(connection).await
}

/// Writes what an operator may change of a sale, which is locked.
pub(super) async fn update_sale(
    connection: &mut PgConnection,
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
    update.execute(connection).await.map(drop)
}

/// The restock that an adjustment id stands for.
pub(super) async fn restock(
    connection: &mut PgConnection,
    sale: &SaleId,
    adjustment: &AdjustmentId,
) -> Result<Option<Restock>, sqlx::Error> {
    let row = query(
        "select sale_id, adjustment_id, units, version, stock, adjusted_at as at
         from stock_adjustments where sale_id = $1 and adjustment_id = $2",
    )
    .bind(sale.as_str())
    .bind(adjustment.as_str())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(restock_of).transpose()
}

fn restock_of(row: &PgRow) -> Result<Restock, sqlx::Error> {
    Ok(Restock {
        adjustment_id: adjustment_id(row)?,
        sale_id: sale_id(row)?,
        units: quantity(row, "units")?,
        version: count(row, "version")?,
        stock: count(row, "stock")?,
        at: row.try_get("at")?,
    })
}

pub(super) async fn insert_restock(
    connection: &mut PgConnection,
    restock: &Restock,
) -> Result<(), sqlx::Error> {
    let insert = query(
        "insert into stock_adjustments (sale_id, adjustment_id, units, version, stock, adjusted_at)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(restock.sale_id.as_str())
    .bind(restock.adjustment_id.as_str())
    .bind(int(restock.units.get()))
    .bind(int(restock.version))
    .bind(int(restock.stock))
    .bind(restock.at);
    insert.execute(connection).await.map(drop)
}

/// Stores what subscribers are owed.
pub(super) async fn announce(
    connection: &mut PgConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    for announcement in announcements {
        let (sale_id, version, adjustment_id) = announcement.key();
        let (units, stock, at) = match announcement {
            Announcement::SoldOut(SoldOut { stock, at, .. }) => (None, stock, at),
            Announcement::Restocked(Restock { units, stock, at, .. }) => {
                (Some(int(units.get())), stock, at)
            }
        };
        let insert = query(
            "insert into announcements (sale_id, version, adjustment_id, units, stock, at)
             values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(sale_id.as_str())
        .bind(int(version))
        .bind(adjustment_id)
        .bind(units)
        .bind(int(*stock))
        .bind(at);
        insert.execute(&mut *connection).await?;
    }
    Ok(())
}

/// What subscribers are owed, for each sale in the order in which it happened.
pub(super) async fn announcements(
    connection: &mut PgConnection,
) -> Result<Vec<Announcement>, sqlx::Error> {
    let rows = query(
        "select sale_id, version, adjustment_id, units, stock, at from announcements
         order by sale_id, version, units nulls last limit $1",
    )
    .bind(i64::from(MAX_ANNOUNCEMENTS))
    .fetch_all(connection)
    .await?;
    let announcements = rows.iter().map(|row| {
        Ok(if row.try_get::<Option<i32>, _>("units")?.is_some() {
            Announcement::Restocked(restock_of(row)?)
        } else {
            Announcement::SoldOut(SoldOut {
                sale_id: sale_id(row)?,
                version: count(row, "version")?,
                stock: count(row, "stock")?,
                at: row.try_get("at")?,
            })
        })
    });
    announcements.collect()
}

/// Forgets what subscribers were told.
pub(super) async fn forget_announcements(
    connection: &mut PgConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let keys: Vec<_> = announcements.iter().map(Announcement::key).collect();
    let delete = query(
        "delete from announcements a
         using unnest($1::text[], $2::integer[], $3::text[]) as i (sale_id, version, adjustment_id)
         where a.sale_id = i.sale_id and a.version = i.version
           and a.adjustment_id = i.adjustment_id",
    )
    .bind(texts(&keys, |(sale, ..)| sale.as_str()))
    .bind(keys.iter().map(|(_, version, _)| int(*version)).collect::<Vec<_>>())
    .bind(texts(&keys, |(.., adjustment)| *adjustment));
    delete.execute(connection).await.map(drop)
}
