//! Statements about one sale, which they name: what a distributed database takes to the one node that has the sale.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, query, query_as, query_scalar};

use super::rows::{column, int};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{AdjustmentId, OrderId, OrderKey, SaleId, UserId};
use crate::domain::sale::{Announcement, PauseMode, Restock, Sale, SaleState};
use crate::ledger::packed::{self, Block, BlockRow};
use crate::ledger::recipe::{self, Changes, SalesRead};
use crate::ledger::rows::{
    self, AnnouncementRow, BuyerRow, DecisionRow, SaleRow, letter, waited_ms,
};
use crate::ledger::statements::{ANNOUNCEMENT, BLOCK, DECISION, SALE};

use super::transaction::Transaction;

/// A transaction about one sale.
pub(super) struct OneSale(pub Transaction);

impl recipe::Transaction for OneSale {
    type Error = sqlx::Error;

    async fn sales(&mut self, ids: &[&SaleId]) -> Result<SalesRead, sqlx::Error> {
        sale(self.0.connection(), only(ids), "").await
    }

    async fn lock_sales(&mut self, ids: &[&SaleId]) -> Result<SalesRead, sqlx::Error> {
        sale(self.0.connection(), only(ids), "for no key update").await
    }

    async fn units(
        &mut self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
        units(self.0.connection(), buyers).await
    }

    async fn decisions(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
        decisions(self.0.connection(), orders).await
    }

    async fn archived(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> Result<HashMap<OrderKey, ArchivedOrder>, sqlx::Error> {
        archived(self.0.connection(), orders).await
    }

    async fn erased(
        &mut self,
        tokens: &[(&SaleId, &UserId)],
    ) -> Result<HashSet<(SaleId, UserId)>, sqlx::Error> {
        let Some((sale, _)) = tokens.first() else { return Ok(HashSet::new()) };
        let sql =
            "select sale_id, token from erased_buyers where sale_id = $1 and token = any ($2)";
        let tokens = column(tokens, |(_, token)| token.as_str());
        let found = query_as(sql).bind(sale.as_str()).bind(tokens);
        Ok(rows::erased(found.fetch_all(self.0.connection()).await?))
    }

    async fn write(&mut self, changes: &Changes<'_>) -> Result<bool, sqlx::Error> {
        let Changes { decisions, sales, buyers, announcements } = changes;
        let db = self.0.connection();
        if !insert_decisions(db, decisions).await? {
            return Ok(false);
        }
        for state in sales {
            sell(db, state).await?;
        }
        set_units(db, buyers).await?;
        announce(db, announcements).await?;
        Ok(true)
    }

    async fn commit(self) -> Result<(), sqlx::Error> {
        self.0.commit().await
    }

    async fn roll_back(self) -> Result<(), sqlx::Error> {
        self.0.roll_back().await
    }

    fn is_lost_to_another(error: &sqlx::Error) -> bool {
        Transaction::is_lost_to_another(error)
    }
}

/// The sale of a transaction that has one.
fn only<'a>(ids: &[&'a SaleId]) -> &'a SaleId {
    let [id] = ids else { unreachable!("a transaction about one sale is asked for {ids:?}") };
    id
}

/// A sale, if it exists, and the time after it was read.
async fn sale(db: &mut PgConnection, id: &SaleId, how: &str) -> Result<SalesRead, sqlx::Error> {
    let sql = format!("select {SALE} from sales where sale_id = $1 {how}");
    let row: Option<SaleRow> =
        query_as(AssertSqlSafe(sql)).bind(id.as_str()).fetch_optional(&mut *db).await?;
    // A second statement: within the first the clock could be read before the lock is granted.
    let now: DateTime<Utc> = query_scalar("select clock_timestamp()").fetch_one(db).await?;
    Ok((now.trunc_subsecs(3), rows::sales(row.into_iter().collect())?))
}

/// The sale, locked.
pub(super) async fn lock(
    db: &mut PgConnection,
    id: &SaleId,
) -> Result<Option<SaleState>, sqlx::Error> {
    Ok(sale(db, id, "for no key update").await?.1.remove(id))
}

/// Every sale.
pub(super) async fn every_sale(
    db: &mut PgConnection,
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    let sql = AssertSqlSafe(format!("select {SALE} from sales"));
    rows::sales(query_as(sql).fetch_all(db).await?)
}

/// The sale, if it exists.
pub(super) async fn read(
    db: &mut PgConnection,
    id: &SaleId,
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    Ok(sale(db, id, "").await?.1)
}

/// The units of buyers, all of one sale.
pub(super) async fn units(
    db: &mut PgConnection,
    buyers: &[(&SaleId, &UserId)],
) -> Result<HashMap<(SaleId, UserId), u32>, sqlx::Error> {
    let Some((sale, _)) = buyers.first() else { return Ok(HashMap::new()) };
    let sql =
        "select sale_id, user_id, units from buyers where sale_id = $1 and user_id = any ($2)";
    let users = column(buyers, |(_, user)| user.as_str());
    let found: Vec<BuyerRow> = query_as(sql).bind(sale.as_str()).bind(users).fetch_all(db).await?;
    let mut units = rows::units(found);
    for &(sale, user) in buyers {
        units.entry((sale.clone(), user.clone())).or_default();
    }
    Ok(units)
}

