//! Both ledgers and the inventory against one model: the rule, applied order by order to one state, without
//! batches, hints, lookups, locks and restarts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use floodgate::domain::decision::Hint;
use floodgate::domain::order::{AdjustmentId, Candidate, Eligibility, Quantity};
use floodgate::domain::rules::{Answer, State};
use floodgate::domain::sale::{PauseMode, Sale, SaleState};
use floodgate::inventory::Amendment;
use floodgate::ledger::{Books, Change, Ledger, Proposed, SqliteLedger};
use floodgate::metrics::Metrics;
use floodgate::sqlite::SqliteFile;
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::harness::{Stage, order, sale, sale_id};

/// Orders are seconds old, or older than this.
const MAX_AGE: Duration = Duration::from_hours(1);
const SALES: [&str; 2] = ["a", "b"];

/// The model.
#[derive(Debug, Clone)]
struct Model {
    begun: DateTime<Utc>,
    state: State,
    adjustments: u32,
    /// What the latest step gave.
    answers: Vec<Answer>,
}

/// A step.
#[derive(Debug, Clone)]
enum Step {
    Decide {
        orders: Vec<Ask>,
        redelivered: bool,
    },
    Restock {
        sale: usize,
        units: u32,
    },
    Close {
        sale: usize,
    },
    Verify {
        sale: usize,
        on: bool,
    },
    Pause {
        sale: usize,
        mode: Option<PauseMode>,
        /// That long ago.
        age_s: i64,
    },
    /// Redis loses everything.
    Forget,
    /// The processes with the ledgers end, and others begin.
    Reopen,
}

/// An order, in small numbers, so that orders meet each other often.
#[derive(Debug, Clone)]
struct Ask {
    id: u8,
    sale: usize,
    user: u8,
    quantity: u8,
    /// Older than accepted, if so.
    age_s: Option<i64>,
    eligibility: Eligibility,
}

impl Ask {
    fn candidate(&self, begun: DateTime<Utc>) -> Candidate {
        let user = format!("u{}", self.user);
        Candidate {
            order: order(&format!("o{}", self.id), SALES[self.sale], &user, self.quantity.into()),
            submitted_at: self.age_s.map(|age| begun - TimeDelta::seconds(age)),
            eligibility: self.eligibility,
        }
    }
}

fn asks() -> impl Strategy<Value = Ask> {
    let eligibility = prop_oneof![
        3 => Just(Eligibility::Unchecked),
        2 => Just(Eligibility::Eligible),
        1 => Just(Eligibility::Denied),
    ];
    let age_s = prop_oneof![2 => Just(None), 3 => Just(Some(5)), 1 => Just(Some(90_000))];
    let numbers = (0..14_u8, 0..SALES.len(), 0..4_u8, 1..4_u8);
    (numbers, age_s, eligibility).prop_map(|((id, sale, user, quantity), age_s, eligibility)| Ask {
        id,
        sale,
        user,
        quantity,
        age_s,
        eligibility,
    })
}

fn pauses() -> impl Strategy<Value = Step> {
    let modes = vec![None, Some(PauseMode::Refuse), Some(PauseMode::Hold)];
    // Before orders that are too old, or after.
    let ages = vec![100_000, 60];
    (0..SALES.len(), prop::sample::select(modes), prop::sample::select(ages))
        .prop_map(|(sale, mode, age_s)| Step::Pause { sale, mode, age_s })
}

impl Model {
    fn sale(&mut self, sale: usize) -> &mut SaleState {
        self.state.sales.get_mut(&sale_id(SALES[sale])).expect("a sale")
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let sales = (0..10_u32, prop::option::of(1..4_u32), any::<bool>());
        sales
            .prop_map(|(stock, limit, verification)| {
                let sales = SALES.map(|id| {
                    let sale = Sale { per_user_limit: limit, verification, ..sale(id, stock) };
                    (sale_id(id), SaleState::opened(sale))
                });
                let begun = Utc::now().trunc_subsecs(3);
                let state = State {
                    now: begun,
                    max_age: MAX_AGE,
                    sales: HashMap::from(sales),
                    ..State::default()
                };
                Self { begun, state, adjustments: 0, answers: Vec::new() }
            })
            .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let sale = || 0..SALES.len();
        let decide = (prop::collection::vec(asks(), 1..8), any::<bool>())
            .prop_map(|(orders, redelivered)| Step::Decide { orders, redelivered });
        Union::new_weighted(vec![
            (12, decide.boxed()),
            (2, (sale(), 1..4_u32).prop_map(|(sale, units)| Step::Restock { sale, units }).boxed()),
            (1, sale().prop_map(|sale| Step::Close { sale }).boxed()),
            (2, (sale(), any::<bool>()).prop_map(|(sale, on)| Step::Verify { sale, on }).boxed()),
            (3, pauses().boxed()),
            (1, Just(Step::Forget).boxed()),
            (1, Just(Step::Reopen).boxed()),
        ])
        .boxed()
    }

