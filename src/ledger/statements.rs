//! The statements that are the same in every database. A set of rows goes in as one JSON text, `$1`: an
//! array of objects with the columns' names.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use serde_json::json;
use sqlx::FromRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

use super::MAX_ANNOUNCEMENTS;
use super::packed::{self, Block, BlockRow};
use super::rows::{self, AnnouncementRow};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{AdjustmentId, OrderId, OrderKey, SaleId, UserId};
use crate::domain::sale::{Announcement, Restock, Sale, SaleState};

/// The columns of [`rows::SaleRow`].
pub(super) const SALE: &str = "sale_id, stock, sold, per_user_limit, opens_at, closes_at,
    verification, version, sold_out_at, paused, held_from, held_until,
    archived, erasure_key";
/// The columns of [`rows::DecisionRow`], of a table `d`.
pub(super) const DECISION: &str = "d.sale_id, d.order_id, d.user_id, d.quantity,
    cast(d.outcome as text) as outcome, d.waited_ms, d.decided_at, d.version, d.sold";
/// The columns of [`BlockRow`], of a table `a`.
pub(super) const BLOCK: &str = "a.sale_id, a.archive_id, a.first_order, a.orders";
pub(super) const ANNOUNCEMENT: &str = "sale_id, version, adjustment_id, units, stock, at";

/// A connection to a database, in or out of a transaction.
pub(super) trait Sql {
    /// What stands after `from` to read `columns`, those of `table`, from the set.
    fn set(table: &str, columns: &str) -> String;

    /// Bytes in the column `name` of a set, where they are written as `\\x` and hex digits.
    fn bytes(name: &str) -> String;

    /// Runs `sql`, which writes, on a set.
    fn write(&mut self, sql: String, set: String) -> impl Future<Output = Done> + Send;

    /// The rows that `sql` gives for a set.
    fn read<R: AnyRow>(
        &mut self,
        sql: String,
        set: String,
    ) -> impl Future<Output = Result<Vec<R>, sqlx::Error>> + Send;
}

type Done = Result<(), sqlx::Error>;

/// A row that every database can give.
pub(super) trait AnyRow:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin
{
}

impl<R> AnyRow for R where
    R: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin
{
}

/// A set as its parameter.
pub(super) fn json_text(set: &impl Serialize) -> String {
    serde_json::to_string(set).unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

/// The units of `buyers`, 0 for those who have none.
pub(super) async fn units<C: Sql>(
    db: &mut C,
    buyers: &[(&SaleId, &UserId)],
) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
    if buyers.is_empty() {
        return Ok(HashMap::new());
    }
    let set = C::set("buyers", "sale_id, user_id");
    let sql = format!(
        "select i.sale_id, i.user_id, coalesce(b.units, 0) as units
         from {set} i left join buyers b on b.sale_id = i.sale_id and b.user_id = i.user_id"
    );
    let keys = buyers.iter().map(|(sale, user)| json!({ "sale_id": sale, "user_id": user }));
    Ok(rows::units(db.read(sql, json_text(&keys.collect::<Vec<_>>())).await?))
}

/// The decisions that are stored for `orders`.
pub(super) async fn decisions<C: Sql>(
    db: &mut C,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    if orders.is_empty() {
        return Ok(HashMap::new());
    }
    // SQLite reads the left side of a cross join first.
    let set = C::set("decisions", "sale_id, order_id");
    let sql = format!(
        "select {DECISION}
         from {set} i cross join decisions d
         where d.sale_id = i.sale_id and d.order_id = i.order_id"
    );
    let keys = orders.iter().map(|(sale, order)| json!({ "sale_id": sale, "order_id": order }));
    rows::decisions(db.read(sql, json_text(&keys.collect::<Vec<_>>())).await?)
}

