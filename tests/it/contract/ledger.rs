//! The contract of `Ledger`: deciding. Changes of sales are in `changes`, the rule itself in `vectors`.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use floodgate::domain::decision::{Decision, Hint, Outcome, Reason};
use floodgate::domain::order::{Candidate, Eligibility, Order, OrderKey};
use floodgate::domain::rules::{Answer, Until};
use floodgate::domain::sale::{Announcement, MAX_STOCK, Sale, SaleState, SoldOut, Watermark};
use floodgate::ledger::{Decided, Ledger, Opening, Proposed};

use super::on_every_ledger;
use crate::harness::{candidate, order, orders, sale, sale_id};

on_every_ledger!(
    opening_again_keeps_the_stock,
    sales_are_found_by_id_and_all_together,
    decisions_are_stored_as_they_were_answered,
    deciding_again_gives_the_same_decisions_whatever_the_hints,
    an_order_id_belongs_to_its_sale,
    a_window_holds_to_the_millisecond,
    an_order_of_an_unknown_sale_does_not_keep_its_neighbours_back,
    an_unchecked_order_stores_nothing_and_keeps_its_time,
    wrong_hints_change_nothing,
    a_batch_over_many_sales_is_decided_at_once,
    concurrent_batches_never_oversell,
    the_same_batch_at_once_is_decided_once,
    selling_the_last_unit_is_owed_until_it_is_published,
    a_sale_that_has_lost_what_was_committed_is_not_decided,
);

pub(super) type L = std::sync::Arc<dyn Ledger>;

/// Orders older than this expire.
pub(super) const MAX_AGE: Duration = Duration::from_hours(24);

/// Decides candidates, each with its hint.
pub(super) async fn decide_hinted(
    ledger: &L,
    orders: &[(Candidate, Option<Hint>)],
    redelivered: bool,
) -> Decided {
    let orders: Vec<_> = orders
        .iter()
        .map(|(candidate, hint)| Proposed { candidate, hint: *hint, redelivered, watermark: None })
        .collect();
    ledger.decide(&orders, MAX_AGE).await.expect("decided")
}

/// Decides candidates without hints.
pub(super) async fn decide_all(ledger: &L, candidates: &[Candidate]) -> Vec<Answer> {
    let orders: Vec<_> = candidates.iter().map(|candidate| (candidate.clone(), None)).collect();
    decide_hinted(ledger, &orders, false).await.answers
}

/// Decides orders without hints.
pub(super) async fn decide(ledger: &L, orders: &[Order]) -> Vec<Answer> {
    let candidates: Vec<_> = orders.iter().cloned().map(candidate).collect();
    decide_all(ledger, &candidates).await
}

pub(super) async fn decision(ledger: &L, order: &Order) -> Option<Decision> {
    ledger.decisions(&[order.key()]).await.expect("ledger").remove(0)
}

pub(super) async fn state(ledger: &L, id: &str) -> SaleState {
    ledger.sales(Some(&[sale_id(id)])).await.expect("sales").remove(0)
}

pub(super) fn outcome(answer: &Answer) -> Outcome {
    match answer {
        Answer::Decided { decision, .. } => decision.outcome,
        other => panic!("not decided: {other:?}"),
    }
}

pub(super) fn outcomes(answers: &[Answer]) -> Vec<Outcome> {
    answers.iter().map(outcome).collect()
}

fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}

async fn opening_again_keeps_the_stock(ledger: L) {
    let first = ledger.open(&[sale("s", 2), sale("t", 1)]).await.expect("open");
    assert_eq!(first, [Opening::Opened, Opening::Opened]);
    decide(&ledger, &[order("o", "s", "u", 1)]).await;
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
        per_user_limit: Some(u32::MAX),
        opens_at: Some(now()),
        closes_at: Some(now() + TimeDelta::hours(1)),
        ..sale("b", 3)
    };
    ledger.open(&[full.clone(), sale("a", MAX_STOCK), sale("B", 1)]).await.expect("open");
    assert_eq!(state(&ledger, "b").await, SaleState::opened(full));
    let none = ledger.sales(Some(&[sale_id("nope")])).await.expect("sales");
    assert!(none.is_empty());
    let all = ledger.sales(None).await.expect("sales");
    assert_eq!(all.iter().map(|state| state.sale.id.as_str()).collect::<Vec<_>>(), ["B", "a", "b"]);
    assert_eq!(all[1].sale.stock, MAX_STOCK);
}