/// The decisions that are stored for orders, all of one sale.
pub(super) async fn decisions(
    db: &mut PgConnection,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    let Some((sale, _)) = orders.first() else { return Ok(HashMap::new()) };
    let sql = format!(
        "select {DECISION} from decisions d where d.sale_id = $1 and d.order_id = any ($2)"
    );
    let ids = column(orders, |(_, order)| order.as_str());
    let found: Vec<DecisionRow> =
        query_as(AssertSqlSafe(sql)).bind(sale.as_str()).bind(ids).fetch_all(db).await?;
    rows::decisions(found)
}

/// What is kept of those of `orders`, all of one sale, that are archived.
pub(super) async fn archived(
    db: &mut PgConnection,
    orders: &[(&SaleId, &OrderId)],
) -> Result<HashMap<OrderKey, ArchivedOrder>, sqlx::Error> {
    Ok(packed::find(&blocks(db, orders).await?, orders))
}

/// The blocks that would have `orders`, all of one sale: of each archive the last one that does not begin after the
/// order.
pub(super) async fn blocks(
    db: &mut PgConnection,
    orders: &[(&SaleId, &OrderId)],
) -> Result<Vec<Block>, sqlx::Error> {
    let Some((sale, _)) = orders.first() else { return Ok(Vec::new()) };
    let sql = format!(
        "select {BLOCK} from (
             select distinct r.archive_id,
                    (select max(b.first_order) from archived_orders b where b.sale_id = $1
                         and b.archive_id = r.archive_id and b.first_order <= i.order_id) as first_order
             from unnest($2::text[]) as i (order_id) cross join archives r where r.sale_id = $1) w
         cross join archived_orders a
         where a.sale_id = $1 and a.archive_id = w.archive_id and a.first_order = w.first_order"
    );
    let ids = column(orders, |(_, order)| order.as_str());
    let found = query_as(AssertSqlSafe(sql)).bind(sale.as_str()).bind(ids);
    let rows: Vec<BlockRow> = found.fetch_all(db).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Stores decisions of one sale. False when one of them is there already.
async fn insert_decisions(
    db: &mut PgConnection,
    decisions: &[&Decision],
) -> Result<bool, sqlx::Error> {
    let Some(first) = decisions.first() else { return Ok(true) };
    let sql = "insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms,
                decided_at, version, sold)
         select $1, order_id, user_id, quantity, outcome::\"char\", waited_ms, decided_at, version, sold
         from unnest($2::text[], $3::text[], $4::integer[], $5::text[], $6::integer[],
                $7::timestamptz[], $8::integer[], $9::integer[])
             as i (order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold)";
    let insert = query(sql)
        .bind(first.order.sale_id.as_str())
        .bind(column(decisions, |decision| decision.order.id.as_str()))
        .bind(column(decisions, |decision| decision.order.user_id.as_str()))
        .bind(column(decisions, |decision| int(decision.order.quantity.get())))
        .bind(column(decisions, |decision| letter(decision.outcome)))
        .bind(column(decisions, |decision| waited_ms(decision)))
        .bind(column(decisions, |decision| decision.decided_at))
        .bind(column(decisions, |decision| int(decision.version)))
        .bind(column(decisions, |decision| int(decision.sold)));
    match insert.execute(db).await {
        // The node that has the sale does not say which constraint it was; there is one such.
        Err(error) if super::sqlstate(&error).as_deref() == Some(UNIQUE_VIOLATION) => Ok(false),
        result => result.map(|_| true),
    }
}

/// PostgreSQL's appendix A.
const UNIQUE_VIOLATION: &str = "23505";

/// Writes how much of a sale, which is locked, is sold.
async fn sell(db: &mut PgConnection, state: &SaleState) -> Result<(), sqlx::Error> {
    let sql = "update sales set sold = $2, sold_out_at = $3 where sale_id = $1";
    let update =
        query(sql).bind(state.sale.id.as_str()).bind(int(state.sold)).bind(state.sold_out_at);
    update.execute(db).await.map(drop)
}

/// Writes how many units buyers of one sale have, with their limit.
async fn set_units(
    db: &mut PgConnection,
    buyers: &[(&SaleId, &UserId, u32, u32)],
) -> Result<(), sqlx::Error> {
    let Some((sale, _, _, limit)) = buyers.first() else { return Ok(()) };
    let sql = "insert into buyers (sale_id, user_id, units, unit_limit)
         select $1, user_id, units, $2 from unnest($3::text[], $4::bigint[]) as i (user_id, units)
         on conflict (sale_id, user_id) do update set units = excluded.units";
    let upsert = query(sql)
        .bind(sale.as_str())
        .bind(i64::from(*limit))
        .bind(column(buyers, |(_, user, _, _)| user.as_str()))
        .bind(column(buyers, |(_, _, units, _)| i64::from(*units)));
    upsert.execute(db).await.map(drop)
}

