//! The rule of a sale: what becomes of an order, by what a ledger has read.
//!
//! Pure: no I/O, no clock, no randomness. Every ledger applies it within a transaction, so that what
//! it read is still true when the decision is stored. It is written nowhere else; Redis has a hint
//! (`inventory/lua/deduct.lua`), which may be wrong.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};

use crate::domain::decision::{Decision, Outcome, Reason};
use crate::domain::erasure::ArchivedOrder;
use crate::domain::order::{Candidate, Eligibility, Order, OrderKey, SaleId, UserId};
use crate::domain::sale::{PauseMode, SaleState};

/// What a ledger holds of the orders of a batch. Deciding an order changes it as storing the
/// decision would.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The ledger's time, in whole milliseconds.
    pub now: DateTime<Utc>,
    /// An order older than this is rejected as expired.
    pub max_age: Duration,
    /// The sales that exist, of those that the orders name.
    pub sales: HashMap<SaleId, SaleState>,
    /// Units of each buyer of a sale with a limit; a buyer that is missing has none.
    pub units: HashMap<(SaleId, UserId), u32>,
    /// The stored decisions, of those orders that were looked up.
    pub decisions: HashMap<OrderKey, Decision>,
    /// What is kept of archived orders, likewise.
    pub archived: HashMap<OrderKey, ArchivedOrder>,
    /// The tokens of those users of the orders whose id was replaced: their orders are the token's.
    pub erased: HashMap<(SaleId, UserId), UserId>,
}

/// What becomes of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The decision, which is final.
    Decided {
        /// The decision.
        decision: Decision,
        /// It is to be stored; otherwise it was stored before.
        is_new: bool,
    },
    /// The order id stands for another user or quantity in this sale. The first decision stands.
    Conflict,
    /// There is no such sale.
    UnknownSale,
    /// It has no decision yet, and nothing is stored.
    Undecided {
        /// Why.
        until: Until,
        /// The order's time, which it takes along.
        submitted_at: DateTime<Utc>,
    },
}

/// What an order waits for before it can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// It would be created, but the sale wants its user verified first.
    Verified,
    /// The sale's orders are held, or its ledger is not accepted.
    Resumed,
}

impl Answer {
    /// Whether the order has its units.
    pub fn is_granted(&self) -> bool {
        matches!(self, Self::Decided { decision, .. } if decision.outcome == Outcome::Created)
    }

    /// The decision, if it is new.
    pub fn new_decision(&self) -> Option<&Decision> {
        match self {
            Self::Decided { decision, is_new: true } => Some(decision),
            _ => None,
        }
    }
}

impl State {
    /// Decides one order. The orders of a sale are to come in the order of their queue.
    pub fn decide(&mut self, candidate: &Candidate) -> Answer {
        let Candidate { order, submitted_at, eligibility } = candidate;
        let asked = order;
        let order = &*self.as_stored(asked);
        let key = order.key();
        if let Some(decision) = self.decisions.get(&key) {
            // One that is about to be replaced may have the user's own id yet.
            return if decision.order == *order || decision.order == *asked {
                Answer::Decided { decision: decision.clone(), is_new: false }
            } else {
                Answer::Conflict
            };
        }
        let Some(state) = self.sales.get(&order.sale_id) else { return Answer::UnknownSale };
        if let Some(archived) = self.archived.get(&key) {
            let repeated = archived.repeated_by(order, state);
            return repeated
                .map_or(Answer::Conflict, |decision| Answer::Decided { decision, is_new: false });
        }
        let submitted_at = submitted_at.unwrap_or(self.now).min(self.now).trunc_subsecs(3);
        let outcome = match self.outcome(order, state, submitted_at, *eligibility) {
            Ok(outcome) => outcome,
            Err(until) => return Answer::Undecided { until, submitted_at },
        };
        let decision = Decision {
            order: order.clone(),
            outcome,
            submitted_at,
            decided_at: self.now,
            version: state.version,
            sold: state.sold,
        };
        if outcome == Outcome::Created {
            self.sell(order);
        }
        self.decisions.insert(key, decision.clone());
        Answer::Decided { decision, is_new: true }
    }

