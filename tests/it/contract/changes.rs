//! The contract of `Ledger::change`: restocking and closing sales, and switching their verification.

use chrono::{DateTime, TimeDelta, Utc};
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::{AdjustmentId, Candidate, Quantity};
use floodgate::domain::rules::{Answer, Until};
use floodgate::domain::sale::{
    Announcement, MAX_STOCK, PauseMode, Restock, Sale, SaleState, SoldOut,
};
use floodgate::ledger::{Change, Changed};

use super::ledger::{L, decide, decide_all, outcomes, state};
use super::on_every_ledger;
use crate::harness::{candidate, order, sale, sale_id, time};

on_every_ledger!(
    a_restock_adds_its_units_once,
    news_of_a_sale_are_owed_in_their_order,
    an_adjustment_id_stands_for_one_restock_of_its_sale,
    a_closed_sale_closes_no_later_and_not_before_it_opens,
    verification_is_switched_and_what_is_decided_stays,
    a_paused_sale_refuses_or_holds_what_is_not_decided,
    held_orders_grow_no_older,
    restocks_and_orders_at_once_lose_no_unit,
);

fn at() -> DateTime<Utc> {
    time("2026-11-20T08:00:00.123Z")
}

fn restock(id: &str, units: i64) -> Change {
    let adjustment_id = AdjustmentId::parse(id).expect("id");
    Change::Restock { adjustment_id, units: Quantity::new(units).expect("units"), at: at() }
}

async fn change(ledger: &L, sale: &str, change: &Change) -> Changed {
    ledger.change(&sale_id(sale), change).await.expect("changed")
}

async fn a_restock_adds_its_units_once(ledger: L) {
    ledger.open(&[sale("s", 2)]).await.expect("open");
    decide(&ledger, &[order("a", "s", "u", 2)]).await;
    let expected = Restock {
        adjustment_id: AdjustmentId::parse("r-1").expect("id"),
        sale_id: sale_id("s"),
        units: Quantity::new(3).expect("units"),
        version: 2,
        stock: 5,
        at: at(),
    };
    let after = SaleState { sold: 2, version: 2, ..SaleState::opened(sale("s", 5)) };
    for first in [true, false] {
        let Changed::Done { state, restock, is_new } =
            change(&ledger, "s", &restock("r-1", 3)).await
        else {
            panic!("not done")
        };
        assert_eq!((state, restock, is_new), (after.clone(), Some(expected.clone()), first));
    }
    let Changed::Done { state, .. } = change(&ledger, "s", &restock("r-2", 1)).await else {
        panic!("not done")
    };
    assert_eq!((state.sale.stock, state.version), (6, 3));
    let Changed::Done { restock, .. } = change(&ledger, "s", &restock("r-1", 3)).await else {
        panic!("not done")
    };
    assert_eq!(restock, Some(expected), "as it was first recorded");
    let answers = decide(&ledger, &[order("b", "s", "u", 4)]).await;
    assert_eq!(outcomes(&answers), [Outcome::Created]);
}

async fn news_of_a_sale_are_owed_in_their_order(ledger: L) {
    ledger.open(&[sale("s", 1)]).await.expect("open");
    decide(&ledger, &[order("a", "s", "u", 1)]).await;
    change(
        &ledger,
        "s",
        &Change::Restock {
            adjustment_id: AdjustmentId::parse("r-1").expect("id"),
            units: Quantity::ONE,
            at: at(),
        },
    )
    .await;
    let owed = ledger.unpublished(None).await.expect("outbox");
    let [
        Announcement::SoldOut(SoldOut { version: 1, stock: 1, .. }),
        Announcement::Restocked(Restock { version: 2, stock: 2, .. }),
    ] = &owed[..]
    else {
        panic!("{owed:?}")
    };
    ledger.published(&owed[..1]).await.expect("outbox");
    assert_eq!(ledger.unpublished(None).await.expect("outbox"), owed[1..]);
}

