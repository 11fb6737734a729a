//! Between the rows of the ledger's tables and the domain, the same for every database. Each adapter's
//! statements name their columns as these structs do.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::row::row;
use crate::domain::decision::{Decision, Outcome, Reason};
use crate::domain::erasure::ErasureKey;
use crate::domain::order::{AdjustmentId, Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use crate::domain::sale::{Announcement, PauseMode, Restock, Sale, SaleState, SoldOut};

row! {
    /// A row of `sales`.
    pub(super) struct SaleRow {
        sale_id: SaleId as String,
        stock: u32 as i32,
        sold: u32 as i32,
        per_user_limit: Option<i64>,
        opens_at: Option<DateTime<Utc>>,
        closes_at: Option<DateTime<Utc>>,
        verification: bool,
        version: u32 as i32,
        sold_out_at: Option<DateTime<Utc>>,
        paused: Option<String>,
        held_from: Option<DateTime<Utc>>,
        held_until: Option<DateTime<Utc>>,
        archived: bool,
        erasure_key: Option<String>,
    }
}

row! {
    /// A row of `decisions`.
    pub(super) struct DecisionRow {
        sale_id: SaleId as String,
        order_id: OrderId as String,
        user_id: UserId as String,
        quantity: Quantity as i32,
        outcome: String,
        waited_ms: i32,
        decided_at: DateTime<Utc>,
        version: u32 as i32,
        sold: u32 as i32,
    }
}

row! {
    /// A row of `erased_buyers`.
    pub(super) struct ErasedRow {
        sale_id: SaleId as String,
        token: UserId as String,
    }
}

row! {
    /// A row of `buyers`.
    pub(super) struct BuyerRow {
        sale_id: SaleId as String,
        user_id: UserId as String,
        units: u32 as i64,
    }
}

row! {
    /// A row of `announcements`.
    pub(super) struct AnnouncementRow {
        sale_id: SaleId as String,
        version: u32 as i32,
        adjustment_id: String,
        units: Option<i32>,
        stock: u32 as i32,
        at: DateTime<Utc>,
    }
}

/// The letters that stand for outcomes.
const OUTCOMES: [(&str, Outcome); 8] = [
    ("c", Outcome::Created),
    ("s", Outcome::SoldOut),
    ("d", Outcome::Rejected(Reason::UserDenied)),
    ("l", Outcome::Rejected(Reason::PurchaseLimit)),
    ("n", Outcome::Rejected(Reason::NotOpen)),
    ("x", Outcome::Rejected(Reason::Closed)),
    ("p", Outcome::Rejected(Reason::Paused)),
    ("e", Outcome::Rejected(Reason::Expired)),
];

/// The letter that stands for an outcome.
pub(super) fn letter(outcome: Outcome) -> &'static str {
    OUTCOMES.iter().find(|(_, known)| *known == outcome).map_or("?", |(letter, _)| letter)
}

/// The outcome that a letter stands for.
pub(super) fn outcome(letter: &str) -> Result<Outcome, sqlx::Error> {
    let found = OUTCOMES.iter().find(|(known, _)| *known == letter);
    found.map(|(_, outcome)| *outcome).ok_or_else(|| unexpected("an outcome"))
}

/// How long an order waited for its decision. Four bytes hold 24 days.
pub(super) fn waited_ms(decision: &Decision) -> i32 {
    let waited = decision.decided_at - decision.submitted_at;
    i32::try_from(waited.num_milliseconds()).unwrap_or(i32::MAX)
}

/// A value in the database that this version cannot have written.
pub(super) fn unexpected(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the ledger holds {what} that is not valid").into())
}

impl TryFrom<SaleRow> for SaleState {
    type Error = sqlx::Error;

    fn try_from(row: SaleRow) -> Result<Self, sqlx::Error> {
        let limit = row.per_user_limit.map(u32::try_from).transpose();
        let sale = Sale {
            id: row.sale_id,
            stock: row.stock,
            per_user_limit: limit.map_err(|_| unexpected("a limit"))?,
            opens_at: row.opens_at,
            closes_at: row.closes_at,
            verification: row.verification,
        };
        let modes = [PauseMode::Refuse, PauseMode::Hold, PauseMode::Restored];
        let known = |name: String| {
            let mode = modes.into_iter().find(|mode| mode.name() == name);
            mode.ok_or_else(|| unexpected("a pause"))
        };
        let paused = row.paused.map(known).transpose()?;
        let SaleRow { sold, version, sold_out_at, held_from, held_until, archived, .. } = row;
        let erasure_key = row.erasure_key.map(ErasureKey::stored);
        Ok(Self {
            sale,
            sold,
            version,
            sold_out_at,
            paused,
            held_from,
            held_until,
            archived,
            erasure_key,
        })
    }
}

impl TryFrom<DecisionRow> for Decision {
    type Error = sqlx::Error;

    fn try_from(row: DecisionRow) -> Result<Self, sqlx::Error> {
        let DecisionRow { sale_id, order_id, user_id, quantity, decided_at, version, sold, .. } =
            row;
        Ok(Self {
            order: Order { id: order_id, sale_id, user_id, quantity },
            outcome: outcome(&row.outcome)?,
            submitted_at: decided_at - TimeDelta::milliseconds(row.waited_ms.into()),
            decided_at,
            version,
            sold,
        })
    }
}

impl TryFrom<AnnouncementRow> for Announcement {
    type Error = sqlx::Error;

    fn try_from(row: AnnouncementRow) -> Result<Self, sqlx::Error> {
        let AnnouncementRow { sale_id, version, stock, at, .. } = row;
        let Some(units) = row.units else {
            return Ok(Self::SoldOut(SoldOut { sale_id, version, stock, at }));
        };
        let units = Quantity::try_from(units).map_err(|_| unexpected("a restock"))?;
        let adjustment_id = AdjustmentId::parse(row.adjustment_id);
        let adjustment_id = adjustment_id.map_err(|_| unexpected("an adjustment id"))?;
        Ok(Self::Restocked(Restock { adjustment_id, sale_id, units, version, stock, at }))
    }
}

/// Sales by their id.
pub(super) fn sales(rows: Vec<SaleRow>) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    let states = rows.into_iter().map(|row| Ok((row.sale_id.clone(), row.try_into()?)));
    states.collect()
}

/// Decisions by the key of their order.
pub(super) fn decisions(
    rows: Vec<DecisionRow>,
) -> Result<HashMap<OrderKey, Decision>, sqlx::Error> {
    let decisions = rows.into_iter().map(|row| {
        let decision = Decision::try_from(row)?;
        Ok((decision.order.key(), decision))
    });
    decisions.collect()
}

/// The tokens, each with its sale.
pub(super) fn erased(rows: Vec<ErasedRow>) -> HashSet<(SaleId, UserId)> {
    rows.into_iter().map(|row| (row.sale_id, row.token)).collect()
}

/// Units by buyer.
pub(super) fn units(rows: Vec<BuyerRow>) -> HashMap<(SaleId, UserId), u32> {
    rows.into_iter().map(|row| ((row.sale_id, row.user_id), row.units)).collect()
}

/// Announcements in the order of their rows.
pub(super) fn announcements(rows: Vec<AnnouncementRow>) -> Result<Vec<Announcement>, sqlx::Error> {
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The restock in an announcement.
pub(super) fn restock(row: Option<AnnouncementRow>) -> Result<Option<Restock>, sqlx::Error> {
    match row.map(Announcement::try_from).transpose()? {
        Some(Announcement::Restocked(restock)) => Ok(Some(restock)),
        _ => Ok(None),
    }
}