    fn apply(mut model: Self, step: &Step) -> Self {
        model.answers.clear();
        match step {
            Step::Decide { orders, .. } => {
                for ask in orders {
                    let answer = model.state.decide(&ask.candidate(model.begun));
                    model.answers.push(answer);
                }
            }
            Step::Restock { sale, units } => {
                model.adjustments += 1;
                let units = Quantity::new(i64::from(*units)).expect("units");
                model.sale(*sale).restock(units).expect("stock");
            }
            Step::Close { sale } => {
                // Before every order but those that are too old.
                let at = model.begun - TimeDelta::minutes(30);
                model.sale(*sale).close(at);
            }
            Step::Verify { sale, on } => drop(model.sale(*sale).set_verification(*on)),
            Step::Pause { sale, mode, age_s } => {
                let at = model.begun - TimeDelta::seconds(*age_s);
                model.sale(*sale).pause(*mode, at);
            }
            Step::Forget | Step::Reopen => {}
        }
        model
    }
}

/// What is tested.
struct System {
    runtime: Runtime,
    stage: Stage,
    folder: TempDir,
    sqlite: SqliteLedger,
    postgres: Arc<dyn Ledger>,
    books: Arc<dyn Books>,
}

async fn sqlite(folder: &TempDir) -> SqliteLedger {
    let file = SqliteFile::open(folder.path().join("f.db")).await.expect("a file");
    SqliteLedger::new(file, floodgate::clock::system(), &Metrics::new())
}

impl System {
    /// Decides a batch in both ledgers, PostgreSQL's with the hints of Redis, which is told what was wrong.
    async fn decide(&self, candidates: &[Candidate], redelivered: bool) -> [Vec<Answer>; 2] {
        let inventory = self.stage.inventory.as_ref();
        let orders: Vec<&Candidate> = candidates.iter().collect();
        let mut hints = inventory.propose(&orders, MAX_AGE).await.expect("hints").hints;
        if hints.contains(&None) {
            let states = self.postgres.sales(None).await.expect("sales");
            inventory.prime(&states).await.expect("prime");
            hints = inventory.propose(&orders, MAX_AGE).await.expect("hints").hints;
        }
        let propose = |hints: &[Option<Hint>]| -> Vec<Proposed<'_>> {
            let proposed = candidates.iter().zip(hints.to_vec());
            proposed
                .map(|(candidate, hint)| Proposed { candidate, hint, redelivered, watermark: None })
                .collect()
        };
        let decided = self.postgres.decide(&propose(&hints), MAX_AGE).await.expect("PostgreSQL");
        for state in decided.sales.values() {
            let answered = candidates.iter().zip(&hints).zip(&decided.answers);
            let wrong = answered.filter(|((candidate, hint), answer)| {
                candidate.order.sale_id == state.sale.id
                    && (**hint == Some(Hint::Granted)) != answer.is_granted()
            });
            let orders = wrong
                .map(|((candidate, _), answer)| (candidate.order.clone(), answer.is_granted()));
            let amendment = Amendment { orders: orders.collect(), ..Amendment::of(state.clone()) };
            inventory.amend(&[amendment]).await.expect("amend");
        }
        let none = vec![None; candidates.len()];
        let in_file = self.sqlite.decide(&propose(&none), MAX_AGE).await.expect("SQLite");
        [decided.answers, in_file.answers]
    }

    async fn change(&self, sale: usize, change: &Change) {
        for ledger in [self.postgres.as_ref(), &self.sqlite] {
            ledger.change(&sale_id(SALES[sale]), change).await.expect("changed");
        }
    }
}