    /// The order as it is stored: with its user's token if the user's id was replaced.
    fn as_stored<'a>(&self, order: &'a Order) -> Cow<'a, Order> {
        if self.erased.is_empty() {
            return Cow::Borrowed(order);
        }
        let token = self.erased.get(&(order.sale_id.clone(), order.user_id.clone()));
        token.map_or(Cow::Borrowed(order), |token| {
            Cow::Owned(Order { user_id: token.clone(), ..order.clone() })
        })
    }

    /// The outcome of an order that has none yet, or what it is to wait for.
    fn outcome(
        &self,
        order: &Order,
        state: &SaleState,
        submitted_at: DateTime<Utc>,
        eligibility: Eligibility,
    ) -> Result<Outcome, Until> {
        let sale = &state.sale;
        let aged_from = state.aged_from(submitted_at, self.max_age);
        let age = self.now.signed_duration_since(aged_from).to_std().unwrap_or_default();
        let reason = if state.paused.is_some_and(PauseMode::holds) {
            return Err(Until::Resumed);
        } else if age > self.max_age {
            Reason::Expired
        } else if eligibility == Eligibility::Denied {
            Reason::UserDenied
        } else if sale.opens_at.is_some_and(|opens| submitted_at < opens) {
            Reason::NotOpen
        } else if sale.closes_at.is_some_and(|closes| submitted_at >= closes) {
            Reason::Closed
        } else if state.archived {
            // Units and buyers have left with the decisions, so nothing can be sold by them. That the order is too old
            // was known when it was archived, with the `max_age` of that command; since then the sale may have been
            // held.
            Reason::Expired
        } else if state.paused == Some(PauseMode::Refuse) {
            Reason::Paused
        } else if sale.per_user_limit.is_some_and(|limit| self.units_with(order) > limit.into()) {
            Reason::PurchaseLimit
        } else if state.remaining() < order.quantity.get() {
            return Ok(Outcome::SoldOut);
        } else if sale.verification && eligibility == Eligibility::Unchecked {
            return Err(Until::Verified);
        } else {
            return Ok(Outcome::Created);
        };
        Ok(Outcome::Rejected(reason))
    }

    /// Units that the buyer of `order` would have with it.
    fn units_with(&self, order: &Order) -> u64 {
        let buyer = (order.sale_id.clone(), order.user_id.clone());
        let held = self.units.get(&buyer).copied().unwrap_or(0);
        u64::from(held) + u64::from(order.quantity.get())
    }

    fn sell(&mut self, order: &Order) {
        let Some(state) = self.sales.get_mut(&order.sale_id) else { return };
        state.sold += order.quantity.get();
        if state.remaining() == 0 {
            state.sold_out_at = Some(self.now);
        }
        if state.sale.per_user_limit.is_some() {
            let buyer = (order.sale_id.clone(), order.user_id.clone());
            *self.units.entry(buyer).or_default() += order.quantity.get();
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::order::{OrderId, Quantity};
    use crate::domain::sale::Sale;

    /// What becomes of an order of a unit of the sale `s` that has one, submitted before `now` by so many
    /// milliseconds.
    fn outcome(age_ms: i64, max_age: Duration) -> Option<Outcome> {
        let id = SaleId::parse("s").unwrap();
        let (stock, per_user_limit, opens_at, closes_at) = (1, None, None, None);
        let sale = Sale {
            id: id.clone(),
            stock,
            per_user_limit,
            opens_at,
            closes_at,
            verification: false,
        };
        let now = DateTime::from_timestamp_millis(1_795_680_000_123).unwrap();
        let mut state = State {
            now,
            max_age,
            sales: [(id.clone(), SaleState::opened(sale))].into(),
            ..State::default()
        };
        let order = Order {
            id: OrderId::parse("o").unwrap(),
            sale_id: id,
            user_id: UserId::parse("u").unwrap(),
            quantity: Quantity::new(1).unwrap(),
        };
        let submitted_at = Some(now - TimeDelta::milliseconds(age_ms));
        let candidate = Candidate { order, submitted_at, eligibility: Eligibility::Unchecked };
        state.decide(&candidate).new_decision().map(|decision| decision.outcome)
    }

    #[test]
    fn an_archived_sale_sells_nothing_whatever_the_age_of_an_order() {
        let id = SaleId::parse("s").unwrap();
        let now = DateTime::from_timestamp_millis(1_795_680_000_123).unwrap();
        let at = |seconds| now - TimeDelta::seconds(seconds);
        let (opens_at, closes_at) = (None, Some(at(60)));
        let sale = Sale {
            id: id.clone(),
            stock: 9,
            per_user_limit: Some(2),
            opens_at,
            closes_at,
            verification: true,
        };
        let mut sold = SaleState { archived: true, ..SaleState::opened(sale) };
        for mode in [Some(PauseMode::Hold), None, Some(PauseMode::Refuse)] {
            sold.pause(mode, at(1));
            let sales = [(id.clone(), sold.clone())].into();
            let mut state =
                State { now, max_age: Duration::from_hours(1), sales, ..State::default() };
            let mut outcome = |order: &str, seconds, quantity| {
                let order = Order {
                    id: OrderId::parse(order).unwrap(),
                    sale_id: id.clone(),
                    user_id: UserId::parse("u").unwrap(),
                    quantity: Quantity::new(quantity).unwrap(),
                };
                let (submitted_at, eligibility) = (Some(at(seconds)), Eligibility::Unchecked);
                let answer = state.decide(&Candidate { order, submitted_at, eligibility });
                answer.new_decision().map(|decision| decision.outcome)
            };
            let held = mode == Some(PauseMode::Hold);
            let rejected = |reason| (!held).then_some(Outcome::Rejected(reason));
            for quantity in [1, 3, 10] {
                let id = |when| format!("{when}-{quantity}");
                assert_eq!(outcome(&id("before"), 61, quantity), rejected(Reason::Expired));
                assert_eq!(outcome(&id("after"), 60, quantity), rejected(Reason::Closed));
            }
        }
    }

    #[test]
    fn an_order_expires_a_millisecond_after_its_greatest_age() {
        let (max_age, expired) = (Duration::from_secs(1), Outcome::Rejected(Reason::Expired));
        assert_eq!(outcome(1000, max_age), Some(Outcome::Created));
        assert_eq!(outcome(1001, max_age), Some(expired));
    }
}