async fn decisions_are_stored_as_they_were_answered(ledger: L) {
    let hour = TimeDelta::hours(1);
    ledger
        .open(&[
            Sale { per_user_limit: Some(3), ..sale("s", 4) },
            Sale { opens_at: Some(now() + hour), ..sale("later", 4) },
            Sale { closes_at: Some(now() - hour), ..sale("over", 4) },
        ])
        .await
        .expect("open");
    let denied =
        Candidate { eligibility: Eligibility::Denied, ..candidate(order("denied", "s", "u", 1)) };
    let old = Candidate {
        submitted_at: Some(now() - TimeDelta::hours(25)),
        ..candidate(order("old", "s", "u", 1))
    };
    let told =
        Candidate { submitted_at: Some(now() - hour), ..candidate(order("created", "s", "u", 3)) };
    let candidates = [
        told.clone(),
        candidate(order("limit", "s", "u", 1)),
        candidate(order("sold-out", "s", "v", 2)),
        denied,
        old,
        candidate(order("early", "later", "u", 1)),
        candidate(order("late", "over", "u", 1)),
    ];
    let answers = decide_all(&ledger, &candidates).await;
    let expected = [
        Outcome::Created,
        Outcome::Rejected(Reason::PurchaseLimit),
        Outcome::SoldOut,
        Outcome::Rejected(Reason::UserDenied),
        Outcome::Rejected(Reason::Expired),
        Outcome::Rejected(Reason::NotOpen),
        Outcome::Rejected(Reason::Closed),
    ];
    assert_eq!(outcomes(&answers), expected);
    let mut keys: Vec<OrderKey> =
        candidates.iter().map(|candidate| candidate.order.key()).collect();
    let never = order("never", "s", "u", 1);
    keys.insert(0, never.key());
    let stored = ledger.decisions(&keys).await.expect("ledger");
    assert_eq!(stored[0], None);
    for (answer, stored) in answers.iter().zip(&stored[1..]) {
        assert_eq!(answer.new_decision(), stored.as_ref());
    }
    let first = stored[1].clone().expect("decided");
    assert_eq!(Some(first.submitted_at), told.submitted_at);
    assert!(first.decided_at <= Utc::now() && first.decided_at > Utc::now() - hour);
    assert_eq!((first.version, first.sold), (1, 0));
    assert_eq!(stored[3].as_ref().map(|decision| decision.sold), Some(3));
    assert_eq!(state(&ledger, "s").await.sold, 3);
}

async fn deciding_again_gives_the_same_decisions_whatever_the_hints(ledger: L) {
    ledger.open(&[sale("s", 2)]).await.expect("open");
    let all = orders("s", 4);
    let first = decide(&ledger, &all).await;
    for redelivered in [false, true] {
        for hint in [None, Some(Hint::Granted), Some(Hint::Refused)] {
            let again: Vec<_> = all.iter().map(|order| (candidate(order.clone()), hint)).collect();
            let answers = decide_hinted(&ledger, &again, redelivered).await.answers;
            for (answer, first) in answers.iter().zip(&first) {
                let (Answer::Decided { decision, is_new }, Some(first)) =
                    (answer, first.new_decision())
                else {
                    panic!("{answer:?}")
                };
                assert!(!is_new && decision == first);
            }
        }
    }
    let other = order("o-0", "s", "u-0", 2);
    assert_eq!(decide(&ledger, std::slice::from_ref(&other)).await, [Answer::Conflict]);
    let twice = [order("new", "s", "u", 1), other, order("new", "s", "u", 1)];
    let answers = decide(&ledger, &twice).await;
    assert_eq!(outcome(&answers[0]), Outcome::SoldOut);
    assert_eq!(answers[1], Answer::Conflict);
    assert!(matches!(&answers[2], Answer::Decided { is_new: false, .. }));
    assert_eq!(state(&ledger, "s").await.sold, 2);
}

