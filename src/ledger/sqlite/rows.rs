//! Between the rows of the ledger's tables and the domain. Sets go in as one JSON text, which SQLite
//! takes apart (its page on `json_each`), so that every statement is prepared once.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite, SqliteExecutor};

use super::judge::Bought;
use crate::decision::{Decision, Outcome, Reason};
use crate::order::{AdjustmentId, Order, OrderId, Quantity, SaleId, UserId};
use crate::sale::{Restock, Sale, SaleState};

fn json(set: &impl Serialize) -> String {
    serde_json::to_string(set).unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

/// A value in the database that this version can't have written.
fn unexpected(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the ledger holds {what} that is not valid").into())
}

fn units(units: i64) -> Result<u32, sqlx::Error> {
    u32::try_from(units).map_err(|_| unexpected("a number of units"))
}

fn time(ms: i64) -> Result<DateTime<Utc>, sqlx::Error> {
    DateTime::from_timestamp_millis(ms).ok_or_else(|| unexpected("a time"))
}

fn ms(time: Option<DateTime<Utc>>) -> Option<i64> {
    time.map(|time| time.timestamp_millis())
}

/// A definition as the tables can hold it.
pub(super) fn in_whole_ms(sale: &Sale) -> Sale {
    let whole = |time: DateTime<Utc>| time.trunc_subsecs(3);
    Sale {
        opens_at: sale.opens_at.map(whole),
        closes_at: sale.closes_at.map(whole),
        ..sale.clone()
    }
}

/// Stores the sales that are not there, and names them.
pub(super) async fn insert_sales(
    connection: &mut SqliteConnection,
    sales: &[Sale],
) -> Result<Vec<String>, sqlx::Error> {
    let set: Vec<_> = sales
        .iter()
        .map(|sale| {
            let (opens, closes) = (ms(sale.opens_at), ms(sale.closes_at));
            (&sale.id, sale.stock, sale.per_user_limit, opens, closes, sale.verification)
        })
        .collect();
    sqlx::query_scalar(
        "insert into sales (sale_id, stock, per_user_limit, opens_at_ms, closes_at_ms, verification)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5
         from json_each(?1) where true
         on conflict (sale_id) do nothing returning sale_id",
    )
    .bind(json(&set))
    .fetch_all(connection)
    .await
}

/// The named sales that exist, or all, by sale id.
pub(super) async fn sales(
    executor: impl SqliteExecutor<'_>,
    ids: Option<&[SaleId]>,
) -> Result<Vec<SaleState>, sqlx::Error> {
    let rows = sqlx::query(
        "select sale_id, stock, sold, per_user_limit, opens_at_ms, closes_at_ms, version,
                sold_out_at_ms, verification
         from sales where ?1 is null or sale_id in (select value from json_each(?1))
         order by sale_id",
    )
    .bind(ids.map(|ids| json(&ids)))
    .fetch_all(executor)
    .await?;
    rows.iter().map(sale_state).collect()
}

/// Those of `ids` that exist.
pub(super) async fn sales_by_id(
    connection: &mut SqliteConnection,
    ids: &[&SaleId],
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    let rows = sqlx::query(
        "select sale_id, stock, sold, per_user_limit, opens_at_ms, closes_at_ms, version,
                sold_out_at_ms, verification
         from json_each(?1) cross join sales on sale_id = value",
    )
    .bind(json(&ids))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let state = sale_state(row)?;
            Ok((state.sale.id.clone(), state))
        })
        .collect()
}

fn sale_state(row: &SqliteRow) -> Result<SaleState, sqlx::Error> {
    let limit: Option<i64> = row.try_get(3)?;
    let (opens, closes): (Option<i64>, Option<i64>) = (row.try_get(4)?, row.try_get(5)?);
    let sold_out: Option<i64> = row.try_get(7)?;
    let sale = Sale {
        id: sale_id(row, 0)?,
        stock: units(row.try_get(1)?)?,
        per_user_limit: limit.map(units).transpose()?,
        opens_at: opens.map(time).transpose()?,
        closes_at: closes.map(time).transpose()?,
        verification: row.try_get(8)?,
    };
    Ok(SaleState {
        sale,
        sold: units(row.try_get(2)?)?,
        version: units(row.try_get(6)?)?,
        sold_out_at: sold_out.map(time).transpose()?,
    })
}