async fn an_adjustment_id_stands_for_one_restock_of_its_sale(ledger: L) {
    ledger.open(&[sale("s", 2), sale("t", 2)]).await.expect("open");
    change(&ledger, "s", &restock("r", 3)).await;
    let Changed::Conflict(first) = change(&ledger, "s", &restock("r", 4)).await else {
        panic!("no conflict")
    };
    assert_eq!((first.sale_id, first.units.get()), (sale_id("s"), 3));
    assert_eq!(state(&ledger, "s").await.sale.stock, 5);
    // The same id in another sale is another restock.
    let Changed::Done { state, .. } = change(&ledger, "t", &restock("r", 4)).await else {
        panic!("not done")
    };
    assert_eq!(state.sale.stock, 6);
    assert_eq!(change(&ledger, "nope", &restock("n", 1)).await, Changed::UnknownSale);
    let full = sale("full", MAX_STOCK);
    ledger.open(&[full]).await.expect("open");
    assert_eq!(change(&ledger, "full", &restock("f", 1)).await, Changed::StockTooLarge);
}

async fn a_closed_sale_closes_no_later_and_not_before_it_opens(ledger: L) {
    let opens =
        DateTime::from_timestamp(Utc::now().timestamp(), 0).expect("a time") - TimeDelta::hours(6);
    let hours = |hours| opens + TimeDelta::hours(hours);
    ledger
        .open(&[
            Sale { opens_at: Some(opens), ..sale("s", 9) },
            Sale { closes_at: Some(hours(2)), ..sale("t", 9) },
        ])
        .await
        .expect("open");
    for (id, at, closes_at, version, closed) in [
        ("s", hours(1), hours(1), 2, true),
        ("s", hours(1), hours(1), 2, false),
        ("s", hours(3), hours(1), 2, false),
        ("s", hours(-5), opens, 3, true),
        ("t", hours(3), hours(2), 1, false),
        ("t", hours(1), hours(1), 2, true),
    ] {
        let Changed::Done { state, restock, is_new } =
            change(&ledger, id, &Change::Close { at }).await
        else {
            panic!("not done")
        };
        assert_eq!((state.sale.closes_at, state.version), (Some(closes_at), version), "{id} {at}");
        assert_eq!((restock, is_new), (None, closed), "{id} {at}");
    }
    let late = Candidate { submitted_at: Some(opens), ..candidate(order("a", "s", "u", 1)) };
    let closed = Outcome::Rejected(Reason::Closed);
    assert_eq!(outcomes(&decide_all(&ledger, &[late]).await), [closed]);
    assert_eq!(change(&ledger, "nope", &Change::Close { at: opens }).await, Changed::UnknownSale);
}

async fn verification_is_switched_and_what_is_decided_stays(ledger: L) {
    ledger.open(&[sale("s", 5)]).await.expect("open");
    decide(&ledger, &[order("a", "s", "u", 2)]).await;
    let mut before = 1;
    for (on, version) in [(false, 1), (true, 2), (true, 2), (false, 3), (false, 3), (true, 4)] {
        let Changed::Done { state, restock, is_new } =
            change(&ledger, "s", &Change::Verify { on }).await
        else {
            panic!("not done")
        };
        let switched = Sale { verification: on, ..sale("s", 5) };
        let expected = SaleState { sold: 2, version, ..SaleState::opened(switched) };
        assert_eq!((state, restock), (expected, None), "{on}, version {version}");
        assert_eq!(is_new, version > before, "{on}, version {version}");
        before = version;
    }
    assert!(state(&ledger, "s").await.sale.verification);
    let answers = decide(&ledger, &[order("b", "s", "u", 3), order("a", "s", "u", 2)]).await;
    assert!(matches!(answers[0], Answer::Undecided { until: Until::Verified, .. }));
    assert!(answers[1].is_granted());
    let unknown = change(&ledger, "nope", &Change::Verify { on: true }).await;
    assert_eq!(unknown, Changed::UnknownSale);
}

