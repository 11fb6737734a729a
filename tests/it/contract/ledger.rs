//! The contract of `Ledger`, but for changes of sales: those are in `changes`.

use chrono::{DateTime, TimeDelta, Utc};
use floodgate::decision::{Decision, Outcome, Reason};
use floodgate::ledger::{Ledger, LedgerError, Opening, Proposed, Recorded};
use floodgate::order::{Order, OrderKey};
use floodgate::sale::{Sale, SaleState, SoldOut};

use super::on_every_adapter;
use crate::harness::{order, order_key, orders, sale, sale_id, time};

on_every_adapter!(
    real: |stage: &crate::harness::Stage| stage.ledger.clone();
    embedded: |embedded: &crate::harness::embedded::Embedded| embedded.ledger.clone();
    opening_again_keeps_the_stock,
    sales_are_found_by_id_and_all_together,
    new_proposals_are_stored_as_they_are,
    recording_again_gives_the_same_answers,
    a_known_order_keeps_its_decision_whatever_is_proposed,
    an_order_id_with_other_contents_gets_the_stored_decision,
    created_is_refused_beyond_the_stock_and_smaller_orders_still_fit,
    created_is_refused_beyond_the_limit_per_user,
    created_is_refused_outside_the_window,
    nothing_is_upgraded_to_created,
    a_batch_over_many_sales_is_one_call,
    created_for_an_unknown_sale_is_refused_whole,
    concurrent_batches_never_oversell,
    the_same_batch_at_once_is_recorded_once,
    selling_the_last_unit_is_told_with_its_batch_and_every_repeat,
);

pub(super) type L = std::sync::Arc<dyn Ledger>;

pub(super) fn at() -> DateTime<Utc> {
    time("2026-11-27T08:00:00.123Z")
}

pub(super) fn created(order: Order) -> Decision {
    Decision { order, outcome: Outcome::Created, decided_at: at() }
}

pub(super) async fn record(ledger: &L, decisions: &[Decision]) -> Vec<Recorded> {
    record_at(ledger, decisions, at()).await
}

pub(super) async fn record_at(
    ledger: &L,
    decisions: &[Decision],
    at: DateTime<Utc>,
) -> Vec<Recorded> {
    let proposals: Vec<_> = decisions
        .iter()
        .map(|decision| Proposed { decision, submitted_at: at, repeat: false })
        .collect();
    ledger.record(&proposals).await.expect("recorded").answers
}

async fn decision(ledger: &L, order: &OrderKey) -> Option<Decision> {
    ledger.decisions(std::slice::from_ref(order)).await.expect("ledger").remove(0)
}

pub(super) async fn state(ledger: &L, id: &str) -> SaleState {
    ledger.sales(Some(&[sale_id(id)])).await.expect("sales").remove(0)
}

pub(super) fn outcome(recorded: &Recorded) -> Outcome {
    match recorded {
        Recorded::AsProposed => Outcome::Created,
        Recorded::Instead { decision, .. } => decision.outcome,
    }
}

async fn opening_again_keeps_the_stock(ledger: L) {
    let first = ledger.open(&[sale("s", 2), sale("t", 1)]).await.expect("open");
    assert_eq!(first, [Opening::Opened, Opening::Opened]);
    record(&ledger, &[created(order("o", "s", "u", 1))]).await;
    let again = ledger.open(&[sale("s", 2), sale("t", 9)]).await.expect("open");
    assert_eq!(again[0], Opening::Unchanged);
    assert!(matches!(&again[1], Opening::Differs(state) if state.sale.stock == 1));
    assert_eq!(state(&ledger, "s").await.remaining(), 1);
    assert_eq!(state(&ledger, "t").await.sale.stock, 1);
    let twice = ledger.open(&[sale("v", 5), sale("v", 5)]).await.expect("open");
    assert_eq!(twice, [Opening::Opened, Opening::Unchanged]);
}

