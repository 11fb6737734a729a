//! Deciding a batch in one transaction. See `docs/adr/0008-the-ledger-decides.md`.
//!
//! Locks are taken in one order, so that batches wait for each other but never both ways: sales by
//! one statement in the order of their ids, and only then decisions by an insert in the order of
//! their keys. No sale is locked after that.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};

use super::rows::{self, SalesRead};
use super::transaction::{Begin, Transaction};
use crate::domain::order::Candidate;
use crate::domain::rules::State;
use crate::fault::crash_point;
use crate::ledger::batch::{Batch, Changes, awaits_verification, limited};
use crate::ledger::{Decided, Proposed, statements};

/// Which stored decisions are read before the rule is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LookUp {
    /// Only those of orders that would be sent to verification. An insert finds the others.
    Few,
    /// All.
    All,
}

/// What became of an attempt.
pub(super) enum Attempt {
    /// It is decided and stored. Says whether any order was decided before.
    Stored { decided: Decided, has_repeats: bool },
    /// Nothing is stored: an order that was not looked up is decided already.
    Repeats,
}

/// Decides `orders` once.
pub(super) async fn attempt(
    pool: &PgPool,
    begin: &Begin,
    orders: &[Proposed<'_>],
    max_age: Duration,
    look_up: LookUp,
) -> Result<Attempt, sqlx::Error> {
    let mut batch = Batch::new(orders);
    let mut transaction = Transaction::begin(pool, begin).await?;
    let connection = transaction.connection();
    let (mut selling, refused) = batch.sales_by_hint();
    if !refused.is_empty() {
        // A refusal that is right by a read without a lock stays right: within a version of a sale
        // units are only ever sold.
        let read_at = rows::sales(connection, Some(&refused)).await?;
        let orders: Vec<_> = batch.orders_of(&refused).collect();
        let state = read(connection, read_at, &orders, max_age, look_up).await?;
        batch.decide(&refused, state);
        selling.extend(batch.selling(&refused));
        selling.sort_unstable();
    }
    crash_point("read");
    if !selling.is_empty() {
        let locked = rows::lock_sales(connection, &selling).await?;
        let orders: Vec<_> = batch.orders_of(&selling).collect();
        let state = read(connection, locked, &orders, max_age, look_up).await?;
        batch.decide(&selling, state);
    }
    crash_point("locked");
    if !write(connection, &batch.changes()).await? {
        transaction.roll_back().await?;
        return Ok(Attempt::Repeats);
    }
    transaction.commit().await?;
    let has_repeats = batch.has_repeats();
    Ok(Attempt::Stored { decided: batch.finish(), has_repeats })
}

/// Reads what the rule needs to know of `orders`, whose `sales` were read before, and locked if units
/// are to be sold: these statements see what the transaction before the lock has left.
async fn read(
    connection: &mut PgConnection,
    (now, sales): SalesRead,
    orders: &[&Candidate],
    max_age: Duration,
    look_up: LookUp,
) -> Result<State, sqlx::Error> {
    let buyers = limited(&sales, orders.iter().copied());
    let units = statements::units(connection, &buyers).await?;
    let wanted = orders
        .iter()
        .filter(|candidate| look_up == LookUp::All || awaits_verification(&sales, candidate))
        .map(|candidate| &candidate.order);
    let wanted: Vec<_> = wanted.map(|order| (&order.sale_id, &order.id)).collect();
    let decisions = statements::decisions(connection, &wanted).await?;
    Ok(State { now, max_age, sales, units, decisions })
}

/// Writes what the batch came to. False when a decision is there already.
async fn write(connection: &mut PgConnection, changes: &Changes<'_>) -> Result<bool, sqlx::Error> {
    let Changes { decisions, sales, buyers, announcements } = changes;
    if !rows::insert_decisions(connection, decisions, sales).await? {
        return Ok(false);
    }
    statements::set_units(connection, buyers).await?;
    statements::announce(connection, announcements).await?;
    Ok(true)
}
