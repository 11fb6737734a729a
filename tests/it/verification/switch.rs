//! An operator sells without checks while the user service is away, and has users checked again.

use std::sync::atomic::Ordering;

use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;
use floodgate::domain::sale::MAX_STOCK;
use floodgate::ledger::Change;

use super::{Users, checked_sale, until, until_decided, with_users};
use crate::harness::check::{self, Totals};
use crate::harness::embedded::Embedded;
use crate::harness::process::run;
use crate::harness::{PATIENCE, Running, Stage, body, order, sale_id};

/// Calls for an order before it waits on a delay queue, as by default.
const ATTEMPTS: usize = 3;

fn asked(id: &str, user: &str) -> Order {
    order(id, "away", user, 1)
}

/// Waits until `worker`'s users have been asked about in vain for another order.
async fn until_asked(users: &Users, before: usize) {
    until(async || users.calls() >= before + ATTEMPTS).await;
}

#[tokio::test]
async fn what_waits_for_the_user_service_is_sold_when_checks_are_switched_off() {
    let mut stage = Stage::new("switch-off").await;
    stage.open(checked_sale("away", 10)).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    let all = [asked("a", "u"), asked("b", "bad-1"), asked("c", "w"), asked("d", "bad-2")];
    stage.post_orders(&all[..1]).await;
    until_asked(&users, 0).await;
    assert_eq!(check::outcome(&stage, "away", "a").await, None, "it waits");

    let switched = run(&stage, &["sale", "verification", "away", "off"]);
    assert_eq!(switched.status.code(), Some(0));
    until_decided(stage.ledger.as_ref(), &all[..1]).await;
    let calls = users.calls();
    stage.post_orders(&all[1..2]).await;
    until_decided(stage.ledger.as_ref(), &all[..2]).await;
    assert_eq!(check::outcome(&stage, "away", "b").await, Some(Outcome::Created));
    assert_eq!(users.calls(), calls, "nobody was asked any more");

    let switched = run(&stage, &["sale", "verification", "away", "on"]);
    assert_eq!(switched.status.code(), Some(0));
    stage.post_orders(&all[2..]).await;
    until_asked(&users, calls).await;
    for id in ["c", "d"] {
        assert_eq!(check::outcome(&stage, "away", id).await, None, "{id} waits");
    }
    users.out.store(false, Ordering::SeqCst);
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 3, sold_out: 0, rejected: 1 });
    let denied = Some(Outcome::Rejected(Reason::UserDenied));
    assert_eq!(check::outcome(&stage, "away", "d").await, denied);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_learns_of_the_switch_although_the_inventory_was_not_told() {
    let mut stage = Stage::new("switch-read").await;
    stage.open(checked_sale("away", 10)).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    let all = [asked("a", "u")];
    stage.post_orders(&all).await;
    until_asked(&users, 0).await;
    // As when Redis is away for that moment: only the ledger has it.
    let off = Change::Verify { on: false };
    stage.ledger.change(&sale_id("away"), &off).await.expect("switched");
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 1, sold_out: 0, rejected: 0 });
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_embedded_worker_follows_what_another_process_switches() {
    use floodgate::broker::Message;

    let embedded = Embedded::new().await;
    embedded.ledger.open(&[checked_sale("away", MAX_STOCK)]).await.expect("open");
    let users = Users::new();
    let mut worker = embedded.worker();
    worker.verifier = Some(users.clone());
    let worker = Running::start(worker);
    let post = async |order: &Order| {
        let body = body(order);
        embedded.broker.publish(&[Message::intent("away", &body)]).await.all().expect("publish");
    };
    let outcome = async |order: &Order| {
        let decisions = embedded.ledger.decisions(&[order.key()]).await.expect("decisions");
        decisions.into_iter().next().flatten().map(|decision| decision.outcome)
    };
    let other = embedded.other_process().await;
    let switch = async |on| {
        let change = Change::Verify { on };
        other.ledger.change(&sale_id("away"), &change).await.expect("switched");
    };

    let first = asked("a", "u");
    post(&first).await;
    until_asked(&users, 0).await;
    assert_eq!(outcome(&first).await, None, "it waits");
    switch(false).await;
    until(async || outcome(&first).await == Some(Outcome::Created)).await;

    switch(true).await;
    users.out.store(false, Ordering::SeqCst);
    // Until the worker has read of it, orders are still sold without a check.
    let denied = Outcome::Rejected(Reason::UserDenied);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for n in 0.. {
        let next = asked(&format!("b-{n}"), &format!("bad-{n}"));
        post(&next).await;
        until(async || outcome(&next).await.is_some()).await;
        if outcome(&next).await == Some(denied) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "users are not checked again");
    }
    worker.stop().await;
}