async fn an_order_id_belongs_to_its_sale(ledger: L) {
    ledger.open(&[sale("s", 5), sale("t", 0), sale("v", 7)]).await.expect("open");
    // A basket: one order id in three sales, in one batch.
    let basket = [order("o", "s", "u", 1), order("o", "t", "u", 2), order("o", "v", "w", 3)];
    let answers = decide(&ledger, &basket).await;
    assert_eq!(outcomes(&answers), [Outcome::Created, Outcome::SoldOut, Outcome::Created]);
    for (order, answer) in basket.iter().zip(&answers) {
        assert_eq!(decision(&ledger, order).await.as_ref(), answer.new_decision());
    }
    let other = order("o", "s", "w", 1);
    assert_eq!(decide(&ledger, &[other]).await, [Answer::Conflict]);
}

async fn a_window_holds_to_the_millisecond(ledger: L) {
    let (opens, closes) = (now() - TimeDelta::hours(2), now() - TimeDelta::hours(1));
    let windowed = Sale { opens_at: Some(opens), closes_at: Some(closes), ..sale("s", 10) };
    ledger.open(&[windowed]).await.expect("open");
    let ms = TimeDelta::milliseconds(1);
    for (id, at, expected) in [
        ("a", opens - ms, Outcome::Rejected(Reason::NotOpen)),
        ("b", opens, Outcome::Created),
        ("c", closes - ms, Outcome::Created),
        ("d", closes, Outcome::Rejected(Reason::Closed)),
        ("e", Utc::now() + TimeDelta::days(1), Outcome::Rejected(Reason::Closed)),
    ] {
        let order = order(id, "s", "u", 1);
        let candidate = Candidate { submitted_at: Some(at), ..candidate(order) };
        assert_eq!(outcomes(&decide_all(&ledger, &[candidate]).await), [expected], "{id}");
    }
}

async fn an_order_of_an_unknown_sale_does_not_keep_its_neighbours_back(ledger: L) {
    ledger.open(&[sale("s", 10)]).await.expect("open");
    let all = [order("a", "nope", "u", 1), order("b", "s", "u", 1)];
    for hint in [None, Some(Hint::Granted), Some(Hint::Refused)] {
        let hinted: Vec<_> = all.iter().map(|order| (candidate(order.clone()), hint)).collect();
        let answers = decide_hinted(&ledger, &hinted, false).await.answers;
        assert_eq!(answers[0], Answer::UnknownSale);
        assert_eq!(outcome(&answers[1]), Outcome::Created);
    }
    assert_eq!(decision(&ledger, &all[0]).await, None);
}

async fn an_unchecked_order_stores_nothing_and_keeps_its_time(ledger: L) {
    ledger.open(&[Sale { verification: true, ..sale("s", 2) }]).await.expect("open");
    let first = order("a", "s", "u", 1);
    let at = now() - TimeDelta::minutes(1);
    let told = Candidate { submitted_at: Some(at), ..candidate(first.clone()) };
    let future = Candidate { submitted_at: Some(now() + TimeDelta::days(1)), ..told.clone() };
    for hint in [None, Some(Hint::Granted), Some(Hint::Refused)] {
        let orders = [(told.clone(), hint), (future.clone(), hint)];
        let decided = decide_hinted(&ledger, &orders, false).await;
        assert_eq!(
            decided.answers[0],
            Answer::Undecided { until: Until::Verified, submitted_at: at }
        );
        let Answer::Undecided { submitted_at, .. } = decided.answers[1] else { panic!("decided") };
        assert!(submitted_at <= Utc::now() && submitted_at > at, "the ledger's time");
        assert_eq!(decided.sales[&sale_id("s")].remaining(), 2);
    }
    assert_eq!(decision(&ledger, &first).await, None);
    let eligible = Candidate { eligibility: Eligibility::Eligible, ..told.clone() };
    assert_eq!(outcomes(&decide_all(&ledger, &[eligible]).await), [Outcome::Created]);
    // A repeat needs no check, and neither does an order that is refused anyway.
    let large = candidate(order("b", "s", "v", 2));
    let answers = decide_all(&ledger, &[told, large]).await;
    assert_eq!(outcomes(&answers), [Outcome::Created, Outcome::SoldOut]);
}

