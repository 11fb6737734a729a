//! The statements of the ledger. Sets go in as one JSON text, which SQLite takes apart (its page on
//! `json_each`), so that every statement is prepared once.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Sqlite, SqliteExecutor, query, query_as, query_scalar};

use crate::decision::Decision;
use crate::ledger::MAX_ANNOUNCEMENTS;
use crate::ledger::rows::{self, letter, waited_ms};
use crate::order::{AdjustmentId, OrderId, OrderKey, SaleId, UserId};
use crate::sale::{Announcement, Restock, Sale, SaleState};

const SALES: &str =
    "select sale_id, stock, sold, per_user_limit, opens_at, closes_at, verification,
    version, sold_out_at from";
const ANNOUNCEMENTS: &str =
    "select sale_id, version, adjustment_id, units, stock, at from announcements";

fn json(set: &impl Serialize) -> String {
    serde_json::to_string(set).unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

/// Runs a statement on a set, unless the set is empty.
async fn write(
    db: &mut SqliteConnection,
    statement: Query<'_, Sqlite, SqliteArguments>,
    set: &[impl Serialize],
) -> Result<(), sqlx::Error> {
    if set.is_empty() {
        return Ok(());
    }
    statement.bind(json(&set)).execute(db).await.map(drop)
}

/// All sales, by id.
pub(super) async fn all_sales(db: impl SqliteExecutor<'_>) -> Result<Vec<SaleState>, sqlx::Error> {
    let sql = AssertSqlSafe(format!("{SALES} sales order by sale_id"));
    let rows: Vec<rows::SaleRow> = query_as(sql).fetch_all(db).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Those of `ids` that exist.
pub(super) async fn sales(
    db: impl SqliteExecutor<'_>,
    ids: &[&SaleId],
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    let sql = AssertSqlSafe(format!("{SALES} json_each(?1) cross join sales on sale_id = value"));
    rows::sales(query_as(sql).bind(json(&ids)).fetch_all(db).await?)
}

/// The units of `buyers`, 0 for those who have none.
pub(super) async fn units(
    db: &mut SqliteConnection,
    buyers: &[(&SaleId, &UserId)],
) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
    let select = query_as(
        "select value ->> 0 as sale_id, value ->> 1 as user_id, coalesce(units, 0) as units
         from json_each(?1) left join buyers b on b.sale_id = value ->> 0 and b.user_id = value ->> 1",
    );
    Ok(rows::units(select.bind(json(&buyers)).fetch_all(db).await?))
}

/// The decisions that are stored for `orders`.
pub(super) async fn decisions(
    db: impl SqliteExecutor<'_>,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    let select = query_as(
        "select sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold
         from json_each(?1) cross join decisions
             on sale_id = value ->> 0 and order_id = value ->> 1",
    );
    rows::decisions(select.bind(json(&orders)).fetch_all(db).await?)
}

pub(super) async fn insert_decisions(
    db: &mut SqliteConnection,
    decisions: &[&Decision],
) -> Result<(), sqlx::Error> {
    let rows = decisions.iter().map(|decision| {
        let Decision { order, outcome, decided_at, version, sold, .. } = decision;
        let (outcome, waited_ms) = (letter(*outcome), waited_ms(decision));
        let (key, buyer) = ((&order.sale_id, &order.id), (&order.user_id, order.quantity));
        (key.0, key.1, buyer.0, buyer.1, outcome, waited_ms, decided_at, version, sold)
    });
    let insert = query(
        "insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at,
                version, sold)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
                value ->> 6, value ->> 7, value ->> 8
         from json_each(?1)",
    );
    write(db, insert, &rows.collect::<Vec<_>>()).await
}