async fn a_paused_sale_refuses_or_holds_what_is_not_decided(ledger: L) {
    ledger.open(&[Sale { per_user_limit: Some(3), ..sale("s", 5) }]).await.expect("open");
    decide(&ledger, &[order("a", "s", "u", 2)]).await;
    let (refuse, hold) = (Some(PauseMode::Refuse), Some(PauseMode::Hold));
    let mut before = 1;
    for (mode, version) in
        [(None, 1), (refuse, 2), (refuse, 2), (hold, 3), (refuse, 4), (hold, 5), (None, 6)]
    {
        let Changed::Done { state, restock, is_new } =
            change(&ledger, "s", &Change::Pause { mode, at: at() }).await
        else {
            panic!("not done")
        };
        assert_eq!((state.paused, state.version, restock), (mode, version, None));
        assert_eq!(is_new, version > before, "{mode:?}, version {version}");
        before = version;
        let (new, many) = (format!("b-{version}"), format!("c-{version}"));
        let orders = [
            order(&new, "s", "v", 1),
            order("a", "s", "u", 2),
            order("a", "s", "u", 1),
            order(&many, "s", "u", 9),
        ];
        let answers = decide(&ledger, &orders).await;
        assert!(answers[1].is_granted(), "what is decided stays");
        assert_eq!(answers[2], Answer::Conflict);
        for answer in [&answers[0], &answers[3]] {
            let is_right = match (mode, answer) {
                (Some(PauseMode::Hold), Answer::Undecided { until: Until::Resumed, .. }) => true,
                (Some(PauseMode::Refuse), Answer::Decided { decision, .. }) => {
                    decision.outcome == Outcome::Rejected(Reason::Paused)
                        && decision.version == version
                }
                (None, Answer::Decided { decision, .. }) => {
                    decision.outcome != Outcome::Rejected(Reason::Paused)
                }
                _ => false,
            };
            assert!(is_right, "{mode:?}: {answer:?}");
        }
    }
    let unknown = Change::Pause { mode: hold, at: at() };
    assert_eq!(change(&ledger, "nope", &unknown).await, Changed::UnknownSale);
}

async fn held_orders_grow_no_older(ledger: L) {
    ledger.open(&[sale("s", 9)]).await.expect("open");
    let now = DateTime::from_timestamp(Utc::now().timestamp(), 0).expect("a time");
    let ago = |hours| now - TimeDelta::hours(hours);
    let pause = async |mode, hours| {
        change(&ledger, "s", &Change::Pause { mode, at: ago(hours) }).await;
    };
    let decided = async |id: &str, hours| {
        let order = candidate(order(id, "s", "u", 1));
        decide_all(&ledger, &[Candidate { submitted_at: Some(ago(hours)), ..order }])
            .await
            .remove(0)
    };
    let hold = Some(PauseMode::Hold);
    pause(hold, 60).await;
    let waiting = decided("a", 70).await;
    assert!(matches!(waiting, Answer::Undecided { until: Until::Resumed, .. }), "{waiting:?}");
    pause(None, 40).await;
    // Held again, soon after: both times count.
    pause(hold, 39).await;
    pause(None, 2).await;
    assert_eq!(outcomes(&[decided("a", 70).await]), [Outcome::Created], "fresh when first held");
    assert_eq!(outcomes(&[decided("b", 50).await]), [Outcome::Created], "while held");
    let expired = Outcome::Rejected(Reason::Expired);
    assert_eq!(outcomes(&[decided("c", 85).await]), [expired], "too old when first held");
}

async fn restocks_and_orders_at_once_lose_no_unit(ledger: L) {
    ledger.open(&[sale("s", 10)]).await.expect("open");
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..10 {
        let restocking = ledger.clone();
        calls.spawn(async move {
            // Each twice, as an operator would who got no answer.
            change(&restocking, "s", &restock(&format!("r-{}", n / 2), 5)).await;
        });
        let ledger = ledger.clone();
        calls.spawn(async move {
            let orders: Vec<_> =
                (0..5).map(|i| order(&format!("o-{n}-{i}"), "s", "u", 1)).collect();
            decide(&ledger, &orders).await;
        });
    }
    while let Some(call) = calls.join_next().await {
        call.expect("no panic");
    }
    let state = state(&ledger, "s").await;
    assert_eq!((state.sale.stock, state.version), (35, 6));
    assert!(state.sold <= 35 && state.sold >= 10, "{state:?}");
}
