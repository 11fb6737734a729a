//! Deciding a batch in one transaction of a database that locks rows. See
//! `docs/adr/0008-the-ledger-decides.md`.
//!
//! Locks are taken in one order, so that batches wait for each other but never both ways: sales by
//! one statement in the order of their ids, and only then decisions by an insert in the order of
//! their keys. No sale is locked after that.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::batch::{Batch, is_archived, limited, may_wait, tokens};
use super::{Decided, Proposed};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{Candidate, OrderId, OrderKey, SaleId, UserId};
use crate::domain::rules::State;
use crate::domain::sale::SaleState;
use crate::fault::crash_point;

pub use super::batch::Changes;

/// Sales, and the ledger's time, in whole milliseconds, when the last of them was read.
pub type SalesRead = (DateTime<Utc>, HashMap<SaleId, SaleState>);

/// A transaction. Each call sees what was committed before it (read committed). Dropped, it is rolled back.
pub trait Transaction: Sized + Send {
    /// What may go wrong.
    type Error: Send;

    /// Those of `ids` that exist.
    fn sales(
        &mut self,
        ids: &[&SaleId],
    ) -> impl Future<Output = Result<SalesRead, Self::Error>> + Send;

    /// The same, locked in the order of their ids, so that no other transaction sells or changes them. What is
    /// read, and the time, are from after the lock.
    fn lock_sales(
        &mut self,
        ids: &[&SaleId],
    ) -> impl Future<Output = Result<SalesRead, Self::Error>> + Send;

    /// The units of `buyers`; one that is missing has none.
    fn units(
        &mut self,
        buyers: &[(&SaleId, &UserId)],
    ) -> impl Future<Output = Result<HashMap<(SaleId, UserId), u32>, Self::Error>> + Send;

