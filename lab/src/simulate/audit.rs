//! The auditor: checks the invariants from what was posted, committed and published. It knows nothing of the
//! worker and of the rule, and draws no randomness.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use floodgate::domain::decision::{Decision, Outcome, Reason};
use floodgate::domain::event::Event;
use floodgate::domain::order::{OrderKey, SaleId, UserId};
use floodgate::domain::sale::{PauseMode, SaleState};

use super::broker::Dead;
use super::ledger::Committed;
use super::plan::{OrderPlan, UNDECIDABLE};
use super::users::Users;

/// An element as it was posted.
#[derive(Debug, Clone)]
pub(super) struct Posted {
    pub at: DateTime<Utc>,
    /// Its text in the message.
    pub text: String,
    /// Nothing, if it is no intent.
    pub order: Option<OrderPlan>,
    /// Its time, if it says one.
    pub submitted_at: Option<DateTime<Utc>>,
}

/// All there is to know of a simulation that is quiet.
pub(super) struct Evidence<'a> {
    pub posted: &'a [Posted],
    pub history: &'a [Committed],
    pub sales: &'a [SaleState],
    pub dead: &'a [Dead],
    pub events: &'a [Event],
    pub users: &'a Users,
    pub max_age: TimeDelta,
    /// One worker, and no more, has decided.
    pub is_one_worker: bool,
}

/// What does not hold.
pub(super) fn audit(evidence: &Evidence<'_>) -> Vec<String> {
    let mut books =
        Books { evidence, sales: BTreeMap::new(), decided: BTreeMap::new(), wrong: Vec::new() };
    for committed in evidence.history {
        match committed {
            Committed::Sale(state) => books.changed(state),
            Committed::Batch(decisions) => {
                let mut turns: Vec<&Decision> = decisions.iter().collect();
                // What a creation changes is seen after it.
                turns.sort_by_key(|decision| (decision.sold, decision.outcome == Outcome::Created));
                for decision in turns {
                    books.decided(decision);
                }
            }
        }
    }
    books.final_state();
    books.every_element();
    books.events();
    if evidence.is_one_worker {
        books.queue_order();
    }
    books.wrong
}

/// The auditor's own books.
struct Books<'a> {
    evidence: &'a Evidence<'a>,
    sales: BTreeMap<SaleId, Sale>,
    decided: BTreeMap<OrderKey, &'a Decision>,
    wrong: Vec<String>,
}

#[derive(Default)]
struct Sale {
    /// By version.
    definitions: BTreeMap<u32, SaleState>,
    sold: u32,
    /// Units sold after each creation.
    counters: BTreeSet<u32>,
    /// What buyers got, each with the units sold before it.
    bought: BTreeMap<UserId, Vec<(u32, u32)>>,
}

impl<'a> Books<'a> {
    fn wrong(&mut self, invariant: &str, what: impl std::fmt::Display) {
        self.wrong.push(format!("{invariant}: {what}"));
    }

    fn changed(&mut self, state: &SaleState) {
        if state.paused == Some(PauseMode::Restored) {
            // No world loses what it has committed.
            self.wrong("I3", format!("{} is held as if its ledger was restored", state.sale.id));
        }
        let sale = self.sales.entry(state.sale.id.clone()).or_default();
        sale.counters.insert(sale.sold);
        sale.definitions.insert(state.version, state.clone());
    }

    fn decided(&mut self, decision: &'a Decision) {
        let key = decision.order.key();
        if self.decided.insert(key.clone(), decision).is_some() {
            self.wrong("I4", format!("{key} is decided twice"));
        }
        let Some(sale) = self.sales.get_mut(&key.sale_id) else {
            return self.wrong("I3", format!("{key} is decided in no sale"));
        };
        let order = &decision.order;
        let quantity = order.quantity.get();
        let Some(state) = sale.definitions.get(&decision.version).cloned() else {
            return self.wrong("I3", format!("{key} saw version {}", decision.version));
        };
        let bought = sale.bought.entry(order.user_id.clone()).or_default();
        let held: u32 = bought
            .iter()
            .filter(|(before, _)| *before < decision.sold)
            .map(|(_, units)| units)
            .sum();
        let left = state.sale.stock.checked_sub(decision.sold);
        let has_seen = sale.counters.contains(&decision.sold);
        if decision.outcome == Outcome::Created {
            let before = sale.sold;
            sale.sold += quantity;
            sale.counters.insert(sale.sold);
            bought.push((decision.sold, quantity));
            if decision.sold != before {
                self.wrong(
                    "I2",
                    format!("{key} was created after {} units, not {before}", decision.sold),
                );
            }
        } else if !has_seen {
            self.wrong("I3", format!("{key} saw {} units sold, which never were", decision.sold));
        }
        let Some(left) = left else {
            return self
                .wrong("I2", format!("{key}: {} of {} are sold", decision.sold, state.sale.stock));
        };
        self.right_outcome(decision, &state, left, held);
        self.right_time(decision);
    }

