//! Between the rows of the ledger's tables and the domain. Sets go in as one JSON text, which SQLite
//! takes apart (its page on `json_each`), so that every statement is prepared once.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite, SqliteExecutor};

use crate::decision::{Decision, Outcome};
use crate::ledger::MAX_ANNOUNCEMENTS;
use crate::order::{AdjustmentId, Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use crate::sale::{Announcement, Restock, Sale, SaleState, SoldOut};

fn json(set: &impl Serialize) -> String {
    serde_json::to_string(set).unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

/// A value in the database that this version can't have written.
fn unexpected(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the ledger holds {what} that is not valid").into())
}

fn units_of(units: i64) -> Result<u32, sqlx::Error> {
    u32::try_from(units).map_err(|_| unexpected("a number of units"))
}

fn time(ms: i64) -> Result<DateTime<Utc>, sqlx::Error> {
    DateTime::from_timestamp_millis(ms).ok_or_else(|| unexpected("a time"))
}

fn ms(time: Option<DateTime<Utc>>) -> Option<i64> {
    time.map(|time| time.timestamp_millis())
}

/// A time as the tables can hold it.
pub(super) fn whole_ms(time: DateTime<Utc>) -> DateTime<Utc> {
    time.trunc_subsecs(3)
}

/// A definition as the tables can hold it.
pub(super) fn in_whole_ms(sale: &Sale) -> Sale {
    Sale {
        opens_at: sale.opens_at.map(whole_ms),
        closes_at: sale.closes_at.map(whole_ms),
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
        stock: units_of(row.try_get(1)?)?,
        per_user_limit: limit.map(units_of).transpose()?,
        opens_at: opens.map(time).transpose()?,
        closes_at: closes.map(time).transpose()?,
        verification: row.try_get(8)?,
    };
    Ok(SaleState {
        sale,
        sold: units_of(row.try_get(2)?)?,
        version: units_of(row.try_get(6)?)?,
        sold_out_at: sold_out.map(time).transpose()?,
    })
}

fn sale_id(row: &SqliteRow, column: usize) -> Result<SaleId, sqlx::Error> {
    SaleId::parse(row.try_get::<String, _>(column)?).map_err(|_| unexpected("a sale id"))
}

fn user_id(row: &SqliteRow, column: usize) -> Result<UserId, sqlx::Error> {
    UserId::parse(row.try_get::<String, _>(column)?).map_err(|_| unexpected("a user id"))
}

fn order_id(row: &SqliteRow, column: usize) -> Result<OrderId, sqlx::Error> {
    OrderId::parse(row.try_get::<String, _>(column)?).map_err(|_| unexpected("an order id"))
}

fn adjustment_id(row: &SqliteRow, column: usize) -> Result<AdjustmentId, sqlx::Error> {
    let id: String = row.try_get(column)?;
    AdjustmentId::parse(id).map_err(|_| unexpected("an adjustment id"))
}

/// The decisions that are stored for `orders`.
pub(super) async fn decisions(
    executor: impl SqliteExecutor<'_>,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    let rows = sqlx::query(
        "select sale_id, order_id, user_id, quantity, outcome, submitted_at_ms, decided_at_ms,
                version, sold
         from json_each(?1) cross join decisions
             on sale_id = value ->> 0 and order_id = value ->> 1",
    )
    .bind(json(&orders))
    .fetch_all(executor)
    .await?;
    let decisions = rows.iter().map(|row| {
        let decision = decision(row)?;
        Ok((decision.order.key(), decision))
    });
    decisions.collect()
}

fn decision(row: &SqliteRow) -> Result<Decision, sqlx::Error> {
    let outcome: &str = row.try_get(4)?;
    Ok(Decision {
        order: Order {
            sale_id: sale_id(row, 0)?,
            id: order_id(row, 1)?,
            user_id: user_id(row, 2)?,
            quantity: Quantity::new(row.try_get(3)?).ok_or_else(|| unexpected("a quantity"))?,
        },
        outcome: Outcome::from_code(outcome).ok_or_else(|| unexpected("an outcome"))?,
        submitted_at: time(row.try_get(5)?)?,
        decided_at: time(row.try_get(6)?)?,
        version: units_of(row.try_get(7)?)?,
        sold: units_of(row.try_get(8)?)?,
    })
}

/// The units of `buyers`, 0 for those who have none.
pub(super) async fn units(
    connection: &mut SqliteConnection,
    buyers: &[(&SaleId, &UserId)],
) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
    if buyers.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "select value ->> 0, value ->> 1, coalesce(units, 0) from json_each(?1)
         left join buyers on sale_id = value ->> 0 and user_id = value ->> 1",
    )
    .bind(json(&buyers))
    .fetch_all(connection)
    .await?;
    let units = rows.iter();
    let units =
        units.map(|row| Ok(((sale_id(row, 0)?, user_id(row, 1)?), units_of(row.try_get(2)?)?)));
    units.collect()
}

