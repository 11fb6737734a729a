//! The transactions of an [`Erasure`](super::Erasure), the same in every database. No id has a character that means
//! anything in SQL.

use std::collections::BTreeMap;

use serde_json::json;

use super::archive::{ArchiveRecord, ArchiveStage};
use super::archiving::{self, OneSaleSql, Outcomes, out_of_turn};
use super::erasure::KeptOfUser;
use super::packed::{Block, BlockRow};
use super::row::row;
use super::rows::SaleRow;
use super::statements::{BLOCK, SALE, Sql, json_text};
use crate::domain::erasure::{ErasureKey, Fingerprint};
use crate::domain::order::{OrderId, SaleId, UserId};
use crate::domain::sale::SaleState;

/// Rows of archived orders that are read at once.
const BLOCKS_AT_ONCE: usize = 500;

row! {
    struct SaleName {
        sale_id: SaleId as String,
    }
}

row! {
    struct OrderName {
        order_id: OrderId as String,
    }
}

/// The sales in which anything is kept of a user.
pub(super) async fn kept_of<C: Sql>(
    db: &mut C,
    user: &UserId,
) -> Result<BTreeMap<SaleId, KeptOfUser>, sqlx::Error> {
    let mut kept: BTreeMap<SaleId, KeptOfUser> = BTreeMap::new();
    for table in ["decisions", "buyers"] {
        let sql = format!("select sale_id from {table} where user_id = $1 group by sale_id");
        let found: Vec<SaleName> = db.read(sql, user.as_str().to_owned()).await?;
        for SaleName { sale_id } in found {
            kept.entry(sale_id).or_default().in_ledger = true;
        }
    }
    let sql = format!("select {SALE} from sales where archived and $1 = ''");
    let archived: Vec<SaleRow> = db.read(sql, String::new()).await?;
    for row in archived {
        let SaleState { sale, erasure_key: Some(key), .. } = row.try_into()? else { continue };
        if has_archived(db, &sale.id, key.fingerprint(user)).await? {
            kept.entry(sale.id).or_default().in_archive = true;
        }
    }
    Ok(kept)
}

/// Whether any archived order of a sale is of a buyer.
async fn has_archived<C: Sql>(
    db: &mut C,
    sale: &SaleId,
    buyer: Fingerprint,
) -> Result<bool, sqlx::Error> {
    let (mut archive, mut after) = (String::new(), String::new());
    loop {
        let sql = format!(
            "select {BLOCK} from archived_orders a
             where a.sale_id = '{sale}' and (a.archive_id, a.first_order) > ('{archive}', $1)
             order by a.archive_id, a.first_order limit {BLOCKS_AT_ONCE}"
        );
        let rows: Vec<BlockRow> = db.read(sql, after).await?;
        let blocks: Vec<Block> =
            rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        let Some(last) = blocks.last() else { return Ok(false) };
        (archive, after) = (last.archive_id.clone(), last.first_order.clone());
        if blocks.iter().flat_map(|block| &block.orders).any(|order| order.buyer == buyer) {
            return Ok(true);
        }
    }
}

/// Has a sale take the user's orders as those of its token. `new_key` becomes the sale's if it has none.
pub(super) async fn begin<C: OneSaleSql>(
    db: &mut C,
    user: &UserId,
    sale: &SaleId,
    new_key: &ErasureKey,
) -> Outcomes<Option<UserId>> {
    let Some(state) = db.lock(sale).await? else { return Ok(Ok(None)) };
    if let Some(refusal) = archiving::on_their_way(db, sale).await? {
        return Ok(Err(refusal));
    }
    let key = state.erasure_key.as_ref().unwrap_or(new_key);
    let token = key.token(user);
    if token == *user {
        return Ok(Ok(None));
    }
    let sql = format!(
        "update sales set erasure_key = coalesce(erasure_key, cast($1 as text)) where sale_id = '{sale}'"
    );
    db.write(sql, key.as_str().to_owned()).await?;
    let set = C::set("erased_buyers", "sale_id, token");
    let sql = format!(
        "insert into erased_buyers (sale_id, token) select sale_id, token from {set} i where true
         on conflict (sale_id, token) do nothing"
    );
    db.write(sql, json_text(&[json!({ "sale_id": sale, "token": token })])).await?;
    let units = format!(
        "insert into buyers (sale_id, user_id, units, unit_limit)
         select sale_id, '{token}', units, unit_limit from buyers where sale_id = '{sale}' and user_id = $1
         on conflict (sale_id, user_id) do update set units = buyers.units + excluded.units"
    );
    db.write(units, user.as_str().to_owned()).await?;
    let gone = format!("delete from buyers where sale_id = '{sale}' and user_id = $1");
    db.write(gone, user.as_str().to_owned()).await?;
    Ok(Ok(Some(token)))
}

/// The orders of a user in a sale.
pub(super) async fn orders_of<C: Sql>(
    db: &mut C,
    user: &UserId,
    sale: &SaleId,
) -> Result<Vec<OrderId>, sqlx::Error> {
    let sql = format!("select order_id from decisions where sale_id = '{sale}' and user_id = $1");
    let found: Vec<OrderName> = db.read(sql, user.as_str().to_owned()).await?;
    Ok(found.into_iter().map(|OrderName { order_id }| order_id).collect())
}

/// Replaces the user in decisions of a sale.
pub(super) async fn replace<C: OneSaleSql>(
    db: &mut C,
    (user, token): (&UserId, &UserId),
    sale: &SaleId,
    orders: &[OrderId],
) -> Outcomes<()> {
    db.lock(sale).await?;
    if let Some(refusal) = archiving::on_their_way(db, sale).await? {
        return Ok(Err(refusal));
    }
    let set = C::set("decisions", "order_id");
    let sql = format!(
        "update decisions set user_id = '{token}' where sale_id = '{sale}' and user_id = '{user}'
             and order_id in (select i.order_id from {set} i)"
    );
    let keys: Vec<_> = orders.iter().map(|order| json!({ "order_id": order })).collect();
    db.write(sql, json_text(&keys)).await?;
    Ok(Ok(()))
}

/// Puts another file in the place of an archive's.
pub(super) async fn replace_file<C: OneSaleSql>(
    db: &mut C,
    before: &ArchiveRecord,
    now: &ArchiveRecord,
) -> Outcomes<()> {
    let sale = &before.sale_id;
    db.lock(sale).await?;
    let stored = archiving::stored(db, before).await?;
    if stored.as_ref() != Some(before) || before.stage != ArchiveStage::Done {
        return Ok(Err(out_of_turn(before, stored.map(|stored| stored.stage))));
    }
    let set = C::set("archives", "archive_id, file, sha256");
    let sql = format!(
        "update archives set file = i.file, sha256 = i.sha256 from {set} i
         where archives.sale_id = '{sale}' and archives.archive_id = i.archive_id"
    );
    let ArchiveRecord { archive_id, file, sha256, .. } = now;
    let row = json!({ "archive_id": archive_id, "file": file, "sha256": sha256 });
    db.write(sql, json_text(&[row])).await?;
    Ok(Ok(()))
}