async fn sales_are_found_by_id_and_all_together(ledger: L) {
    let full = Sale {
        per_user_limit: Some(2),
        opens_at: Some(time("2026-11-27T08:00:00Z")),
        closes_at: Some(time("2026-11-27T09:00:00Z")),
        ..sale("b", 3)
    };
    ledger.open(&[full.clone(), sale("a", u32::MAX)]).await.expect("open");
    assert_eq!(state(&ledger, "b").await, SaleState::opened(full));
    let none = ledger.sales(Some(&[sale_id("nope")])).await.expect("sales");
    assert!(none.is_empty());
    let all = ledger.sales(None).await.expect("sales");
    assert_eq!(all.iter().map(|state| state.sale.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(all[0].sale.stock, u32::MAX);
}

async fn new_proposals_are_stored_as_they_are(ledger: L) {
    ledger.open(&[sale("s", 10)]).await.expect("open");
    let mut outcomes = vec![Outcome::Created, Outcome::SoldOut];
    outcomes.extend(Reason::ALL.map(Outcome::Rejected));
    let decisions: Vec<Decision> = outcomes
        .iter()
        .enumerate()
        .map(|(n, &outcome)| {
            let order = order(&format!("o-{n}"), "s", "u", 3);
            Decision { order, outcome, decided_at: at() }
        })
        .collect();
    let recorded = record(&ledger, &decisions).await;
    assert!(recorded.iter().all(|recorded| *recorded == Recorded::AsProposed));
    for decision in &decisions {
        let stored = self::decision(&ledger, &decision.order.key()).await;
        assert_eq!(stored.as_ref(), Some(decision));
    }
    assert_eq!(state(&ledger, "s").await.sold, 3);
    let unknown = order_key("s", "never");
    assert_eq!(decision(&ledger, &unknown).await, None);
    let keys = [unknown, decisions[1].order.key(), decisions[0].order.key()];
    let found = ledger.decisions(&keys).await.expect("ledger");
    assert_eq!(found, [None, Some(decisions[1].clone()), Some(decisions[0].clone())]);
}

async fn recording_again_gives_the_same_answers(ledger: L) {
    ledger.open(&[sale("s", 2)]).await.expect("open");
    let decisions: Vec<_> = orders("s", 4).into_iter().map(created).collect();
    let first: Vec<_> = record(&ledger, &decisions).await.iter().map(outcome).collect();
    // With and without the hint, and with a hint that is wrong for one of them.
    let mut hinted = decisions.clone();
    hinted.push(Decision { outcome: Outcome::SoldOut, ..created(order("new", "s", "u", 1)) });
    let hinted: Vec<_> = hinted
        .iter()
        .map(|decision| Proposed { decision, submitted_at: at(), repeat: true })
        .collect();
    let answers = ledger.record(&hinted).await.expect("recorded").answers;
    assert_eq!(first, answers[..4].iter().map(outcome).collect::<Vec<_>>());
    assert_eq!(answers[4], Recorded::AsProposed);
    let again = record(&ledger, &decisions).await;
    assert_eq!(first, again.iter().map(outcome).collect::<Vec<_>>());
    assert!(again.iter().all(|answer| matches!(answer, Recorded::Instead { known: true, .. })));
    assert_eq!(state(&ledger, "s").await.sold, 2);
}

async fn a_known_order_keeps_its_decision_whatever_is_proposed(ledger: L) {
    ledger.open(&[sale("s", 1)]).await.expect("open");
    let first = created(order("o", "s", "u", 1));
    record(&ledger, std::slice::from_ref(&first)).await;
    let other = Decision {
        outcome: Outcome::Rejected(Reason::Expired),
        decided_at: at() + TimeDelta::seconds(9),
        ..first.clone()
    };
    let answers = record(&ledger, &[other]).await;
    assert_eq!(answers, [Recorded::Instead { decision: first, known: true, sold: 1 }]);
}

async fn an_order_id_with_other_contents_gets_the_stored_decision(ledger: L) {
    ledger.open(&[sale("s", 5), sale("t", 7)]).await.expect("open");
    let first = created(order("o", "s", "u", 1));
    record(&ledger, std::slice::from_ref(&first)).await;
    let answers = record(&ledger, &[created(order("o", "t", "v", 2))]).await;
    // What remains is of the sale that was asked for.
    assert_eq!(answers, [Recorded::Instead { decision: first, known: true, sold: 0 }]);
    assert_eq!(state(&ledger, "t").await.sold, 0);
}

async fn created_is_refused_beyond_the_stock_and_smaller_orders_still_fit(ledger: L) {
    ledger.open(&[sale("s", 5)]).await.expect("open");
    let decisions = [
        created(order("a", "s", "u", 3)),
        created(order("b", "s", "u", 3)),
        created(order("c", "s", "u", 2)),
        created(order("d", "s", "u", 1)),
    ];
    let answers = record(&ledger, &decisions).await;
    let outcomes: Vec<_> = answers.iter().map(outcome).collect();
    let (yes, no) = (Outcome::Created, Outcome::SoldOut);
    assert_eq!(outcomes, [yes, no, yes, no]);
    assert!(matches!(answers[1], Recorded::Instead { known: false, sold: 5, .. }));
    assert_eq!(state(&ledger, "s").await.remaining(), 0);
}

async fn created_is_refused_beyond_the_limit_per_user(ledger: L) {
    let limited = Sale { per_user_limit: Some(2), ..sale("s", 10) };
    ledger.open(&[limited]).await.expect("open");
    let decisions = [
        created(order("a", "s", "u", 1)),
        created(order("b", "s", "v", 2)),
        created(order("c", "s", "u", 2)),
        created(order("d", "s", "u", 1)),
    ];
    let outcomes: Vec<_> = record(&ledger, &decisions).await.iter().map(outcome).collect();
    let (yes, no) = (Outcome::Created, Outcome::Rejected(Reason::PurchaseLimit));
    assert_eq!(outcomes, [yes, yes, no, yes]);
    let later = record(&ledger, &[created(order("e", "s", "v", 1))]).await;
    assert_eq!(outcome(&later[0]), no);
    assert_eq!(state(&ledger, "s").await.sold, 4);
}

async fn created_is_refused_outside_the_window(ledger: L) {
    let (opens, closes) = (time("2026-11-27T08:00:00Z"), time("2026-11-27T09:00:00Z"));
    let windowed = Sale { opens_at: Some(opens), closes_at: Some(closes), ..sale("s", 10) };
    ledger.open(&[windowed]).await.expect("open");
    let ms = TimeDelta::milliseconds(1);
    for (id, at, expected) in [
        ("a", opens - ms, Outcome::Rejected(Reason::NotOpen)),
        ("b", opens, Outcome::Created),
        ("c", closes - ms, Outcome::Created),
        ("d", closes, Outcome::Rejected(Reason::Closed)),
    ] {
        let answers = record_at(&ledger, &[created(order(id, "s", "u", 1))], at).await;
        assert_eq!(outcome(&answers[0]), expected, "{id}");
    }
}

async fn nothing_is_upgraded_to_created(ledger: L) {
    ledger.open(&[sale("s", 10)]).await.expect("open");
    let decision = Decision { outcome: Outcome::SoldOut, ..created(order("o", "s", "u", 1)) };
    assert_eq!(record(&ledger, &[decision]).await, [Recorded::AsProposed]);
    assert_eq!(state(&ledger, "s").await.sold, 0);
}

async fn a_batch_over_many_sales_is_one_call(ledger: L) {
    let sales: Vec<Sale> = (0..50).map(|n| sale(&format!("s-{n}"), 1)).collect();
    ledger.open(&sales).await.expect("open");
    let decisions: Vec<Decision> = (0..100)
        .map(|n| created(order(&format!("o-{n}"), &format!("s-{}", n % 50), "u", 1)))
        .collect();
    let answers = record(&ledger, &decisions).await;
    assert!(answers[..50].iter().all(|answer| *answer == Recorded::AsProposed));
    assert!(answers[50..].iter().all(|answer| outcome(answer) == Outcome::SoldOut));
}

async fn created_for_an_unknown_sale_is_refused_whole(ledger: L) {
    ledger.open(&[sale("s", 10)]).await.expect("open");
    let (good, bad) = (created(order("a", "s", "u", 1)), created(order("b", "nope", "u", 1)));
    let proposals =
        [&good, &bad].map(|decision| Proposed { decision, submitted_at: at(), repeat: false });
    let error = ledger.record(&proposals).await.expect_err("no such sale");
    assert!(matches!(error, LedgerError::Permanent(_)), "{error}");
    assert_eq!(decision(&ledger, &good.order.key()).await, None);
    assert_eq!(state(&ledger, "s").await.sold, 0);
}

async fn concurrent_batches_never_oversell(ledger: L) {
    let limited = Sale { per_user_limit: Some(3), ..sale("t", 40) };
    ledger.open(&[sale("s", 50), limited]).await.expect("open");
    let mut calls = tokio::task::JoinSet::new();
    for batch in 0..20 {
        let ledger = ledger.clone();
        calls.spawn(async move {
            // Both sales, in an order that differs from batch to batch.
            let decisions: Vec<Decision> = (0..10)
                .map(|n| {
                    let sale = if (n + batch) % 2 == 0 { "s" } else { "t" };
                    created(order(&format!("o-{batch}-{n}"), sale, &format!("u-{n}"), 1))
                })
                .collect();
            record(&ledger, &decisions).await
        });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("no panic");
    }
    assert_eq!(state(&ledger, "s").await.remaining(), 0);
    assert_eq!(state(&ledger, "t").await.sold, 30, "ten users, three each");
}

async fn the_same_batch_at_once_is_recorded_once(ledger: L) {
    ledger.open(&[sale("s", 30)]).await.expect("open");
    let decisions: Vec<_> = orders("s", 20).into_iter().map(created).collect();
    let mut calls = tokio::task::JoinSet::new();
    for copy in 0..8 {
        let (ledger, mut decisions) = (ledger.clone(), decisions.clone());
        if copy % 2 == 1 {
            decisions.reverse();
        }
        calls.spawn(async move { record(&ledger, &decisions).await });
    }
    let mut stored_as_proposed = 0;
    while let Some(call) = calls.join_next().await {
        let answers = call.expect("no panic");
        assert!(answers.iter().all(|answer| outcome(answer) == Outcome::Created));
        stored_as_proposed += answers.iter().filter(|a| **a == Recorded::AsProposed).count();
    }
    assert_eq!(stored_as_proposed, 20);
    assert_eq!(state(&ledger, "s").await.sold, 20);
}

async fn selling_the_last_unit_is_told_with_its_batch_and_every_repeat(ledger: L) {
    ledger.open(&[sale("s", 3), sale("t", 1), sale("none", 0)]).await.expect("open");
    let told = async |decisions: &[Decision]| {
        let proposals: Vec<_> = decisions
            .iter()
            .map(|decision| Proposed { decision, submitted_at: at(), repeat: false })
            .collect();
        ledger.record(&proposals).await.expect("recorded").sold_out
    };
    assert_eq!(told(&[created(order("a", "s", "u", 2))]).await, []);
    let last = [created(order("b", "s", "u", 1)), created(order("c", "s", "u", 1))];
    let sold_out = SoldOut { sale_id: sale_id("s"), version: 1, stock: 3, at: at() };
    assert_eq!(told(&last).await, std::slice::from_ref(&sold_out));
    let later: Vec<_> = last
        .iter()
        .map(|decision| Decision { decided_at: Utc::now(), ..decision.clone() })
        .collect();
    assert_eq!(told(&later).await, [sold_out], "as it was the first time");
    let no = Decision { outcome: Outcome::SoldOut, ..created(order("d", "s", "u", 1)) };
    assert_eq!(told(&[no, created(order("e", "none", "u", 1))]).await, []);
    assert_eq!(state(&ledger, "s").await.sold_out_at, Some(at()));
    assert_eq!(state(&ledger, "t").await.sold_out_at, None);
}