/// An answer without the times, which each ledger takes from its own clock.
fn timeless(answer: &Answer) -> String {
    match answer {
        Answer::Decided { decision, is_new } => format!(
            "{} {:?} at version {} and {} sold, new: {is_new}",
            decision.order.key(),
            decision.outcome,
            decision.version,
            decision.sold
        ),
        Answer::Undecided { until, .. } => format!("until {until:?}"),
        other => format!("{other:?}"),
    }
}

impl StateMachineTest for System {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(model: &Model) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let (stage, in_file, books) = runtime.block_on(async {
            let stage = Stage::new("machine").await;
            let in_file = sqlite(&folder).await;
            let sales = SALES.map(|id| model.state.sales[&sale_id(id)].sale.clone());
            for ledger in [stage.ledger.as_ref(), &in_file] {
                ledger.open(&sales).await.expect("open");
            }
            let books = stage.deployment.app.audited().await.expect("a ledger").books;
            (stage, in_file, books)
        });
        let postgres = stage.ledger.clone();
        Self { runtime, stage, folder, sqlite: in_file, postgres, books }
    }

    fn apply(mut system: Self, model: &Model, step: Step) -> Self {
        let runtime = std::mem::replace(&mut system.runtime, Runtime::new().expect("a runtime"));
        runtime.block_on(async {
            match step {
                Step::Decide { orders, redelivered } => {
                    let candidates: Vec<_> =
                        orders.iter().map(|ask| ask.candidate(model.begun)).collect();
                    let expected: Vec<_> = model.answers.iter().map(timeless).collect();
                    for answers in system.decide(&candidates, redelivered).await {
                        assert_eq!(answers.iter().map(timeless).collect::<Vec<_>>(), expected);
                    }
                }
                Step::Restock { sale, units } => {
                    let id = format!("r{}", model.adjustments);
                    let adjustment_id = AdjustmentId::parse(id).expect("an id");
                    let units = Quantity::new(i64::from(units)).expect("units");
                    let change = Change::Restock { adjustment_id, units, at: Utc::now() };
                    system.change(sale, &change).await;
                }
                Step::Close { sale } => {
                    let at = model.begun - TimeDelta::minutes(30);
                    system.change(sale, &Change::Close { at }).await;
                }
                Step::Verify { sale, on } => system.change(sale, &Change::Verify { on }).await,
                Step::Pause { sale, mode, age_s } => {
                    let at = model.begun - TimeDelta::seconds(age_s);
                    system.change(sale, &Change::Pause { mode, at }).await;
                }
                Step::Forget => {
                    let sales = SALES.map(|id| sale(id, 1));
                    crate::harness::forget(&system.stage, &sales).await;
                }
                Step::Reopen => {
                    system.sqlite = sqlite(&system.folder).await;
                    system.postgres = system.stage.deployment.app.ledger().await.expect("a ledger");
                }
            }
        });
        system.runtime = runtime;
        system
    }

    fn check_invariants(system: &Self, model: &Model) {
        system.runtime.block_on(async {
            for ledger in [system.postgres.as_ref(), &system.sqlite] {
                for state in ledger.sales(None).await.expect("sales") {
                    let expected = &model.state.sales[&state.sale.id];
                    assert_eq!(
                        (&state.sale, state.sold, state.version, state.sold_out_at.is_some()),
                        (
                            &expected.sale,
                            expected.sold,
                            expected.version,
                            expected.sold_out_at.is_some()
                        )
                    );
                    let pause =
                        |state: &SaleState| (state.paused, state.held_from, state.held_until);
                    assert_eq!(pause(&state), pause(expected));
                }
            }
            let balance = system.sqlite.balance(None).await.expect("the books");
            assert!(balance.discrepancies.is_empty(), "{balance:?}");
            let balance = system.books.balance(None).await.expect("the books");
            assert!(balance.discrepancies.is_empty(), "{balance:?}");
        });
    }

    fn teardown(system: Self, _: Model) {
        let Self { runtime, stage, .. } = system;
        runtime.block_on(stage.remove());
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn both_ledgers_and_the_inventory_follow_one_model(sequential 1..25 => System);
}