    /// The decisions that are stored for `orders`.
    fn decisions(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> impl Future<Output = Result<HashMap<OrderKey, Decision>, Self::Error>> + Send;

    /// What is kept of those of `orders` that are archived.
    fn archived(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> impl Future<Output = Result<HashMap<OrderKey, ArchivedOrder>, Self::Error>> + Send;

    /// Those of `tokens` that replace a user's id in their sale.
    fn erased(
        &mut self,
        tokens: &[(&SaleId, &UserId)],
    ) -> impl Future<Output = Result<HashSet<(SaleId, UserId)>, Self::Error>> + Send;

    /// Writes what a batch came to. False when one of its decisions is there already, also by another
    /// transaction, whose end it waits for: then this one can only be rolled back.
    fn write(
        &mut self,
        changes: &Changes<'_>,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Makes what was written last. After an error it is unknown whether it does.
    fn commit(self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Undoes what was written and lets go of its locks.
    fn roll_back(self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether the database has ended a transaction so that another could go on. The same again works.
    fn is_lost_to_another(error: &Self::Error) -> bool;
}

/// Which stored decisions are read before the rule is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookUp {
    /// Only those of orders that may stay undecided. An insert finds the others.
    Few,
    /// All.
    All,
}

/// Decides `orders` in a transaction that `begin` begins, or in another one when that is lost. `has_repeats`
/// remembers whether the latest batch had orders that were decided before: then the next one probably has some
/// too.
pub async fn decide<T: Transaction, B: Future<Output = Result<T, T::Error>> + Send>(
    begin: impl Fn() -> B,
    orders: &[Proposed<'_>],
    max_age: Duration,
    has_repeats: &AtomicBool,
) -> Result<Decided, T::Error> {
    let expects_repeats =
        has_repeats.load(Ordering::Relaxed) || orders.iter().any(|proposed| proposed.redelivered);
    let mut look_up = if expects_repeats { LookUp::All } else { LookUp::Few };
    loop {
        let attempt = async { attempt(begin().await?, orders, max_age, look_up).await };
        match attempt.await {
            Ok(Some(batch)) => {
                has_repeats.store(batch.has_repeats(), Ordering::Relaxed);
                return Ok(batch.finish());
            }
            // An order that was not looked up is decided already.
            Ok(None) => look_up = LookUp::All,
            Err(error) if T::is_lost_to_another(&error) => {
                tracing::debug!("the transaction was lost to another; deciding the batch again");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Decides `orders` once. Without a batch nothing is stored, because one of them is decided already.
async fn attempt<'a, T: Transaction>(
    mut transaction: T,
    orders: &'a [Proposed<'a>],
    max_age: Duration,
    look_up: LookUp,
) -> Result<Option<Batch<'a>>, T::Error> {
    let mut batch = Batch::new(orders);
    let (mut selling, mut refused) = batch.sales_by_hint();
    if !refused.is_empty() {
        // A refusal that is right by a read without a lock stays right: within a version of a sale
        // units are only ever sold.
        let mut read_at = transaction.sales(&refused).await?;
        // Decisions that move to an archive, or back, do so under the lock.
        selling.extend(refused.extract_if(.., |sale| is_archived(&read_at.1, sale)));
        batch.hold_restored(&mut read_at.1);
        let orders: Vec<_> = batch.orders_of(&refused).collect();
        let mut state = read(&mut transaction, read_at, &orders, max_age, look_up).await?;
        if !state.units.is_empty() {
            // Without a lock a buyer may have got units since. A decision names the counters that it was
            // right by, so they must not be older than what was counted for its buyer.
            (state.now, state.sales) = transaction.sales(&refused).await?;
            batch.hold_restored(&mut state.sales);
        }
        batch.decide(&refused, state);
        selling.extend(batch.selling(&refused));
        selling.sort_unstable();
    }
    crash_point("read");
    if !selling.is_empty() {
        let mut locked = transaction.lock_sales(&selling).await?;
        batch.hold_restored(&mut locked.1);
        let orders: Vec<_> = batch.orders_of(&selling).collect();
        let state = read(&mut transaction, locked, &orders, max_age, look_up).await?;
        batch.decide(&selling, state);
    }
    crash_point("locked");
    if !transaction.write(&batch.changes()).await? {
        transaction.roll_back().await?;
        return Ok(None);
    }
    transaction.commit().await?;
    Ok(Some(batch))
}

/// Reads what the rule needs to know of `orders`, whose `sales` were read before, and locked if units
/// are to be sold: these statements see what the transaction before the lock has left.
async fn read<'b, T: Transaction>(
    transaction: &mut T,
    (now, sales): SalesRead,
    orders: &[&'b Candidate],
    max_age: Duration,
    look_up: LookUp,
) -> Result<State, T::Error> {
    let mut erased = tokens(&sales, orders.iter().copied());
    if !erased.is_empty() {
        let keys: Vec<_> = erased.iter().map(|((sale, _), token)| (sale, token)).collect();
        let known = transaction.erased(&keys).await?;
        erased.retain(|(sale, _), token| known.contains(&(sale.clone(), token.clone())));
    }
    let buyers = limited(&sales, orders.iter().copied(), &erased);
    let units = transaction.units(&buyers).await?;
    let key = |candidate: &&'b Candidate| (&candidate.order.sale_id, &candidate.order.id);
    let keys: Vec<_> = orders.iter().map(key).collect();
    let archived: Vec<_> =
        keys.iter().copied().filter(|(sale, _)| is_archived(&sales, sale)).collect();
    let wanted = |candidate: &&&Candidate| {
        let sale = &candidate.order.sale_id;
        look_up == LookUp::All || may_wait(&sales, candidate) || is_archived(&sales, sale)
    };
    let wanted: Vec<_> = orders.iter().filter(wanted).map(key).collect();
    let decisions = transaction.decisions(&wanted).await?;
    let archived =
        if archived.is_empty() { HashMap::new() } else { transaction.archived(&archived).await? };
    Ok(State { now, max_age, sales, units, decisions, archived, erased })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::{Hint, Outcome, Reason};
    use crate::domain::order::{Eligibility, Order, Quantity};
    use crate::domain::sale::Sale;

    /// A database in which another transaction sells a unit to the same buyer between any two statements.
    struct Restless {
        sold: u32,
    }

    impl Restless {
        fn state(&self) -> SalesRead {
            let id = SaleId::parse("s").unwrap();
            let (stock, per_user_limit) = (100, Some(2));
            let (opens_at, closes_at, verification) = (None, None, false);
            let sale = Sale { id, stock, per_user_limit, opens_at, closes_at, verification };
            let state = SaleState { sold: self.sold, ..SaleState::opened(sale) };
            (DateTime::UNIX_EPOCH, HashMap::from([(state.sale.id.clone(), state)]))
        }
    }

    impl Transaction for Restless {
        type Error = ();

        async fn sales(&mut self, _: &[&SaleId]) -> Result<SalesRead, ()> {
            self.sold += 1;
            Ok(self.state())
        }

        async fn lock_sales(&mut self, _: &[&SaleId]) -> Result<SalesRead, ()> {
            unreachable!("the refusal is right")
        }

        async fn units(
            &mut self,
            buyers: &[(&SaleId, &UserId)],
        ) -> Result<HashMap<(SaleId, UserId), u32>, ()> {
            self.sold += 1;
            let units =
                |(sale, user): &(&SaleId, &UserId)| (((*sale).clone(), (*user).clone()), self.sold);
            Ok(buyers.iter().map(units).collect())
        }

        async fn decisions(
            &mut self,
            _: &[(&SaleId, &OrderId)],
        ) -> Result<HashMap<OrderKey, Decision>, ()> {
            Ok(HashMap::new())
        }

        async fn archived(
            &mut self,
            _: &[(&SaleId, &OrderId)],
        ) -> Result<HashMap<OrderKey, ArchivedOrder>, ()> {
            Ok(HashMap::new())
        }

        async fn erased(
            &mut self,
            _: &[(&SaleId, &UserId)],
        ) -> Result<HashSet<(SaleId, UserId)>, ()> {
            Ok(HashSet::new())
        }

        async fn write(&mut self, _: &Changes<'_>) -> Result<bool, ()> {
            Ok(true)
        }

        async fn commit(self) -> Result<(), ()> {
            Ok(())
        }

        async fn roll_back(self) -> Result<(), ()> {
            Ok(())
        }

        fn is_lost_to_another((): &()) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_refusal_by_the_limit_names_counters_that_its_buyers_units_are_in() {
        let order = Order {
            id: OrderId::parse("o").unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: UserId::parse("u").unwrap(),
            quantity: Quantity::new(1).unwrap(),
        };
        let eligibility = Eligibility::Unchecked;
        let candidate = Candidate { order, submitted_at: None, eligibility };
        let hint = Some(Hint::Refused);
        let orders =
            [Proposed { candidate: &candidate, hint, redelivered: false, watermark: None }];
        let begin = || std::future::ready(Ok(Restless { sold: 0 }));
        let decided = decide(begin, &orders, Duration::from_mins(1), &AtomicBool::new(false)).await;
        let decided = decided.unwrap();
        let decision = decided.answers[0].new_decision().unwrap();
        assert_eq!(decision.outcome, Outcome::Rejected(Reason::PurchaseLimit));
        assert!(decision.sold > 2, "it had 2 units when {} were sold", decision.sold);
    }
}
