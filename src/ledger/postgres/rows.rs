//! Between the rows of the ledger's tables and the domain.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::decision::{Decision, Outcome, Reason};
use crate::ledger::{Proposed, Recorded, Recording};
use crate::order::{AdjustmentId, Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use crate::sale::{Restock, Sale, SaleState, SoldOut};

/// A batch, turned from rows into the arrays that `record_decisions` takes.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub order_ids: Vec<&'a str>,
    pub sale_ids: Vec<&'a str>,
    pub user_ids: Vec<&'a str>,
    pub quantities: Vec<i32>,
    pub submitted_at: Vec<DateTime<Utc>>,
    pub outcomes: Vec<&'a str>,
    pub reasons: Vec<Option<&'a str>>,
    pub expected: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    pub(super) fn push(&mut self, proposal: &Proposed<'a>) {
        let Decision { order, outcome, .. } = proposal.decision;
        self.order_ids.push(order.id.as_str());
        self.sale_ids.push(order.sale_id.as_str());
        self.user_ids.push(order.user_id.as_str());
        self.quantities.push(order.quantity.get().cast_signed());
        self.submitted_at.push(proposal.submitted_at);
        self.outcomes.push(outcome.name());
        self.reasons.push(outcome.reason().map(Reason::name));
        if proposal.repeat {
            self.expected.push(order.id.as_str());
        }
    }
}

/// A value in the database that this version can't have written.
fn unexpected(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the ledger holds {what} that is not valid").into())
}

fn units(units: i64) -> Result<u32, sqlx::Error> {
    u32::try_from(units).map_err(|_| unexpected("a number of units"))
}

fn sale_id(row: &PgRow, column: &str) -> Result<SaleId, sqlx::Error> {
    SaleId::parse(row.try_get::<String, _>(column)?).map_err(|_| unexpected("a sale id"))
}

pub(super) fn sale_state(row: &PgRow) -> Result<SaleState, sqlx::Error> {
    let limit: Option<i64> = row.try_get("per_user_limit")?;
    let sale = Sale {
        id: sale_id(row, "sale_id")?,
        stock: units(row.try_get("stock")?)?,
        per_user_limit: limit.map(units).transpose()?,
        opens_at: row.try_get("opens_at")?,
        closes_at: row.try_get("closes_at")?,
        verification: row.try_get("verification")?,
    };
    Ok(SaleState {
        sale,
        sold: units(row.try_get("sold")?)?,
        version: units(row.try_get("version")?)?,
        sold_out_at: row.try_get("sold_out_at")?,
    })
}

pub(super) fn restock(row: &PgRow, id: &AdjustmentId) -> Result<Restock, sqlx::Error> {
    Ok(Restock {
        adjustment_id: id.clone(),
        sale_id: sale_id(row, "sale_id")?,
        units: Quantity::new(row.try_get("units")?).ok_or_else(|| unexpected("a restock"))?,
        version: units(row.try_get("version")?)?,
        stock: units(row.try_get("stock")?)?,
        at: row.try_get("adjusted_at")?,
    })
}

fn decision(row: &PgRow, id: &OrderId) -> Result<Decision, sqlx::Error> {
    let user_id: String = row.try_get("r_user_id")?;
    let quantity: i32 = row.try_get("r_quantity")?;
    let outcome: &str = row.try_get("r_outcome")?;
    let reason: Option<&str> = row.try_get("r_reason")?;
    Ok(Decision {
        order: Order {
            id: id.clone(),
            sale_id: sale_id(row, "r_sale_id")?,
            user_id: UserId::parse(user_id).map_err(|_| unexpected("a user id"))?,
            quantity: Quantity::new(quantity.into()).ok_or_else(|| unexpected("a quantity"))?,
        },
        outcome: Outcome::from_names(outcome, reason).ok_or_else(|| unexpected("an outcome"))?,
        decided_at: row.try_get("r_decided_at")?,
    })
}

/// One decision for each of `orders`, where `rows` have it.
pub(super) fn decisions(
    rows: &[PgRow],
    orders: &[OrderKey],
) -> Result<Vec<Option<Decision>>, sqlx::Error> {
    let mut found: HashMap<&str, &PgRow> = HashMap::with_capacity(rows.len());
    for row in rows {
        found.insert(row.try_get("r_order_id")?, row);
    }
    let decisions = orders.iter().map(|OrderKey { sale_id, order_id }| {
        let found = found.get(order_id.as_str()).map(|row| decision(row, order_id)).transpose()?;
        Ok(found.filter(|decision| decision.order.sale_id == *sale_id))
    });
    decisions.collect()
}

/// What `record_decisions` has returned for `proposals`.
pub(super) fn recording(
    rows: &[PgRow],
    proposals: &[Proposed<'_>],
) -> Result<Recording, sqlx::Error> {
    let mut answers = vec![Recorded::AsProposed; proposals.len()];
    let mut sold_out = Vec::new();
    for row in rows {
        let place: i64 = row.try_get("r_place")?;
        let sold: Option<i64> = row.try_get("r_sold")?;
        let sold = units(sold.unwrap_or(0))?;
        if place == 0 {
            sold_out.push(SoldOut {
                sale_id: sale_id(row, "r_sale_id")?,
                version: units(row.try_get("r_version")?)?,
                stock: sold,
                at: row.try_get("r_decided_at")?,
            });
            continue;
        }
        let place = usize::try_from(place - 1).ok().filter(|place| *place < proposals.len());
        let place = place.ok_or_else(|| unexpected("an answer without a proposal"))?;
        answers[place] = Recorded::Instead {
            decision: decision(row, &proposals[place].decision.order.id)?,
            known: row.try_get("r_known")?,
            sold,
        };
    }
    Ok(Recording { answers, sold_out })
}