/// Stores a sale unless it is there. Whether it was not.
pub(super) async fn insert_sale(db: &mut PgConnection, sale: &Sale) -> Result<bool, sqlx::Error> {
    let sql =
        "insert into sales (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
         values ($1, $2, $3, $4, $5, $6) on conflict (sale_id) do nothing";
    let insert = query(sql)
        .bind(sale.id.as_str())
        .bind(int(sale.stock))
        .bind(sale.per_user_limit.map(i64::from))
        .bind(sale.opens_at)
        .bind(sale.closes_at)
        .bind(sale.verification);
    Ok(insert.execute(db).await?.rows_affected() > 0)
}

/// Writes what an operator may change of a sale.
pub(super) async fn update_sale(
    db: &mut PgConnection,
    state: &SaleState,
) -> Result<(), sqlx::Error> {
    let sql = "update sales set stock = $2, closes_at = $3, verification = $4, version = $5,
             sold_out_at = $6, paused = $7, held_from = $8, held_until = $9 where sale_id = $1";
    let update = query(sql)
        .bind(state.sale.id.as_str())
        .bind(int(state.sale.stock))
        .bind(state.sale.closes_at)
        .bind(state.sale.verification)
        .bind(int(state.version))
        .bind(state.sold_out_at)
        .bind(state.paused.map(PauseMode::name))
        .bind(state.held_from)
        .bind(state.held_until);
    update.execute(db).await.map(drop)
}

/// The restock that an adjustment id stands for, if there is one.
pub(super) async fn restock(
    db: &mut PgConnection,
    sale: &SaleId,
    adjustment: Option<&AdjustmentId>,
) -> Result<Option<Restock>, sqlx::Error> {
    let sql = format!(
        "select {ANNOUNCEMENT} from announcements where sale_id = $1 and adjustment_id = $2"
    );
    let Some(adjustment) = adjustment else { return Ok(None) };
    let found: Option<AnnouncementRow> = query_as(AssertSqlSafe(sql))
        .bind(sale.as_str())
        .bind(adjustment.as_str())
        .fetch_optional(db)
        .await?;
    rows::restock(found)
}

/// Stores what subscribers are owed of one sale.
pub(super) async fn announce(
    db: &mut PgConnection,
    announcements: &[Announcement],
) -> Result<(), sqlx::Error> {
    let sql = format!("insert into announcements ({ANNOUNCEMENT}) values ($1, $2, $3, $4, $5, $6)");
    for announcement in announcements {
        let (sale, version, adjustment) = announcement.key();
        let (units, stock, at) = announcement.contents();
        let insert = query(AssertSqlSafe(sql.as_str()))
            .bind(sale.as_str())
            .bind(int(version))
            .bind(adjustment)
            .bind(units.map(|units| int(units.get())))
            .bind(int(stock))
            .bind(at);
        insert.execute(&mut *db).await?;
    }
    Ok(())
}

/// Marks what subscribers were told of.
pub(super) async fn published(
    db: &mut PgConnection,
    announcement: &Announcement,
) -> Result<(), sqlx::Error> {
    let sql = "update announcements set published = true
         where sale_id = $1 and version = $2 and adjustment_id = $3";
    let (sale, version, adjustment) = announcement.key();
    let update = query(sql).bind(sale.as_str()).bind(int(version)).bind(adjustment);
    update.execute(db).await.map(drop)
}

/// What subscribers are owed of a sale, or of all.
pub(super) async fn unpublished(
    db: &mut PgConnection,
    sale: Option<&SaleId>,
) -> Result<Vec<Announcement>, sqlx::Error> {
    let of = if sale.is_some() { "sale_id = $1 and" } else { "" };
    let most = crate::ledger::MAX_ANNOUNCEMENTS;
    let sql = format!(
        "select {ANNOUNCEMENT} from announcements where {of} not published
         order by sale_id, version, units nulls last limit {most}"
    );
    let mut select = query_as(AssertSqlSafe(sql));
    if let Some(sale) = sale {
        select = select.bind(sale.as_str());
    }
    rows::announcements(select.fetch_all(db).await?)
}

/// The ids of all sales that any row belongs to, also of those that are not there, as they are written.
pub(super) async fn every_id(db: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let mut ids = Vec::new();
    for table in [
        "sales",
        "decisions",
        "buyers",
        "announcements",
        "archived_orders",
        "archives",
        "erased_buyers",
    ] {
        let sql = AssertSqlSafe(format!("select distinct sale_id from {table}"));
        ids.extend(query_scalar::<_, String>(sql).fetch_all(&mut *db).await?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
