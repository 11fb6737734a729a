//! A user service that is away denies nobody, and holds up no other sale.

use std::time::Duration;

use std::sync::atomic::Ordering;

use floodgate::broker::Queue;
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;

use super::{Users, checked_sale, until, until_decided, with_users};
use crate::harness::check::{self, Totals};
use crate::harness::{Stage, order, orders, sale};

fn away(count: usize) -> Vec<Order> {
    (0..count).map(|n| order(&format!("away-{n}"), "away", &format!("a-{n}"), 1)).collect()
}

#[tokio::test]
async fn orders_wait_out_an_outage_and_other_sales_go_on() {
    let mut stage = Stage::with("outage", |settings| {
        settings.broker.prefetch = 40;
        settings.verification.breaker_calls = 5;
    })
    .await;
    stage.open(checked_sale("away", 150)).await;
    stage.open(checked_sale("here", 60)).await;
    stage.open(sale("s", 50)).await;
    let waiting = away(200);
    let here: Vec<Order> =
        (0..60).map(|n| order(&format!("here-{n}"), "here", &format!("h-{n}"), 1)).collect();
    let plain = orders("s", 50);
    stage.post_orders(&waiting).await;
    stage.post_orders(&here).await;
    stage.post_orders(&plain).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until_decided(stage.ledger.as_ref(), &here).await;
    until_decided(stage.ledger.as_ref(), &plain).await;
    assert_eq!(check::outcome(&stage, "away", "away-0").await, None);
    assert!(users.calls() < 60 + 200, "the breaker keeps calls away: {}", users.calls());

    users.out.store(false, Ordering::SeqCst);
    let all: Vec<Order> = waiting.into_iter().chain(here).chain(plain).collect();
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 260, sold_out: 50, rejected: 0 });
    assert_eq!(stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages, 0);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_outage_that_lasts_too_long_ends_in_expired() {
    let mut stage =
        Stage::with("expired", |settings| settings.intent.max_age = Duration::from_secs(2)).await;
    stage.open(checked_sale("away", 10)).await;
    // Whether or not the producer said when: it counts from the first time it was seen.
    let asked = away(6);
    let dated: Vec<Vec<u8>> = asked[..3]
        .iter()
        .map(|order| floodgate::domain::intent::to_json(order, chrono::Utc::now()))
        .collect();
    stage.post(&dated).await;
    let array = serde_json::to_vec(&asked[3..]).expect("JSON");
    stage.post(&[array]).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 0, sold_out: 0, rejected: 6 });
    for order in &asked {
        let expired = Some(Outcome::Rejected(Reason::Expired));
        assert_eq!(
            check::outcome(&stage, order.sale_id.as_str(), order.id.as_str()).await,
            expired
        );
    }
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_order_with_a_reply_still_gets_it_after_an_outage() {
    let mut stage = Stage::new("outage-reply").await;
    stage.open(checked_sale("away", 10)).await;
    let asked = away(1);
    let queue = Queue::Private(crate::harness::unique("replies"));
    let mut replies = stage.broker.subscribe(queue.clone(), &[], 10).await.expect("subscribe");
    let properties = floodgate::broker::Properties {
        reply_to: Some(stage.broker.address(&queue)),
        correlation_id: Some("mine".into()),
        ..Default::default()
    };
    let body = crate::harness::body(&asked[0]);
    let message = floodgate::broker::Message::Intent {
        routing_key: "away",
        body: &body,
        properties: Some(&properties),
        delay: None,
    };
    stage.broker.publish(&[message]).await.all().expect("publish");
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until(async || users.calls() >= 3).await;
    users.out.store(false, Ordering::SeqCst);
    let reply = tokio::time::timeout(crate::harness::PATIENCE, replies.next()).await;
    let reply = reply.expect("a reply in time").expect("a reply");
    assert_eq!(reply.properties.correlation_id.as_deref(), Some("mine"));
    reply.ack();
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals.created, 1);
    worker.stop().await;
    replies.stop();
    stage.remove().await;
}

#[tokio::test]
async fn without_a_user_service_a_sale_that_wants_checks_sells_nothing() {
    let mut stage =
        Stage::with("no-service", |settings| settings.intent.max_age = Duration::from_secs(1))
            .await;
    stage.open(checked_sale("s", 10)).await;
    let asked = orders("s", 3);
    stage.post_orders(&asked).await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 0, sold_out: 0, rejected: 3 });
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_service_that_goes_on_asking_for_patience_is_an_outage_like_another() {
    let mut stage = Stage::with("busy", |settings| {
        settings.broker.prefetch = 10;
        settings.intent.max_age = Duration::from_secs(5);
    })
    .await;
    stage.open(checked_sale("busy", 100)).await;
    stage.open(sale("s", 50)).await;
    let busy: Vec<Order> =
        (0..40).map(|n| order(&format!("busy-{n}"), "busy", &format!("b-{n}"), 1)).collect();
    let plain = orders("s", 50);
    stage.post_orders(&busy).await;
    stage.post_orders(&plain).await;
    let users = Users::new();
    users.busy.store(usize::MAX, Ordering::SeqCst);
    let worker = with_users(&stage, &users).await;
    until_decided(stage.ledger.as_ref(), &plain).await;
    let all: Vec<Order> = busy.into_iter().chain(plain).collect();
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 50, sold_out: 0, rejected: 40 });
    worker.stop().await;
    stage.remove().await;
}