    fn right_outcome(&mut self, decision: &Decision, state: &SaleState, left: u32, held: u32) {
        let (key, sale) = (decision.order.key(), &state.sale);
        let (quantity, at) = (decision.order.quantity.get(), decision.submitted_at);
        let user = &decision.order.user_id;
        let is_over = sale.per_user_limit.is_some_and(|limit| held + quantity > limit);
        let is_early = sale.opens_at.is_some_and(|opens| at < opens);
        let is_late = sale.closes_at.is_some_and(|closes| at >= closes);
        let max_age = self.evidence.max_age;
        let was_fresh_when_held = state.held_from.is_some_and(|from| from - at <= max_age);
        let is_old = decision.decided_at - at > max_age
            && !(was_fresh_when_held
                && state.held_until.is_some_and(|until| decision.decided_at - until <= max_age));
        let refuses = state.paused == Some(PauseMode::Refuse);
        if state.paused == Some(PauseMode::Hold) {
            self.wrong("pause", format!("{key} was decided while its sale was held"));
        }
        let (invariant, is_right) = match decision.outcome {
            Outcome::Created => {
                let unchecked =
                    sale.verification && !self.evidence.users.has_allowed(&key.sale_id, user);
                if unchecked {
                    self.wrong("verification", format!("{key} was created unchecked"));
                }
                ("I2, I6", {
                    quantity <= left && !(is_over || is_early || is_late || is_old || refuses)
                })
            }
            Outcome::SoldOut => ("I3", quantity > left && !refuses),
            Outcome::Rejected(Reason::PurchaseLimit) => ("I3", is_over && !refuses),
            Outcome::Rejected(Reason::Paused) => ("pause", refuses),
            Outcome::Rejected(Reason::UserDenied) => ("verification", Users::denies(user)),
            Outcome::Rejected(Reason::NotOpen) => ("window", is_early),
            Outcome::Rejected(Reason::Closed) => ("window", is_late),
            Outcome::Rejected(Reason::Expired) => ("expiry", is_old),
        };
        if !is_right {
            self.wrong(
                invariant,
                format!(
                    "{key} is {:?} with {left} left, {held} held: {decision:?}",
                    decision.outcome
                ),
            );
        }
    }

    /// The time of an order is what its message says, but no later than its decision; or the ledger's.
    fn right_time(&mut self, decision: &Decision) {
        let key = decision.order.key();
        let possible =
            self.evidence.posted.iter().filter(|posted| is(posted, decision)).any(|posted| {
                match posted.submitted_at {
                    Some(at) => {
                        let latest = at.min(decision.decided_at);
                        // Deferred, it takes along the ledger's time.
                        decision.submitted_at == latest
                            || (at > posted.at
                                && (posted.at..=latest).contains(&decision.submitted_at))
                    }
                    None => (posted.at..=decision.decided_at).contains(&decision.submitted_at),
                }
            });
        if !possible {
            self.wrong("time", format!("{key} has a time that it can't have: {decision:?}"));
        }
    }

    fn final_state(&mut self) {
        for state in self.evidence.sales {
            let sold = self.sales.get(&state.sale.id).map_or(0, |sale| sale.sold);
            let id = &state.sale.id;
            if state.sold != sold {
                self.wrong("I2", format!("sale {id} says {} sold, its orders {sold}", state.sold));
            }
            if sold > state.sale.stock {
                self.wrong("I2", format!("sale {id} has sold {sold} of {}", state.sale.stock));
            }
        }
    }

