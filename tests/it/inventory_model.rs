//! Both inventories against a model of a sale: random orders, quantities, limits, windows, repeats,
//! conflicts, clearances and amendments must be answered as the model answers them.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use floodgate::decision::{Decision, Outcome, Reason};
use floodgate::inventory::{Amendment, Inventory, LocalInventory, Proposal};
use floodgate::order::{Candidate, Clearance, Order};
use floodgate::sale::{Sale, SaleState};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use crate::harness::{Stage, order, sale, time, unique};

/// What happens to a sale, in small numbers, so that orders meet each other often.
#[derive(Debug, Clone)]
enum Step {
    Propose(Vec<Ask>),
    /// The ledger refuses order `id`, if it is known, and says how much is sold.
    Refuse {
        id: u8,
        sold: Option<u32>,
    },
}

#[derive(Debug, Clone)]
struct Ask {
    id: u8,
    user: u8,
    quantity: u8,
    minute: u8,
    clearance: Clearance,
}

struct Model {
    sale: Sale,
    stock: u32,
    decided: HashMap<String, (Order, Outcome)>,
    bought: HashMap<String, u32>,
}

impl Model {
    fn propose(&mut self, Candidate { order, at, clearance }: &Candidate) -> Proposal {
        if let Some((known, outcome)) = self.decided.get(order.id.as_str()) {
            return if known == order {
                Proposal::Decided { outcome: *outcome, fresh: false }
            } else {
                Proposal::Conflict
            };
        }
        let (units, sale) = (order.quantity.get(), &self.sale);
        let bought = self.bought.get(order.user_id.as_str()).copied().unwrap_or(0);
        let outcome = if let Clearance::Refused(reason) = clearance {
            Outcome::Rejected(*reason)
        } else if sale.opens_at.is_some_and(|opens| *at < opens) {
            Outcome::Rejected(Reason::NotOpen)
        } else if sale.closes_at.is_some_and(|closes| *at >= closes) {
            Outcome::Rejected(Reason::Closed)
        } else if sale.per_user_limit.is_some_and(|limit| bought + units > limit) {
            Outcome::Rejected(Reason::PurchaseLimit)
        } else if units > self.stock {
            Outcome::SoldOut
        } else if sale.verification && *clearance == Clearance::Unchecked {
            return Proposal::Unchecked;
        } else {
            self.stock -= units;
            self.bought.insert(order.user_id.to_string(), bought + units);
            Outcome::Created
        };
        self.decided.insert(order.id.to_string(), (order.clone(), outcome));
        Proposal::Decided { outcome, fresh: true }
    }

    /// The amendment that refuses order `id`, and what it does.
    fn refuse(&mut self, id: &str, sold: Option<u32>) -> Option<Amendment> {
        let (order, outcome) = self.decided.get_mut(id)?;
        if *outcome == Outcome::Created {
            self.stock += order.quantity.get();
            *self.bought.get_mut(order.user_id.as_str())? -= order.quantity.get();
        }
        *outcome = Outcome::SoldOut;
        self.stock = self.stock.min(self.sale.stock.saturating_sub(sold.unwrap_or(0)));
        let decided_at = opening();
        let answer = Decision { order: order.clone(), outcome: *outcome, decided_at };
        Some(Amendment { proposed: order.clone(), answer: Some(answer), sold })
    }
}

fn opening() -> DateTime<Utc> {
    time("2026-11-27T08:00:00Z")
}

fn minute(minute: u8) -> DateTime<Utc> {
    opening() + TimeDelta::minutes(minute.into())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let clearance = prop_oneof![
        5 => Just(Clearance::Unchecked),
        3 => Just(Clearance::Given),
        1 => Just(Clearance::Refused(Reason::UserDenied)),
        1 => Just(Clearance::Refused(Reason::Expired)),
    ];
    let ask = (0..12u8, 0..3u8, 1..4u8, 0..10u8, clearance).prop_map(
        |(id, user, quantity, minute, clearance)| Ask { id, user, quantity, minute, clearance },
    );
    let propose = prop::collection::vec(ask, 1..8).prop_map(Step::Propose);
    let refuse =
        (0..12u8, prop::option::of(0..10u32)).prop_map(|(id, sold)| Step::Refuse { id, sold });
    prop::collection::vec(prop_oneof![4 => propose, 1 => refuse], 1..12)
}

fn sales() -> impl Strategy<Value = (u32, Option<u32>, Option<u8>, Option<u8>, bool)> {
    let (limit, opens) = (prop::option::of(1..6u32), prop::option::of(0..4u8));
    (0..15u32, limit, opens, prop::option::of(5..10u8), any::<bool>())
}

async fn run(inventory: &dyn Inventory, sale: Sale, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let id = sale.id.clone();
    let state = SaleState::opened(sale.clone());
    inventory.prime(&[state]).await.expect("prime");
    let mut model =
        Model { stock: sale.stock, sale, decided: HashMap::new(), bought: HashMap::new() };
    for step in steps {
        match step {
            Step::Propose(asks) => {
                let candidates: Vec<Candidate> = asks
                    .iter()
                    .map(|ask| Candidate {
                        order: order(
                            &format!("o-{}", ask.id),
                            id.as_str(),
                            &format!("u-{}", ask.user),
                            ask.quantity.into(),
                        ),
                        at: minute(ask.minute),
                        clearance: ask.clearance,
                    })
                    .collect();
                let expected: Vec<_> =
                    candidates.iter().map(|asked| model.propose(asked)).collect();
                let proposals = inventory.propose(&candidates).await.expect("propose");
                prop_assert_eq!(proposals.answers, expected);
                prop_assert_eq!(proposals.left.get(&id), Some(&model.stock));
            }
            Step::Refuse { id, sold } => {
                if let Some(amendment) = model.refuse(&format!("o-{id}"), sold) {
                    inventory.amend(&[amendment]).await.expect("amend");
                }
            }
        }
        let left = inventory.remaining(std::slice::from_ref(&id)).await.expect("remaining");
        prop_assert_eq!(left[0], Some(model.stock));
    }
    Ok(())
}

/// Holds `inventory` against the model, with random sales and steps.
fn check(runtime: &Runtime, inventory: &dyn Inventory) {
    // A failure prints its smallest input; no file of seeds is kept.
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(
        &(sales(), steps()),
        |((stock, limit, opens, closes, verification), steps)| {
            let sale = Sale {
                per_user_limit: limit,
                opens_at: opens.map(minute),
                closes_at: closes.map(minute),
                verification,
                ..sale(&unique("s"), stock)
            };
            runtime.block_on(run(inventory, sale, steps))
        },
    );
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn the_scripts_answer_as_the_model_does() {
    let runtime = Runtime::new().expect("runtime");
    let stage = runtime.block_on(Stage::new("model"));
    let inventory = stage.inventory.clone();
    check(&runtime, inventory.as_ref());
    runtime.block_on(stage.remove());
}

#[test]
fn the_local_inventory_answers_as_the_model_does() {
    check(&Runtime::new().expect("runtime"), &LocalInventory::new());
}
