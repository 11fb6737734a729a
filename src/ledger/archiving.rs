//! The transactions of an [`Archive`](super::Archive), the same in every database. Each is about one sale, which it
//! names and locks.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::archive::{ArchiveRecord, ArchiveStage, archivable};
use super::archived_units::{add_units, subtract_units};
use super::packed::{Block, IN_A_BLOCK, Taken, find};
use super::row::row;
use super::rows::{letter, waited_ms};
use super::statements::{Sql, json_text};
use crate::domain::decision::Decision;
use crate::domain::digest::hex;
use crate::domain::erasure::{ArchivedOrder, ErasureKey};
use crate::domain::order::{OrderId, OrderKey, SaleId};
use crate::domain::sale::SaleState;

/// What the database of one sale is asked besides.
pub(super) trait OneSaleSql: Sql {
    /// The sale, locked.
    fn lock(&mut self, sale: &SaleId) -> impl Future<Output = Locked> + Send;

    /// The decisions of orders, all of one sale.
    fn stored(&mut self, orders: &[(&SaleId, &OrderId)]) -> impl Future<Output = Stored> + Send;

    /// What may have orders, all of one sale, that are archived.
    fn blocks(&mut self, orders: &[(&SaleId, &OrderId)]) -> impl Future<Output = Blocks> + Send;
}

pub(super) type Locked = Result<Option<SaleState>, sqlx::Error>;
pub(super) type Stored = Result<HashMap<OrderKey, Decision>, sqlx::Error>;
pub(super) type Blocks = Result<Vec<Block>, sqlx::Error>;

/// What a transaction came to, or why it was refused before it wrote anything.
pub(super) type Outcomes<T> = Result<Result<T, String>, sqlx::Error>;

row! {
    struct ArchiveRow {
        sale_id: SaleId as String,
        archive_id: String,
        stage: String,
        file: String,
        sha256: String,
        decisions: i64,
        created_at: DateTime<Utc>,
    }
}

impl TryFrom<ArchiveRow> for ArchiveRecord {
    type Error = sqlx::Error;

    fn try_from(row: ArchiveRow) -> Result<Self, sqlx::Error> {
        let ArchiveRow { sale_id, archive_id, file, sha256, created_at, .. } = row;
        let stage = ArchiveStage::ALL.into_iter().find(|stage| stage.name() == row.stage);
        let unknown = || sqlx::Error::Decode("an archive has a stage that is not known".into());
        let (stage, decisions) = (stage.ok_or_else(unknown)?, row.decisions.cast_unsigned());
        Ok(Self { sale_id, archive_id, stage, file, sha256, decisions, created_at })
    }
}

const ARCHIVE: &str = "sale_id, archive_id, stage, file, sha256, decisions, created_at";