async fn wrong_hints_change_nothing(ledger: L) {
    let limited = Sale { per_user_limit: Some(1), ..sale("t", 10) };
    ledger.open(&[sale("s", 3), limited]).await.expect("open");
    let refused = |order: Order| (candidate(order), Some(Hint::Refused));
    let granted = |order: Order| (candidate(order), Some(Hint::Granted));
    let batch: Vec<_> = [
        refused(order("a", "s", "u", 2)),
        granted(order("b", "s", "u", 2)),
        refused(order("c", "s", "v", 1)),
        granted(order("d", "s", "v", 1)),
        refused(order("a", "t", "u", 1)),
        granted(order("b", "t", "u", 1)),
    ]
    .into();
    let decided = decide_hinted(&ledger, &batch, false).await;
    let (yes, no) = (Outcome::Created, Outcome::SoldOut);
    let limit = Outcome::Rejected(Reason::PurchaseLimit);
    assert_eq!(outcomes(&decided.answers), [yes, no, yes, no, yes, limit]);
    assert_eq!(decided.sales[&sale_id("s")], state(&ledger, "s").await);
    let buyer = (sale_id("t"), batch[4].0.order.user_id.clone());
    assert_eq!(decided.units[&buyer], 1);
}

async fn a_batch_over_many_sales_is_decided_at_once(ledger: L) {
    let sales: Vec<Sale> = (0..50).map(|n| sale(&format!("s-{n}"), 1)).collect();
    ledger.open(&sales).await.expect("open");
    let orders: Vec<Order> =
        (0..100).map(|n| order(&format!("o-{n}"), &format!("s-{}", n % 50), "u", 1)).collect();
    let outcomes = outcomes(&decide(&ledger, &orders).await);
    assert!(outcomes[..50].iter().all(|outcome| *outcome == Outcome::Created));
    assert!(outcomes[50..].iter().all(|outcome| *outcome == Outcome::SoldOut));
}

async fn concurrent_batches_never_oversell(ledger: L) {
    let limited = Sale { per_user_limit: Some(3), ..sale("t", 40) };
    ledger.open(&[sale("s", 50), limited]).await.expect("open");
    let mut calls = tokio::task::JoinSet::new();
    for batch in 0..20 {
        let ledger = ledger.clone();
        calls.spawn(async move {
            // Both sales, in an order that differs from batch to batch, with hints that do too.
            let orders: Vec<_> = (0..10)
                .map(|n| {
                    let sale = if (n + batch) % 2 == 0 { "s" } else { "t" };
                    let order = order(&format!("o-{batch}-{n}"), sale, &format!("u-{n}"), 1);
                    let hint = [None, Some(Hint::Granted), Some(Hint::Refused)][(n + batch) % 3];
                    (candidate(order), hint)
                })
                .collect();
            decide_hinted(&ledger, &orders, false).await
        });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("no panic");
    }
    assert_eq!(state(&ledger, "s").await.remaining(), 0);
    assert_eq!(state(&ledger, "t").await.sold, 30, "ten users, three each");
}

