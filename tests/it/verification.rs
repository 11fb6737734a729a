//! Users are checked before they get anything, and beside the path of the others.

#[path = "verification/crashes.rs"]
mod crashes;
#[path = "verification/http.rs"]
mod http;
#[path = "verification/outage.rs"]
mod outage;
#[path = "verification/switch.rs"]
mod switch;

use std::sync::atomic::Ordering;

use floodgate::config::Settings;
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;

use crate::harness::check::{self, Totals};
use crate::harness::users::{Users, checked_sale, until_decided, with_users};
use crate::harness::{Running, Stage, order, orders, sale, until};

#[tokio::test]
async fn a_denied_user_is_rejected_and_a_busy_service_is_no_denial() {
    let mut stage = Stage::new("denied").await;
    stage.open(checked_sale("s", 10)).await;
    let asked =
        [order("a", "s", "good", 1), order("b", "s", "bad-1", 1), order("c", "s", "fine", 1)];
    stage.post_orders(&asked).await;
    let users = Users::new();
    users.busy.store(2, Ordering::SeqCst);
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 2, sold_out: 0, rejected: 1 });
    let denied = Outcome::Rejected(Reason::UserDenied);
    assert_eq!(check::outcome(&stage, "s", "b").await, Some(denied));
    assert_eq!(users.calls(), 5);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn only_sales_that_want_it_have_their_users_checked() {
    let mut stage = Stage::new("unchecked").await;
    stage.open(sale("s", 10)).await;
    let asked = [order("a", "s", "bad-1", 1)];
    stage.post_orders(&asked).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 1, sold_out: 0, rejected: 0 });
    assert_eq!(users.calls(), 0);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_slow_check_holds_up_no_other_sale() {
    // The other sale's orders are behind more slow ones than a worker may hold.
    let mut stage = Stage::with("slow", |settings| settings.broker.prefetch = 20).await;
    stage.open(checked_sale("slow", 5)).await;
    stage.open(sale("s", 100)).await;
    let slow: Vec<Order> =
        (0..60).map(|n| order(&format!("slow-{n}"), "slow", &format!("u-{n}"), 1)).collect();
    let quick = orders("s", 50);
    stage.post_orders(&slow).await;
    stage.post_orders(&quick).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until_decided(stage.ledger.as_ref(), &quick).await;
    assert_eq!(check::outcome(&stage, "slow", "slow-0").await, None, "its check has not come back");
    users.permits.add_permits(60);
    let all: Vec<Order> = slow.into_iter().chain(quick).collect();
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 55, sold_out: 55, rejected: 0 });
    assert_eq!(users.calls(), 5, "one check for each unit, and none for those that got none");
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn not_many_more_users_are_checked_than_units_can_be_sold_to() {
    let mut stage = Stage::new("stock-aware").await;
    stage.open(checked_sale("slow", 7)).await;
    let asked: Vec<Order> = (0..300)
        .map(|n| {
            let user = if n % 3 == 0 { format!("bad-{n}") } else { format!("u-{n}") };
            order(&format!("o-{n}"), "slow", &user, 1)
        })
        .collect();
    stage.post_orders(&asked).await;
    let users = Users::new();
    users.permits.add_permits(300);
    let (first, second) = (with_users(&stage, &users).await, with_users(&stage, &users).await);
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals.created, 7);
    let denied = totals.rejected;
    assert!(users.calls() <= 2 * 7 + denied, "{} calls, {denied} denied", users.calls());
    first.stop().await;
    second.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_user_is_checked_once_for_many_orders_and_never_for_a_decided_one() {
    let mut stage = Stage::new("once").await;
    stage.open(checked_sale("slow", 100)).await;
    let asked: Vec<Order> =
        (0..40).map(|n| order(&format!("o-{n}"), "slow", &format!("u-{}", n % 2), 1)).collect();
    stage.post_orders(&asked[..20]).await;
    let users = Users::new();
    users.permits.add_permits(2);
    let worker = with_users(&stage, &users).await;
    until_decided(stage.ledger.as_ref(), &asked[..20]).await;
    assert_eq!(users.calls(), 2, "one for each user");
    // The verdict is remembered; and what is decided needs none, even in another worker.
    stage.post_orders(&asked[20..]).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 40, sold_out: 0, rejected: 0 });
    worker.stop().await;
    let worker = with_users(&stage, &users).await;
    stage.post_orders(&asked).await;
    for _ in &asked {
        stage.event().await;
    }
    assert_eq!(users.calls(), 2);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn without_an_inventory_nobody_gets_a_unit_unchecked() {
    let change = |settings: &mut Settings| {
        settings.redis_url = "redis://127.0.0.1:1/".into();
    };
    let settings = crate::harness::settings();
    let mut stage = Stage::new("ledger-alone").await;
    stage.open(checked_sale("s", 2)).await;
    let asked = [
        order("a", "s", "good", 1),
        order("b", "s", "bad-1", 1),
        order("c", "s", "fine", 1),
        order("d", "s", "late", 1),
    ];
    let users = Users::new();
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let mut worker = stage.deployment.app.worker(&adapters);
    let mut away = settings;
    change(&mut away);
    let app = floodgate::app::App::new(away);
    worker.inventory = app.inventory().expect("an inventory that is away");
    worker.verifier = Some(users.clone());
    let worker = Running::start(worker);
    for one in &asked[..3] {
        stage.post_orders(std::slice::from_ref(one)).await;
        until_decided(stage.ledger.as_ref(), std::slice::from_ref(one)).await;
    }
    // Sold out; and the first one again: neither is asked about.
    stage.post_orders(&asked[3..]).await;
    stage.post_orders(&asked[..1]).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 2, sold_out: 1, rejected: 1 });
    stage.event().await;
    assert_eq!(users.calls(), 3);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_that_stops_gives_back_what_waits_for_its_check() {
    let mut stage = Stage::new("drain").await;
    stage.open(checked_sale("slow", 100)).await;
    let asked: Vec<Order> =
        (0..100).map(|n| order(&format!("o-{n}"), "slow", &format!("u-{n}"), 1)).collect();
    stage.post_orders(&asked).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until(async || users.calls() >= 10).await;
    users.permits.add_permits(1000);
    worker.stop().await;
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals.created, 100);
    worker.stop().await;
    stage.remove().await;
}