/// The archives of a sale, or all.
pub(super) async fn archives<C: Sql>(
    db: &mut C,
    sale: Option<&SaleId>,
) -> Result<Vec<ArchiveRecord>, sqlx::Error> {
    let of = sale.map_or_else(String::new, |sale| format!("sale_id = '{sale}' and"));
    let sql = format!(
        "select {ARCHIVE} from archives where {of} $1 = '' order by created_at, archive_id"
    );
    let rows: Vec<ArchiveRow> = db.read(sql, String::new()).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Why nothing may be replaced in a sale: decisions of it are on their way.
pub(super) async fn on_their_way<C: Sql>(
    db: &mut C,
    sale: &SaleId,
) -> Result<Option<String>, sqlx::Error> {
    let all = archives(db, Some(sale)).await?;
    let unfinished = all.iter().find(|archive| archive.stage != ArchiveStage::Done);
    Ok(unfinished.map(|archive| {
        let what = if archive.stage == ArchiveStage::Restoring { "restore" } else { "archive" };
        format!("sale {sale} is between ledger and archive; first: floodgate sale {what} {sale}")
    }))
}

/// Stores how far an archive is. `new_key` becomes the sale's if it needs one and has none.
pub(super) async fn record<C: OneSaleSql>(
    db: &mut C,
    archive: &ArchiveRecord,
    new_key: &ErasureKey,
    (now, max_age): (DateTime<Utc>, Duration),
) -> Outcomes<()> {
    let ArchiveRecord { sale_id, stage, .. } = archive;
    let Some(state) = db.lock(sale_id).await? else { return Ok(Err(no_sale(sale_id))) };
    let before = stored(db, archive).await?;
    let same_file = before.as_ref().is_none_or(|before| {
        before.stage == ArchiveStage::Writing || before.sha256 == archive.sha256
    });
    let before = before.map(|before| before.stage);
    if !same_file || !stage.follows(before) {
        return Ok(Err(out_of_turn(archive, before)));
    }
    if *stage == ArchiveStage::Moving {
        if let Err(refusal) = archivable(&state, now, max_age) {
            return Ok(Err(refusal.to_string()));
        }
        let sql = format!(
            "update sales set archived = true, erasure_key = coalesce(erasure_key, cast($1 as text))
             where sale_id = '{sale_id}'"
        );
        db.write(sql, new_key.as_str().to_owned()).await?;
    }
    let set = C::set("archives", ARCHIVE);
    let sql = format!(
        "insert into archives ({ARCHIVE}) select {ARCHIVE} from {set} i where true
         on conflict (sale_id, archive_id) do update set stage = excluded.stage, file = excluded.file,
             sha256 = excluded.sha256, decisions = excluded.decisions"
    );
    let ArchiveRecord { archive_id, file, sha256, decisions, created_at, .. } = archive;
    let row = json!({
        "sale_id": sale_id, "archive_id": archive_id, "stage": stage.name(), "file": file,
        "sha256": sha256, "decisions": decisions, "created_at": created_at,
    });
    db.write(sql, json_text(&[row])).await?;
    Ok(Ok(()))
}

/// Forgets an archive; with the last one the sale is archived no more.
pub(super) async fn forget<C: OneSaleSql>(db: &mut C, archive: &ArchiveRecord) -> Outcomes<()> {
    let sale = &archive.sale_id;
    if db.lock(sale).await?.is_none() {
        return Ok(Err(no_sale(sale)));
    }
    match stored(db, archive).await?.map(|stored| stored.stage) {
        Some(ArchiveStage::Writing | ArchiveStage::Restoring) | None => {}
        other => return Ok(Err(out_of_turn(archive, other))),
    }
    // Without it its blocks would not be found.
    let sql = format!(
        "select {ARCHIVE} from archives a where sale_id = '{sale}' and archive_id = $1 and exists (
             select 1 from archived_orders o where o.sale_id = '{sale}' and o.archive_id = a.archive_id)"
    );
    let needed: Vec<ArchiveRow> = db.read(sql, archive.archive_id.clone()).await?;
    if !needed.is_empty() {
        return Ok(Err(format!("decisions of sale {sale} are archived yet")));
    }
    let sql = format!("delete from archives where sale_id = '{sale}' and archive_id = $1");
    db.write(sql, archive.archive_id.clone()).await?;
    let sql = format!(
        "update sales set archived = false where sale_id = '{sale}' and $1 = ''
             and not exists (select 1 from archives a where a.sale_id = '{sale}')
             and not exists (select 1 from archived_orders o where o.sale_id = '{sale}')"
    );
    db.write(sql, String::new()).await?;
    Ok(Ok(()))
}

