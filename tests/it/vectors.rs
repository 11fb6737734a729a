//! The table of `vectors.json` against the rule, both ledgers, and the script on a real Redis; and
//! random orders, batches and hints against the rule.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use floodgate::domain::decision::Hint;
use floodgate::domain::order::{Candidate, Eligibility, Order};
use floodgate::domain::rules::{Answer, State, Until};
use floodgate::domain::sale::{Sale, SaleState};
use floodgate::inventory::{Amendment, Inventory};
use floodgate::ledger::{Decided, Ledger, Proposed};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde::Deserialize;

use crate::harness::embedded::Embedded;
use crate::harness::{Stage, order, sale, sale_id, unique};

const MAX_AGE: Duration = Duration::from_hours(24);

#[derive(Deserialize)]
struct Table {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    sale: Option<Definition>,
    #[serde(default)]
    before: Vec<Row>,
    orders: Vec<Row>,
    sold: u32,
}

#[derive(Deserialize)]
struct Definition {
    stock: u32,
    limit: Option<u32>,
    opens_s: Option<i64>,
    closes_s: Option<i64>,
    #[serde(default)]
    verification: bool,
}

/// Order id, user, quantity, answer, hints allowed, and what else is given.
#[derive(Deserialize)]
struct Row(String, String, i64, String, String, #[serde(default)] Given);

#[derive(Default, Deserialize)]
struct Given {
    age_s: Option<i64>,
    of: Option<String>,
    sale: Option<String>,
}

fn cases() -> Vec<Case> {
    let table: Table = serde_json::from_str(include_str!("vectors.json")).expect("the table");
    assert!(table.cases.len() > 10);
    table.cases
}

impl Case {
    /// Its sales, with ids that begin with `prefix`: its own, and those of the same form that its orders
    /// name besides.
    fn sales(&self, prefix: &str, now: DateTime<Utc>) -> Vec<Sale> {
        let Some(Definition { stock, limit, opens_s, closes_s, verification }) = &self.sale else {
            return Vec::new();
        };
        let at = |seconds: &Option<i64>| seconds.map(|s| now + TimeDelta::seconds(s));
        let named = self.orders.iter().filter_map(|row| row.5.sale.as_deref());
        [""].into_iter()
            .chain(named)
            .map(|name| Sale {
                per_user_limit: *limit,
                opens_at: at(opens_s),
                closes_at: at(closes_s),
                verification: *verification,
                ..sale(&format!("{prefix}{name}"), *stock)
            })
            .collect()
    }
}

impl Row {
    fn candidate(&self, prefix: &str, now: DateTime<Utc>) -> Candidate {
        let Self(id, user, quantity, _, _, given) = self;
        let sale = format!("{prefix}{}", given.sale.as_deref().unwrap_or_default());
        Candidate {
            order: order(id, &sale, user, *quantity),
            submitted_at: given.age_s.map(|age| now - TimeDelta::seconds(age)),
            eligibility: match given.of.as_deref() {
                None => Eligibility::Unchecked,
                Some("eligible") => Eligibility::Eligible,
                Some("denied") => Eligibility::Denied,
                Some(other) => panic!("{other}?"),
            },
        }
    }
}

fn candidates(rows: &[Row], prefix: &str, now: DateTime<Utc>) -> Vec<Candidate> {
    rows.iter().map(|row| row.candidate(prefix, now)).collect()
}

/// An answer in the words of the table.
fn word(answer: &Answer) -> String {
    match answer {
        Answer::Decided { decision, is_new: true } => decision.outcome.code().to_owned(),
        Answer::Decided { decision, is_new: false } => {
            format!("{} again", decision.outcome.code())
        }
        Answer::Conflict => "conflict".to_owned(),
        Answer::UnknownSale => "unknown_sale".to_owned(),
        Answer::Undecided { until: Until::Verified, .. } => "unchecked".to_owned(),
        Answer::Undecided { until: Until::Resumed, .. } => "held".to_owned(),
    }
}

fn check(case: &Case, rows: &[Row], answers: &[Answer], how: &str) {
    let answers: Vec<String> = answers.iter().map(word).collect();
    let expected: Vec<&str> = rows.iter().map(|row| row.3.as_str()).collect();
    assert_eq!(answers, expected, "{} ({how})", case.name);
}

fn rule(sales: &[Sale], now: DateTime<Utc>) -> State {
    let states = sales.iter().map(|sale| (sale.id.clone(), SaleState::opened(sale.clone())));
    State { now, max_age: MAX_AGE, sales: states.collect(), ..State::default() }
}

#[test]
fn the_rule_gives_the_answers_of_the_table() {
    let now = Utc::now().trunc_subsecs(3);
    for case in cases() {
        let mut state = rule(&case.sales("s", now), now);
        for rows in [&case.before, &case.orders] {
            let answers: Vec<Answer> =
                candidates(rows, "s", now).iter().map(|order| state.decide(order)).collect();
            check(&case, rows, &answers, "rule");
            for decision in answers.iter().filter_map(Answer::new_decision) {
                let sale = &state.sales[&decision.order.sale_id].sale;
                assert!(decision.version == 1 && decision.sold <= sale.stock);
            }
        }
        let sold = state.sales.get(&sale_id("s")).map_or(0, |state| state.sold);
        assert_eq!(sold, case.sold, "{}", case.name);
    }
}

async fn decide(
    ledger: &dyn Ledger,
    candidates: &[Candidate],
    hints: &[Option<Hint>],
    redelivered: bool,
) -> Decided {
    let orders: Vec<_> = candidates
        .iter()
        .zip(hints)
        .map(|(candidate, hint)| Proposed { candidate, hint: *hint, redelivered, watermark: None })
        .collect();
    ledger.decide(&orders, MAX_AGE).await.expect("decided")
}

/// The hint of the order at `place` in the pattern of that number.
fn hint(pattern: usize, place: usize) -> Option<Hint> {
    let alternately = if place.is_multiple_of(2) { Hint::Granted } else { Hint::Refused };
    [None, Some(Hint::Granted), Some(Hint::Refused), Some(alternately)][pattern]
}

/// Every case, under every pattern of hints, each in sales of its own.
async fn on_ledger(ledger: &dyn Ledger) {
    for (number, case) in cases().iter().enumerate() {
        for pattern in 0..4 {
            let prefix = format!("c{number}-{pattern}-");
            let now = Utc::now();
            ledger.open(&case.sales(&prefix, now)).await.expect("open");
            for rows in [&case.before, &case.orders] {
                let orders = candidates(rows, &prefix, now);
                let hints: Vec<_> = (0..orders.len()).map(|place| hint(pattern, place)).collect();
                let answers = decide(ledger, &orders, &hints, pattern == 3).await.answers;
                check(case, rows, &answers, &format!("hints {pattern}"));
            }
            let states = ledger.sales(Some(&[sale_id(&prefix)])).await.expect("sales");
            assert_eq!(states.first().map_or(0, |state| state.sold), case.sold, "{}", case.name);
        }
    }
}

#[tokio::test]
async fn postgres_gives_the_answers_of_the_table_whatever_the_hints() {
    let stage = Stage::new("vectors").await;
    on_ledger(stage.ledger.as_ref()).await;
    stage.remove().await;
}

#[tokio::test]
async fn sqlite_gives_the_answers_of_the_table_whatever_the_hints() {
    on_ledger(Embedded::new().await.ledger.as_ref()).await;
}

/// The hints of a batch that is proposed, each checked against those that its row allows.
async fn proposed(
    inventory: &dyn Inventory,
    case: &Case,
    rows: &[Row],
    orders: &[Candidate],
    how: &str,
) -> Vec<Option<Hint>> {
    let orders: Vec<&Candidate> = orders.iter().collect();
    let hints = inventory.propose(&orders, MAX_AGE).await.expect("hints").hints;
    for (row, hint) in rows.iter().zip(&hints) {
        let allowed = match hint {
            None => row.4.is_empty(),
            Some(Hint::Granted) => row.4.contains('g'),
            Some(Hint::Refused) => row.4.contains('r'),
        };
        assert!(allowed, "{} ({how}): order {} got {hint:?}", case.name, row.0);
    }
    hints
}

/// Every case, with the inventory that has followed it, and with one that has lost everything and was
/// loaded again before the batch.
#[tokio::test]
async fn redis_gives_hints_that_the_table_allows() {
    let stage = Stage::new("vectors").await;
    let (ledger, inventory) = (stage.ledger.as_ref(), stage.inventory.as_ref());
    for (number, case) in cases().iter().enumerate() {
        for loses_all in [false, true] {
            let how = if loses_all { "loaded again" } else { "followed" };
            let prefix = format!("c{number}-{loses_all}-");
            let now = Utc::now();
            let sales = case.sales(&prefix, now);
            ledger.open(&sales).await.expect("open");
            let opened: Vec<_> = sales.iter().cloned().map(SaleState::opened).collect();
            inventory.prime(&opened).await.expect("prime");
            let orders = candidates(&case.before, &prefix, now);
            let hints = proposed(inventory, case, &case.before, &orders, how).await;
            let decided = decide(ledger, &orders, &hints, false).await;
            if loses_all {
                crate::harness::forget(&stage, &sales).await;
                let ids: Vec<_> = sales.iter().map(|sale| sale.id.clone()).collect();
                let states = ledger.sales(Some(&ids)).await.expect("sales");
                inventory.prime(&states).await.expect("prime");
            } else {
                amend(inventory, &orders, &hints, &decided).await;
            }
            let orders = candidates(&case.orders, &prefix, now);
            let hints = proposed(inventory, case, &case.orders, &orders, how).await;
            let answers = decide(ledger, &orders, &hints, false).await.answers;
            check(case, &case.orders, &answers, how);
        }
    }
    stage.remove().await;
}

async fn amend(
    inventory: &dyn Inventory,
    orders: &[Candidate],
    hints: &[Option<Hint>],
    decided: &Decided,
) {
    let wrong = orders.iter().zip(hints).zip(&decided.answers);
    let wrong: Vec<(Order, bool)> = wrong
        .filter(|((_, hint), answer)| (**hint == Some(Hint::Granted)) != answer.is_granted())
        .map(|((candidate, _), answer)| (candidate.order.clone(), answer.is_granted()))
        .collect();
    for state in decided.sales.values() {
        let orders = wrong.iter().filter(|(order, _)| order.sale_id == state.sale.id);
        let orders = orders.cloned().collect();
        let amendment = Amendment { orders, ..Amendment::of(state.clone()) };
        inventory.amend(&[amendment]).await.expect("amend");
    }
}

/// What happens to two sales, in small numbers, so that orders meet each other often.
#[derive(Debug, Clone)]
struct Ask {
    id: u8,
    other_sale: bool,
    user: u8,
    quantity: u8,
    hours: Option<u8>,
    eligibility: Eligibility,
    hint: Option<Hint>,
}

fn asks() -> impl Strategy<Value = Ask> {
    let hint = prop_oneof![Just(None), Just(Some(Hint::Granted)), Just(Some(Hint::Refused))];
    let eligibility = prop_oneof![
        3 => Just(Eligibility::Unchecked),
        2 => Just(Eligibility::Eligible),
        1 => Just(Eligibility::Denied),
    ];
    let hours = prop_oneof![2 => Just(None), 3 => (0..30_u8).prop_map(Some)];
    (0..12_u8, any::<bool>(), 0..4_u8, 1..5_u8, hours, eligibility, hint).prop_map(
        |(id, other_sale, user, quantity, hours, eligibility, hint)| Ask {
            id,
            other_sale,
            user,
            quantity,
            hours,
            eligibility,
            hint,
        },
    )
}

/// Runs random batches through a ledger, whose answers must be those of the rule, applied order by order
/// without any batches, hints or lookups.
fn hold_against_the_rule(runtime: &tokio::runtime::Runtime, ledger: &dyn Ledger, cases: u32) {
    let definition = (0..15_u32, prop::option::of(1..6_u32), any::<bool>(), any::<bool>());
    let batches =
        prop::collection::vec((any::<bool>(), prop::collection::vec(asks(), 1..10)), 1..6);
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let run = |((stock, limit, windowed, verification), batches): (_, Vec<(bool, Vec<Ask>)>)| {
        let name = unique("random");
        let now = Utc::now().trunc_subsecs(3);
        let hours_ago = |hours: i64| Some(now - TimeDelta::hours(hours));
        let sales = ["a", "b"].map(|suffix| Sale {
            per_user_limit: limit,
            opens_at: if windowed { hours_ago(20) } else { None },
            closes_at: if windowed { hours_ago(4) } else { None },
            verification,
            ..sale(&format!("{name}-{suffix}"), stock)
        });
        let mut model = rule(&sales, now);
        runtime.block_on(async {
            ledger.open(&sales).await.expect("open");
            for (redelivered, asks) in &batches {
                let orders: Vec<Candidate> = asks
                    .iter()
                    .map(|ask| Candidate {
                        order: order(
                            &format!("o-{}", ask.id),
                            sales[usize::from(ask.other_sale)].id.as_str(),
                            &format!("u-{}", ask.user),
                            ask.quantity.into(),
                        ),
                        // Half an hour from every limit, so that the ledger's clock decides alike.
                        submitted_at: ask.hours.map(|hours| {
                            now - TimeDelta::hours(hours.into()) - TimeDelta::minutes(30)
                        }),
                        eligibility: ask.eligibility,
                    })
                    .collect();
                let hints: Vec<_> = asks.iter().map(|ask| ask.hint).collect();
                let decided = decide(ledger, &orders, &hints, *redelivered).await;
                let answers: Vec<String> = decided.answers.iter().map(word).collect();
                let expected: Vec<String> =
                    orders.iter().map(|order| word(&model.decide(order))).collect();
                assert_eq!(answers, expected, "{orders:?} {hints:?}");
                for (id, state) in &decided.sales {
                    assert_eq!(state.sold, model.sales[id].sold);
                    assert!(state.sold <= stock);
                }
                for (buyer, units) in &decided.units {
                    assert_eq!(*units, model.units.get(buyer).copied().unwrap_or(0));
                    assert!(*units <= limit.expect("a limit"));
                }
            }
            for sale in &sales {
                let stored =
                    ledger.sales(Some(std::slice::from_ref(&sale.id))).await.expect("sales");
                let expected = &model.sales[&sale.id];
                assert_eq!((stored[0].sold, stored[0].version), (expected.sold, 1));
                assert_eq!(stored[0].sold_out_at.is_some(), expected.sold_out_at.is_some());
            }
        });
        Ok(())
    };
    runner.run(&(definition, batches), run).expect("a ledger that follows the rule");
}

#[test]
fn postgres_follows_the_rule_under_random_batches_and_hints() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stage = runtime.block_on(Stage::new("random"));
    hold_against_the_rule(&runtime, stage.ledger.as_ref(), 200);
    runtime.block_on(stage.remove());
}

#[test]
fn sqlite_follows_the_rule_under_random_batches_and_hints() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let embedded = runtime.block_on(Embedded::new());
    hold_against_the_rule(&runtime, embedded.ledger.as_ref(), 200);
}
