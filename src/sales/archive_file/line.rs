//! A line of an archive file: a decision, whole.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::decision::{Decision, Outcome, Reason};
use crate::domain::event::rfc3339;
use crate::domain::order::{Order, OrderId, Quantity, SaleId, UserId};

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    order: &'a Order,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    submitted_at: String,
    decided_at: String,
    version: u32,
    sold: u32,
}

#[derive(Deserialize)]
struct LineRead {
    order_id: String,
    sale_id: String,
    user_id: String,
    quantity: i64,
    outcome: String,
    reason: Option<String>,
    submitted_at: DateTime<Utc>,
    decided_at: DateTime<Utc>,
    version: u32,
    sold: u32,
}

pub(super) fn line(decision: &Decision) -> Vec<u8> {
    let Decision { order, outcome, submitted_at, decided_at, version, sold } = decision;
    let line = Line {
        order,
        outcome: outcome.name(),
        reason: outcome.reason().map(Reason::name),
        submitted_at: rfc3339(*submitted_at),
        decided_at: rfc3339(*decided_at),
        version: *version,
        sold: *sold,
    };
    let mut line = serde_json::to_vec(&line)
        .unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
    line.push(b'\n');
    line
}

/// The decision in a line.
pub(super) fn decision(line: &[u8]) -> Option<Decision> {
    let read: LineRead = serde_json::from_slice(line).ok()?;
    Some(Decision {
        order: Order {
            id: OrderId::parse(read.order_id).ok()?,
            sale_id: SaleId::parse(read.sale_id).ok()?,
            user_id: UserId::parse(read.user_id).ok()?,
            quantity: Quantity::new(read.quantity)?,
        },
        outcome: Outcome::parse(&read.outcome, read.reason.as_deref())?,
        submitted_at: read.submitted_at,
        decided_at: read.decided_at,
        version: read.version,
        sold: read.sold,
    })
}