/// Moves decisions out of the ledger.
pub(super) async fn move_out<C: OneSaleSql>(
    db: &mut C,
    archive: &ArchiveRecord,
    decisions: &[Decision],
) -> Outcomes<u64> {
    let (stored, blocks, state) = match both(db, archive, ArchiveStage::Moving, decisions).await? {
        Ok(both) => both,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Some(key) = &state.erasure_key else { return Ok(Err(no_sale(&archive.sale_id))) };
    let (kept, mut moved) = (find(&blocks, &keys(decisions)), Vec::new());
    for decision in decisions {
        let order = decision.order.key();
        match (stored.get(&order), kept.get(&order)) {
            (Some(stored), None) if stored == decision => moved.push(decision),
            (None, Some(kept)) if kept.is_kept_of(decision, key) => {}
            _ => return Ok(Err(differs(&order))),
        }
    }
    if moved.is_empty() {
        return Ok(Ok(0));
    }
    delete(db, &archive.sale_id, &moved).await?;
    let mut kept: Vec<ArchivedOrder> =
        moved.iter().map(|decision| ArchivedOrder::of(decision, key)).collect();
    kept.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let blocks = kept.chunks(IN_A_BLOCK).filter_map(|some| Block::of(&archive.archive_id, some));
    insert_blocks(db, &blocks.collect::<Vec<_>>()).await?;
    if state.sale.per_user_limit.is_some() {
        subtract_units(db, &archive.sale_id, &moved, key).await?;
    }
    Ok(Ok(moved.len() as u64))
}

/// Moves decisions back into the ledger.
pub(super) async fn move_back<C: OneSaleSql>(
    db: &mut C,
    archive: &ArchiveRecord,
    decisions: &[Decision],
) -> Outcomes<u64> {
    let (stored, blocks, state) =
        match both(db, archive, ArchiveStage::Restoring, decisions).await? {
            Ok(both) => both,
            Err(refusal) => return Ok(Err(refusal)),
        };
    let Some(key) = &state.erasure_key else { return Ok(Err(no_sale(&archive.sale_id))) };
    let (kept, mut moved) = (find(&blocks, &keys(decisions)), Vec::new());
    for decision in decisions {
        let order = decision.order.key();
        match (stored.get(&order), kept.get(&order)) {
            (None, Some(kept)) if kept.is_kept_of(decision, key) => moved.push(decision),
            (Some(stored), None) if stored == decision => {}
            _ => return Ok(Err(differs(&order))),
        }
    }
    if moved.is_empty() {
        return Ok(Ok(0));
    }
    take_from_blocks(db, blocks, &moved).await?;
    let columns =
        "sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold";
    let rows = moved.iter().map(|decision| {
        let Decision { order, outcome, decided_at, version, sold, .. } = decision;
        json!({ "sale_id": order.sale_id, "order_id": order.id, "user_id": order.user_id,
                "quantity": order.quantity, "outcome": letter(*outcome), "waited_ms": waited_ms(decision),
                "decided_at": decided_at, "version": version, "sold": sold })
    });
    let set = C::set("decisions", columns);
    let sql = format!("insert into decisions ({columns}) select {columns} from {set} i");
    db.write(sql, json_text(&rows.collect::<Vec<_>>())).await?;
    if let Some(limit) = state.sale.per_user_limit {
        add_units(db, &archive.sale_id, &moved, limit).await?;
    }
    Ok(Ok(moved.len() as u64))
}

fn keys(decisions: &[Decision]) -> Vec<(&SaleId, &OrderId)> {
    decisions.iter().map(|decision| (&decision.order.sale_id, &decision.order.id)).collect()
}

/// What both tables have of the orders of `decisions`, and their sale, locked.
async fn both<C: OneSaleSql>(
    db: &mut C,
    archive: &ArchiveRecord,
    expected: ArchiveStage,
    decisions: &[Decision],
) -> Outcomes<(HashMap<OrderKey, Decision>, Vec<Block>, SaleState)> {
    let sale = &archive.sale_id;
    let Some(state) = db.lock(sale).await? else { return Ok(Err(no_sale(sale))) };
    let is_at = stored(db, archive).await?.map(|stored| stored.stage);
    if is_at != Some(expected) {
        return Ok(Err(out_of_turn(archive, is_at)));
    }
    let keys = keys(decisions);
    let stored = db.stored(&keys).await?;
    let blocks = db.blocks(&keys).await?;
    Ok(Ok((stored, blocks, state)))
}

/// What the database knows of an archive.
pub(super) async fn stored<C: Sql>(
    db: &mut C,
    archive: &ArchiveRecord,
) -> Result<Option<ArchiveRecord>, sqlx::Error> {
    let sale = &archive.sale_id;
    let sql =
        format!("select {ARCHIVE} from archives where sale_id = '{sale}' and archive_id = $1");
    let rows: Vec<ArchiveRow> = db.read(sql, archive.archive_id.clone()).await?;
    rows.into_iter().next().map(TryInto::try_into).transpose()
}

async fn delete<C: Sql>(
    db: &mut C,
    sale: &SaleId,
    decisions: &[&Decision],
) -> Result<(), sqlx::Error> {
    let set = C::set("decisions", "order_id");
    let sql = format!(
        "delete from decisions where sale_id = '{sale}' and order_id in (select i.order_id from {set} i)"
    );
    let keys = decisions.iter().map(|decision| json!({ "order_id": decision.order.id }));
    db.write(sql, json_text(&keys.collect::<Vec<_>>())).await
}

/// Stores blocks, in the place of those with the same first order.
async fn insert_blocks<C: Sql>(db: &mut C, blocks: &[Block]) -> Result<(), sqlx::Error> {
    let set = C::set("archived_orders", BLOCK);
    let bytes = C::bytes("orders");
    let sql = format!(
        "insert into archived_orders ({BLOCK})
         select sale_id, archive_id, first_order, decisions, units, {bytes} from {set} i where true
         on conflict (sale_id, archive_id, first_order)
         do update set decisions = excluded.decisions, units = excluded.units, orders = excluded.orders"
    );
    let rows = blocks.iter().map(|block| {
        let Block { sale_id, archive_id, first_order, orders } = block;
        json!({ "sale_id": sale_id, "archive_id": archive_id, "first_order": first_order,
                "decisions": orders.len(), "units": block.units(),
                "orders": format!("\\x{}", hex(&block.bytes())) })
    });
    db.write(sql, json_text(&rows.collect::<Vec<_>>())).await
}

const BLOCK: &str = "sale_id, archive_id, first_order, decisions, units, orders";

/// Takes the orders of `decisions` out of `blocks`, which have them.
async fn take_from_blocks<C: Sql>(
    db: &mut C,
    blocks: Vec<Block>,
    decisions: &[&Decision],
) -> Result<(), sqlx::Error> {
    let taken = Taken::of(decisions);
    let (mut left, mut gone) = (Vec::new(), Vec::new());
    for mut block in blocks {
        let before = block.orders.len();
        block.orders.retain(|order| !taken.has(order));
        if block.orders.is_empty() {
            gone.push(block);
        } else if block.orders.len() < before {
            left.push(block);
        }
    }
    insert_blocks(db, &left).await?;
    let set = C::set("archived_orders", "archive_id, first_order");
    if let Some(sale) = gone.first().map(|block| &block.sale_id) {
        let sql = format!(
            "delete from archived_orders where sale_id = '{sale}'
                 and (archive_id, first_order) in (select i.archive_id, i.first_order from {set} i)"
        );
        let keys = gone.iter().map(|Block { archive_id, first_order, .. }| {
            json!({ "archive_id": archive_id, "first_order": first_order })
        });
        db.write(sql, json_text(&keys.collect::<Vec<_>>())).await?;
    }
    Ok(())
}

fn no_sale(sale: &SaleId) -> String {
    format!("there is no sale {sale}, or it has no key")
}

fn differs(order: &OrderKey) -> String {
    format!("the ledger has not the decision of order {order} that the file has")
}

pub(super) fn out_of_turn(archive: &ArchiveRecord, is_at: Option<ArchiveStage>) -> String {
    let ArchiveRecord { sale_id, archive_id, .. } = archive;
    let is_at = is_at.map_or("gone", ArchiveStage::name);
    format!("archive {archive_id} of sale {sale_id} is {is_at}: another command works on it")
}