    /// I1: everything posted has a decision, or is a dead letter with its reason.
    fn every_element(&mut self) {
        for posted in self.evidence.posted {
            let expected = match &posted.order {
                None => "malformed",
                Some(order)
                    if !self
                        .evidence
                        .sales
                        .iter()
                        .any(|state| state.sale.id.as_str() == order.sale_id) =>
                {
                    "unknown_sale"
                }
                Some(order)
                    if self.decided.iter().any(|(key, decision)| {
                        key.sale_id.as_str() == order.sale_id
                            && key.order_id.as_str() == order.order_id
                            && is(posted, decision)
                    }) =>
                {
                    continue;
                }
                Some(order) if order.user_id == UNDECIDABLE => "undecidable",
                Some(_) => "order_id_conflict",
            };
            let is_decided = self.decided.keys().any(|key| {
                posted.order.as_ref().is_some_and(|order| {
                    key.sale_id.as_str() == order.sale_id && key.order_id.as_str() == order.order_id
                })
            });
            let found = self.evidence.dead.iter().any(|dead| {
                let is_it = dead.body == posted.text
                    || posted.order.as_ref().is_some_and(|order| names(&dead.body, order));
                let reason = dead.reason.as_str();
                let fits = match expected {
                    "malformed" => {
                        !["unknown_sale", "order_id_conflict", "undecidable"].contains(&reason)
                    }
                    // Its id may be taken by then.
                    "undecidable" => {
                        reason == expected || (reason == "order_id_conflict" && is_decided)
                    }
                    "order_id_conflict" => reason == expected && is_decided,
                    _ => reason == expected,
                };
                is_it && fits
            });
            if !found {
                self.wrong(
                    "I1",
                    format!("{} has no decision and is no dead letter ({expected})", posted.text),
                );
            }
        }
    }

    /// I5: the events, without repeats, are the decisions.
    fn events(&mut self) {
        let mut events: BTreeMap<&str, &Event> = BTreeMap::new();
        for event in self.evidence.events.iter().filter(|event| event.id.starts_with("order:")) {
            if let Some(other) = events.insert(&event.id, event)
                && other != event
            {
                self.wrong("I5", format!("two events called {} differ", event.id));
            }
        }
        let decided: Vec<Event> =
            self.decided.values().map(|decision| Event::of(decision)).collect();
        for event in &decided {
            if events.remove(event.id.as_str()) != Some(event) {
                self.wrong("I5", format!("{} is decided and was not published", event.id));
            }
        }
        for id in events.keys() {
            self.wrong("I5", format!("{id} was published and is not decided"));
        }
        for state in self.evidence.sales.iter().filter(|state| state.sold_out_at.is_some()) {
            let Some(sale) = self.sales.get(&state.sale.id) else { continue };
            // It may have been closed, or its verification switched, since.
            let versions =
                sale.definitions.iter().filter(|(_, of)| of.sale.stock == state.sale.stock);
            let mut ids =
                versions.map(|(version, _)| format!("sale:{}:sold_out:{version}", state.sale.id));
            if !ids.any(|id| self.evidence.events.iter().any(|event| event.id == id)) {
                self.wrong.push(format!(
                    "I5: sale {} is sold out and that was not published",
                    state.sale.id
                ));
            }
        }
    }

    /// I7: one worker decides the orders of a sale, if it never verifies nor holds them, in queue order.
    fn queue_order(&mut self) {
        let mut latest: BTreeMap<&str, u32> = BTreeMap::new();
        let mut met = BTreeSet::new();
        for posted in self.evidence.posted {
            let Some(order) = &posted.order else { continue };
            let Some(sale) = self.sales.iter().find(|(id, _)| id.as_str() == order.sale_id) else {
                continue;
            };
            let reorders = sale
                .1
                .definitions
                .values()
                .any(|state| state.sale.verification || state.paused == Some(PauseMode::Hold));
            let found = self.decided.iter().find(|(key, decision)| {
                key.sale_id.as_str() == order.sale_id
                    && key.order_id.as_str() == order.order_id
                    && is(posted, decision)
            });
            let Some((key, decision)) = found else { continue };
            if reorders || !met.insert(key.clone()) {
                continue;
            }
            let before = latest.insert(&order.sale_id, decision.sold);
            if before.is_some_and(|before| before > decision.sold) {
                let what = format!("{key} was decided before an order that was posted earlier");
                self.wrong.push(format!("I7: {what}"));
            }
        }
    }
}

/// Whether the decision may be that of the element.
fn is(posted: &Posted, decision: &Decision) -> bool {
    posted.order.as_ref().is_some_and(|plan| {
        let order = &decision.order;
        plan.order_id == order.id.as_str()
            && plan.sale_id == order.sale_id.as_str()
            && plan.user_id == order.user_id.as_str()
            && plan.quantity == order.quantity.get()
    })
}

/// Whether a body is that of the order, perhaps with the ledger's time written in.
fn names(body: &str, order: &OrderPlan) -> bool {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(body) else { return false };
    value["order_id"] == order.order_id.as_str()
        && value["sale_id"] == order.sale_id.as_str()
        && value["user_id"] == order.user_id.as_str()
        && value["quantity"] == order.quantity
}