/// What is kept of those of `orders` that are archived.
pub(super) async fn archived<C: Sql>(
    db: &mut C,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, ArchivedOrder>, sqlx::Error> {
    Ok(packed::find(&blocks(db, orders).await?, orders))
}

/// The blocks that would have `orders`: of each archive of a sale the last one that does not begin after the order.
pub(super) async fn blocks<C: Sql>(
    db: &mut C,
    orders: &[(&SaleId, &OrderId)],
) -> Result<Vec<Block>, sqlx::Error> {
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    let set = C::set("decisions", "sale_id, order_id");
    let sql = format!(
        "select {BLOCK} from (
             select distinct r.sale_id, r.archive_id,
                    (select max(b.first_order) from archived_orders b where b.sale_id = r.sale_id
                         and b.archive_id = r.archive_id and b.first_order <= i.order_id) as first_order
             from {set} i cross join archives r where r.sale_id = i.sale_id) w
         cross join archived_orders a
         where a.sale_id = w.sale_id and a.archive_id = w.archive_id and a.first_order = w.first_order"
    );
    let keys = orders.iter().map(|(sale, order)| json!({ "sale_id": sale, "order_id": order }));
    let rows: Vec<BlockRow> = db.read(sql, json_text(&keys.collect::<Vec<_>>())).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Those of `tokens` that replace a user's id in their sale.
pub(super) async fn erased<C: Sql>(
    db: &mut C,
    tokens: &[(&SaleId, &UserId)],
) -> Result<HashSet<(SaleId, UserId)>, sqlx::Error> {
    if tokens.is_empty() {
        return Ok(HashSet::new());
    }
    let set = C::set("erased_buyers", "sale_id, token");
    let sql = format!(
        "select e.sale_id, e.token from {set} i cross join erased_buyers e
         where e.sale_id = i.sale_id and e.token = i.token"
    );
    let keys = tokens.iter().map(|(sale, token)| json!({ "sale_id": sale, "token": token }));
    Ok(rows::erased(db.read(sql, json_text(&keys.collect::<Vec<_>>())).await?))
}

/// Writes how many units buyers have, with their limit.
pub(super) async fn set_units<C: Sql>(db: &mut C, buyers: &[(&SaleId, &UserId, u32, u32)]) -> Done {
    if buyers.is_empty() {
        return Ok(());
    }
    let columns = "sale_id, user_id, units, unit_limit";
    let set = C::set("buyers", columns);
    let sql = format!(
        "insert into buyers ({columns}) select {columns} from {set} i where true
         on conflict (sale_id, user_id) do update set units = excluded.units"
    );
    let rows = buyers.iter().map(|(sale, user, units, limit)| {
        json!({ "sale_id": sale, "user_id": user, "units": units, "unit_limit": limit })
    });
    db.write(sql, json_text(&rows.collect::<Vec<_>>())).await
}

/// Stores the sales that are not there, and names them.
pub(super) async fn insert_sales<C: Sql>(
    db: &mut C,
    sales: &[Sale],
) -> Result<Vec<(String,)>, sqlx::Error> {
    let columns = "sale_id, stock, per_user_limit, opens_at, closes_at, verification";
    let set = C::set("sales", columns);
    let sql = format!(
        "insert into sales ({columns}) select {columns} from {set} i where true order by sale_id
         on conflict (sale_id) do nothing returning sale_id"
    );
    db.read(sql, json_text(&sales)).await
}

/// Writes what an operator may change of a sale.
pub(super) async fn update_sale<C: Sql>(db: &mut C, state: &SaleState) -> Done {
    let set = C::set("sales", SALE);
    let sql = format!(
        "update sales set stock = i.stock, closes_at = i.closes_at, verification = i.verification,
                version = i.version, sold_out_at = i.sold_out_at, paused = i.paused,
                held_from = i.held_from, held_until = i.held_until
         from {set} i where sales.sale_id = i.sale_id"
    );
    db.write(sql, json_text(&[state])).await
}

/// The restock that an adjustment id stands for, if there is one.
pub(super) async fn restock<C: Sql>(
    db: &mut C,
    sale: &SaleId,
    adjustment: Option<&AdjustmentId>,
) -> Result<Option<Restock>, sqlx::Error> {
    let set = C::set("announcements", "sale_id, adjustment_id");
    let sql = format!(
        "select a.* from {set} i cross join announcements a
         where a.sale_id = i.sale_id and a.adjustment_id = i.adjustment_id"
    );
    let key = [json!({ "sale_id": sale, "adjustment_id": adjustment.map(AdjustmentId::as_str) })];
    let rows: Vec<AnnouncementRow> = db.read(sql, json_text(&key)).await?;
    rows::restock(rows.into_iter().next())
}

/// Stores what subscribers are owed.
pub(super) async fn announce<C: Sql>(db: &mut C, announcements: &[Announcement]) -> Done {
    if announcements.is_empty() {
        return Ok(());
    }
    let set = C::set("announcements", ANNOUNCEMENT);
    let sql = format!(
        "insert into announcements ({ANNOUNCEMENT}) select {ANNOUNCEMENT} from {set} i where true"
    );
    db.write(sql, announced(announcements)).await
}

/// What subscribers are owed, of these sales or of all, for each sale in the order in which it happened.
pub(super) async fn unpublished<C: Sql>(
    db: &mut C,
    sales: Option<&[SaleId]>,
) -> Result<Vec<Announcement>, sqlx::Error> {
    // The empty set stands for all.
    let set = C::set("announcements", "sale_id");
    let sql = format!(
        "select {ANNOUNCEMENT} from announcements
         where not published and (cast($1 as text) = '[]' or sale_id in (select i.sale_id from {set} i))
         order by sale_id, version, units nulls last limit {MAX_ANNOUNCEMENTS}"
    );
    let keys = sales.unwrap_or_default().iter().map(|id| json!({ "sale_id": id }));
    rows::announcements(db.read(sql, json_text(&keys.collect::<Vec<_>>())).await?)
}

/// Marks what subscribers were told.
pub(super) async fn published<C: Sql>(db: &mut C, announcements: &[Announcement]) -> Done {
    let set = C::set("announcements", "sale_id, version, adjustment_id");
    let sql = format!(
        "update announcements set published = true from {set} i
         where announcements.sale_id = i.sale_id and announcements.version = i.version
           and announcements.adjustment_id = i.adjustment_id"
    );
    db.write(sql, announced(announcements)).await
}

fn announced(announcements: &[Announcement]) -> String {
    let rows = announcements.iter().map(|announcement| {
        let (sale_id, version, adjustment_id) = announcement.key();
        let (units, stock, at) = announcement.contents();
        json!({ "sale_id": sale_id, "version": version, "adjustment_id": adjustment_id,
                "units": units, "stock": stock, "at": at })
    });
    json_text(&rows.collect::<Vec<_>>())
}