async fn the_same_batch_at_once_is_decided_once(ledger: L) {
    ledger.open(&[sale("s", 30)]).await.expect("open");
    let all = orders("s", 20);
    let mut calls = tokio::task::JoinSet::new();
    for copy in 0..8 {
        let (ledger, mut orders) = (ledger.clone(), all.clone());
        if copy % 2 == 1 {
            orders.reverse();
        }
        calls.spawn(async move { decide(&ledger, &orders).await });
    }
    let mut new = 0;
    while let Some(call) = calls.join_next().await {
        let answers = call.expect("no panic");
        assert!(answers.iter().all(Answer::is_granted));
        new += answers.iter().filter(|answer| answer.new_decision().is_some()).count();
    }
    assert_eq!(new, 20);
    assert_eq!(state(&ledger, "s").await.sold, 20);
}

async fn selling_the_last_unit_is_owed_until_it_is_published(ledger: L) {
    ledger.open(&[sale("s", 3), sale("t", 1), sale("none", 0)]).await.expect("open");
    decide(&ledger, &[order("a", "s", "u", 2), order("e", "none", "u", 1)]).await;
    assert_eq!(ledger.unpublished(None).await.expect("outbox"), []);
    let last = [order("b", "s", "u", 1), order("c", "s", "u", 1)];
    decide(&ledger, &last).await;
    let at = state(&ledger, "s").await.sold_out_at.expect("sold out");
    let sold_out = SoldOut { sale_id: sale_id("s"), version: 1, stock: 3, at };
    let owed = [Announcement::SoldOut(sold_out)];
    assert_eq!(ledger.unpublished(None).await.expect("outbox"), owed);
    decide(&ledger, &last).await;
    assert_eq!(ledger.unpublished(None).await.expect("outbox"), owed, "once");
    let of = async |sale: &str| ledger.unpublished(Some(&[sale_id(sale)])).await.expect("outbox");
    assert_eq!(of("s").await, owed);
    assert_eq!(of("t").await, []);
    for _ in 0..2 {
        ledger.published(&owed).await.expect("outbox");
        assert_eq!(ledger.unpublished(None).await.expect("outbox"), []);
    }
    assert_eq!(state(&ledger, "t").await.sold_out_at, None);
}

async fn a_sale_that_has_lost_what_was_committed_is_not_decided(ledger: L) {
    ledger.open(&[sale("s", 9), sale("t", 9)]).await.expect("open");
    let first = order("first", "s", "u", 2);
    decide(&ledger, std::slice::from_ref(&first)).await;
    let marks = [("s", Some((1, 2))), ("s", Some((1, 9))), ("s", Some((2, 2))), ("t", None)];
    for (n, (id, mark)) in marks.into_iter().enumerate() {
        let watermark = mark.map(|(version, sold)| Watermark { version, sold });
        let new = candidate(order(&format!("new-{n}"), id, "u", 1));
        let again = candidate(Order { sale_id: sale_id(id), ..first.clone() });
        for hint in [None, Some(Hint::Granted), Some(Hint::Refused)] {
            let propose = |candidate| Proposed { candidate, hint, redelivered: true, watermark };
            let decided = ledger.decide(&[propose(&again), propose(&new)], MAX_AGE).await;
            let decided = decided.expect("decided");
            let is_lost = n == 1 || n == 2;
            assert_eq!(decided.lost.contains(&sale_id(id)), is_lost);
            let waits =
                matches!(decided.answers[1], Answer::Undecided { until: Until::Resumed, .. });
            assert_eq!(waits, is_lost, "{id} {mark:?} {hint:?}: {:?}", decided.answers);
            // What is decided stays, and is told again.
            assert!(decided.answers[0].is_granted(), "{id} {mark:?} {hint:?}");
        }
    }
    let unknown = candidate(order("a", "gone", "u", 1));
    let watermark = Some(Watermark { version: 1, sold: 0 });
    let lost = Proposed { candidate: &unknown, hint: None, redelivered: false, watermark };
    let decided = ledger.decide(&[lost], MAX_AGE).await.expect("decided");
    assert!(matches!(decided.answers[0], Answer::Undecided { .. }), "{:?}", decided.answers);
    assert!(decided.lost.contains(&sale_id("gone")));
}