fn sale_id(row: &SqliteRow, column: usize) -> Result<SaleId, sqlx::Error> {
    SaleId::parse(row.try_get::<String, _>(column)?).map_err(|_| unexpected("a sale id"))
}

fn user_id(row: &SqliteRow, column: usize) -> Result<UserId, sqlx::Error> {
    UserId::parse(row.try_get::<String, _>(column)?).map_err(|_| unexpected("a user id"))
}

/// The decisions that are recorded for `ids`.
pub(super) async fn decisions(
    executor: impl SqliteExecutor<'_>,
    ids: &[&OrderId],
) -> Result<HashMap<OrderId, Decision>, sqlx::Error> {
    let rows = sqlx::query(
        "select order_id, sale_id, user_id, quantity, outcome, reason, decided_at_ms
         from json_each(?1) cross join decisions on order_id = value",
    )
    .bind(json(&ids))
    .fetch_all(executor)
    .await?;
    let decisions = rows.iter().map(|row| {
        let decision = decision(row)?;
        Ok((decision.order.id.clone(), decision))
    });
    decisions.collect()
}

fn decision(row: &SqliteRow) -> Result<Decision, sqlx::Error> {
    let id = OrderId::parse(row.try_get::<String, _>(0)?).map_err(|_| unexpected("an order id"))?;
    let (outcome, reason): (&str, Option<&str>) = (row.try_get(4)?, row.try_get(5)?);
    Ok(Decision {
        order: Order {
            id,
            sale_id: sale_id(row, 1)?,
            user_id: user_id(row, 2)?,
            quantity: Quantity::new(row.try_get(3)?).ok_or_else(|| unexpected("a quantity"))?,
        },
        outcome: Outcome::from_names(outcome, reason).ok_or_else(|| unexpected("an outcome"))?,
        decided_at: time(row.try_get(6)?)?,
    })
}

/// The units of those of `buyers` who have any.
pub(super) async fn bought(
    connection: &mut SqliteConnection,
    buyers: impl IntoIterator<Item = (&SaleId, &UserId)>,
) -> Result<Bought, sqlx::Error> {
    let buyers: Vec<_> = buyers.into_iter().collect();
    if buyers.is_empty() {
        return Ok(Bought::new());
    }
    let rows = sqlx::query(
        "select sale_id, user_id, units from json_each(?1)
         cross join buyers on sale_id = value ->> 0 and user_id = value ->> 1",
    )
    .bind(json(&buyers))
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok(((sale_id(row, 0)?, user_id(row, 1)?), row.try_get(2)?))).collect()
}

pub(super) async fn insert_decisions(
    connection: &mut SqliteConnection,
    decisions: &[Decision],
) -> Result<(), sqlx::Error> {
    let set: Vec<_> = decisions
        .iter()
        .map(|Decision { order, outcome, decided_at }| {
            let reason = outcome.reason().map(Reason::name);
            let at = decided_at.timestamp_millis();
            (&order.id, &order.sale_id, &order.user_id, order.quantity, outcome.name(), reason, at)
        })
        .collect();
    let insert = sqlx::query(
        "insert into decisions
             (order_id, sale_id, user_id, quantity, outcome, reason, decided_at_ms)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
                value ->> 6
         from json_each(?1)",
    );
    write(connection, insert, &set).await
}