/// Writes how much of `sales` is sold.
pub(super) async fn update_sold(
    db: &mut SqliteConnection,
    sales: &[&SaleState],
) -> Result<(), sqlx::Error> {
    let rows = sales.iter().map(|state| (&state.sale.id, state.sold, state.sold_out_at));
    let update = query(
        "update sales set sold = value ->> 1, sold_out_at = value ->> 2
         from json_each(?1) where sale_id = value ->> 0",
    );
    write(db, update, &rows.collect::<Vec<_>>()).await
}

/// Writes how many units buyers have, with their limit.
pub(super) async fn set_units(
    db: &mut SqliteConnection,
    buyers: &[(&SaleId, &UserId, u32, u32)],
) -> Result<(), sqlx::Error> {
    let upsert = query(
        "insert into buyers (sale_id, user_id, units, unit_limit)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3 from json_each(?1) where true
         on conflict (sale_id, user_id) do update set units = excluded.units",
    );
    write(db, upsert, buyers).await
}

/// Stores the sales that are not there, and names them.
pub(super) async fn insert_sales(
    db: &mut SqliteConnection,
    sales: &[Sale],
) -> Result<Vec<String>, sqlx::Error> {
    let insert = query_scalar(
        "insert into sales (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
         select value ->> 'sale_id', value ->> 'stock', value ->> 'per_user_limit',
                value ->> 'opens_at', value ->> 'closes_at', value ->> 'verification'
         from json_each(?1) where true
         on conflict (sale_id) do nothing returning sale_id",
    );
    insert.bind(json(&sales)).fetch_all(db).await
}

/// Writes what an operator may change of a sale.
pub(super) async fn update_sale(
    db: &mut SqliteConnection,
    state: &SaleState,
) -> Result<(), sqlx::Error> {
    let update = query(
        "update sales set stock = value ->> 'stock', closes_at = value ->> 'closes_at',
                verification = value ->> 'verification', version = value ->> 'version',
                sold_out_at = value ->> 'sold_out_at'
         from json_each(?1) where sale_id = value ->> 'sale_id'",
    );
    write(db, update, &[state]).await
}

/// The restock that an adjustment id stands for.
pub(super) async fn restock(
    db: &mut SqliteConnection,
    sale: &SaleId,
    adjustment: &AdjustmentId,
) -> Result<Option<Restock>, sqlx::Error> {
    let sql = AssertSqlSafe(format!("{ANNOUNCEMENTS} where sale_id = ?1 and adjustment_id = ?2"));
    let select = query_as(sql).bind(sale.as_str()).bind(adjustment.as_str());
    rows::restock(select.fetch_optional(db).await?)
}

/// Stores what subscribers are owed.
pub(super) async fn announce(
    db: &mut SqliteConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let rows =
        announcements.iter().map(|announcement| (announcement.key(), announcement.contents()));
    let insert = query(
        "insert into announcements (sale_id, version, adjustment_id, units, stock, at)
         select value ->> '$[0][0]', value ->> '$[0][1]', value ->> '$[0][2]',
                value ->> '$[1][0]', value ->> '$[1][1]', value ->> '$[1][2]'
         from json_each(?1)",
    );
    write(db, insert, &rows.collect::<Vec<_>>()).await
}

/// What subscribers are owed, for each sale in the order in which it happened.
pub(super) async fn unpublished(
    db: impl SqliteExecutor<'_>,
) -> Result<Vec<Announcement>, sqlx::Error> {
    let sql = AssertSqlSafe(format!(
        "{ANNOUNCEMENTS} where not published
         order by sale_id, version, units is null limit {MAX_ANNOUNCEMENTS}"
    ));
    rows::announcements(query_as(sql).fetch_all(db).await?)
}

/// Marks what subscribers were told.
pub(super) async fn published(
    db: &mut SqliteConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let keys: Vec<_> = announcements.iter().map(Announcement::key).collect();
    let update = query(
        "update announcements set published = true from json_each(?1)
         where sale_id = value ->> 0 and version = value ->> 1 and adjustment_id = value ->> 2",
    );
    write(db, update, &keys).await
}