pub(super) async fn insert_decisions(
    connection: &mut SqliteConnection,
    decisions: &[&Decision],
) -> Result<(), sqlx::Error> {
    let rows = decisions.iter().map(|decision| {
        let Decision { order, outcome, submitted_at, decided_at, version, sold } = decision;
        let at = (submitted_at.timestamp_millis(), decided_at.timestamp_millis());
        let order = (&order.sale_id, &order.id, &order.user_id, order.quantity);
        (order.0, order.1, order.2, order.3, outcome.code(), at.0, at.1, version, sold)
    });
    let set: Vec<_> = rows.collect();
    let insert = sqlx::query(
        "insert into decisions (sale_id, order_id, user_id, quantity, outcome, submitted_at_ms,
                decided_at_ms, version, sold)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
                value ->> 6, value ->> 7, value ->> 8
         from json_each(?1)",
    );
    write(connection, insert, &set).await
}

/// Writes how much of `sales` is sold.
pub(super) async fn update_sold(
    connection: &mut SqliteConnection,
    sales: &[&SaleState],
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
pub(super) async fn set_units(
    connection: &mut SqliteConnection,
    buyers: &[(&SaleId, &UserId, u32, u32)],
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

/// Writes what an operator may change of a sale.
pub(super) async fn update_sale(
    connection: &mut SqliteConnection,
    state: &SaleState,
) -> Result<(), sqlx::Error> {
    let update = sqlx::query(
        "update sales set stock = ?2, closes_at_ms = ?3, verification = ?4, version = ?5,
                sold_out_at_ms = ?6
         where sale_id = ?1",
    )
    .bind(state.sale.id.as_str())
    .bind(state.sale.stock)
    .bind(ms(state.sale.closes_at))
    .bind(state.sale.verification)
    .bind(state.version)
    .bind(ms(state.sold_out_at));
    update.execute(connection).await.map(drop)
}

/// The restock that an adjustment id stands for.
pub(super) async fn restock(
    connection: &mut SqliteConnection,
    sale: &SaleId,
    adjustment: &AdjustmentId,
) -> Result<Option<Restock>, sqlx::Error> {
    let row = sqlx::query(
        "select sale_id, version, adjustment_id, units, stock, adjusted_at_ms
         from stock_adjustments where sale_id = ?1 and adjustment_id = ?2",
    )
    .bind(sale.as_str())
    .bind(adjustment.as_str())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(restock_of).transpose()
}

fn restock_of(row: &SqliteRow) -> Result<Restock, sqlx::Error> {
    Ok(Restock {
        sale_id: sale_id(row, 0)?,
        version: units_of(row.try_get(1)?)?,
        adjustment_id: adjustment_id(row, 2)?,
        units: Quantity::new(row.try_get(3)?).ok_or_else(|| unexpected("a restock"))?,
        stock: units_of(row.try_get(4)?)?,
        at: time(row.try_get(5)?)?,
    })
}

pub(super) async fn insert_restock(
    connection: &mut SqliteConnection,
    restock: &Restock,
) -> Result<(), sqlx::Error> {
    let Restock { sale_id, version, adjustment_id, units, stock, at } = restock;
    let insert = sqlx::query(
        "insert into stock_adjustments
             (sale_id, version, adjustment_id, units, stock, adjusted_at_ms)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5
         from json_each(?1)",
    );
    let at = at.timestamp_millis();
    write(connection, insert, &[(sale_id, version, adjustment_id, units, stock, at)]).await
}

/// Stores what subscribers are owed.
pub(super) async fn announce(
    connection: &mut SqliteConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let rows = announcements.iter().map(|announcement| {
        let (sale_id, version, adjustment_id) = announcement.key();
        let (units, stock, at) = match announcement {
            Announcement::SoldOut(SoldOut { stock, at, .. }) => (None, stock, at),
            Announcement::Restocked(Restock { units, stock, at, .. }) => (Some(units), stock, at),
        };
        (sale_id, version, adjustment_id, units, stock, at.timestamp_millis())
    });
    let set: Vec<_> = rows.collect();
    let insert = sqlx::query(
        "insert into announcements (sale_id, version, adjustment_id, units, stock, at_ms)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5
         from json_each(?1)",
    );
    write(connection, insert, &set).await
}

/// What subscribers are owed, for each sale in the order in which it happened.
pub(super) async fn announcements(
    executor: impl SqliteExecutor<'_>,
) -> Result<Vec<Announcement>, sqlx::Error> {
    let rows = sqlx::query(
        "select sale_id, version, adjustment_id, units, stock, at_ms from announcements
         order by sale_id, version, units is null limit ?1",
    )
    .bind(MAX_ANNOUNCEMENTS)
    .fetch_all(executor)
    .await?;
    let announcements = rows.iter().map(|row| {
        Ok(if row.try_get::<Option<i64>, _>(3)?.is_some() {
            Announcement::Restocked(restock_of(row)?)
        } else {
            Announcement::SoldOut(SoldOut {
                sale_id: sale_id(row, 0)?,
                version: units_of(row.try_get(1)?)?,
                stock: units_of(row.try_get(4)?)?,
                at: time(row.try_get(5)?)?,
            })
        })
    });
    announcements.collect()
}

/// Forgets what subscribers were told.
pub(super) async fn forget_announcements(
    connection: &mut SqliteConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let keys: Vec<_> = announcements.iter().map(Announcement::key).collect();
    let delete = sqlx::query(
        "delete from announcements where (sale_id, version, adjustment_id) in
             (select value ->> 0, value ->> 1, value ->> 2 from json_each(?1))",
    );
    write(connection, delete, &keys).await
}