/// Writes how much of `sales` is sold.
pub(super) async fn update_sold(
    connection: &mut SqliteConnection,
    sales: &[SaleState],
) -> Result<(), sqlx::Error> {
    let set: Vec<_> =
        sales.iter().map(|state| (&state.sale.id, state.sold, ms(state.sold_out_at))).collect();
    let update = sqlx::query(
        "update sales set sold = value ->> 1, sold_out_at_ms = value ->> 2
         from json_each(?1) where sale_id = value ->> 0",
    );
    write(connection, update, &set).await
}

/// Writes how many units buyers have, with their limit.
pub(super) async fn set_bought(
    connection: &mut SqliteConnection,
    buyers: &[(SaleId, UserId, i64, u32)],
) -> Result<(), sqlx::Error> {
    let upsert = sqlx::query(
        "insert into buyers (sale_id, user_id, units, unit_limit)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(?1) where true
         on conflict (sale_id, user_id) do update set units = excluded.units",
    );
    write(connection, upsert, buyers).await
}

/// Runs a statement on a set, unless the set is empty.
async fn write(
    connection: &mut SqliteConnection,
    statement: sqlx::query::Query<'_, Sqlite, sqlx::sqlite::SqliteArguments>,
    set: &[impl Serialize],
) -> Result<(), sqlx::Error> {
    if set.is_empty() {
        return Ok(());
    }
    statement.bind(json(&set)).execute(connection).await.map(drop)
}

/// Adds units to a sale, once for each adjustment id. Returns the adjustment that the id stands for,
/// or nothing when there is no such sale.
pub(super) async fn restock(
    connection: &mut SqliteConnection,
    id: &AdjustmentId,
    sale: &SaleId,
    units: Quantity,
    at: DateTime<Utc>,
) -> Result<Option<Restock>, sqlx::Error> {
    let inserted = sqlx::query(
        "insert into stock_adjustments (adjustment_id, sale_id, units, version, stock, adjusted_at_ms)
         select ?1, sale_id, ?3, version + 1, stock + ?3, ?4 from sales where sale_id = ?2
         on conflict (adjustment_id) do nothing",
    )
    .bind(id.as_str())
    .bind(sale.as_str())
    .bind(units.get())
    .bind(at.timestamp_millis())
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() > 0 {
        sqlx::query(
            "update sales set stock = stock + ?2, version = version + 1, sold_out_at_ms = null
             where sale_id = ?1",
        )
        .bind(sale.as_str())
        .bind(units.get())
        .execute(&mut *connection)
        .await?;
    }
    let row = sqlx::query(
        "select sale_id, units, version, stock, adjusted_at_ms from stock_adjustments
         where adjustment_id = ?1",
    )
    .bind(id.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(|row| adjustment(&row, id)).transpose()
}

fn adjustment(row: &SqliteRow, id: &AdjustmentId) -> Result<Restock, sqlx::Error> {
    Ok(Restock {
        adjustment_id: id.clone(),
        sale_id: sale_id(row, 0)?,
        units: Quantity::new(row.try_get(1)?).ok_or_else(|| unexpected("a restock"))?,
        version: units(row.try_get(2)?)?,
        stock: units(row.try_get(3)?)?,
        at: time(row.try_get(4)?)?,
    })
}

/// Ends a sale at `at`, or when it opens if that is later, unless it ends before.
pub(super) async fn close(
    connection: &mut SqliteConnection,
    sale: &SaleId,
    at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update sales set closes_at_ms = max(?2, coalesce(opens_at_ms, ?2)), version = version + 1
         where sale_id = ?1
           and (closes_at_ms is null or closes_at_ms > max(?2, coalesce(opens_at_ms, ?2)))",
    )
    .bind(sale.as_str())
    .bind(at.timestamp_millis())
    .execute(connection)
    .await
    .map(drop)
}

/// Says whether a sale's users are checked, unless that is so already.
pub(super) async fn verify(
    connection: &mut SqliteConnection,
    sale: &SaleId,
    on: bool,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update sales set verification = ?2, version = version + 1
         where sale_id = ?1 and verification <> ?2",
    )
    .bind(sale.as_str())
    .bind(on)
    .execute(connection)
    .await
    .map(drop)
}
