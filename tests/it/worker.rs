//! The whole path in one process: what comes in, what comes out.

use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use floodgate::broker::{Message, Queue, Receipt};
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::event::Event;
use floodgate::domain::sale::{Sale, SoldOut};

use crate::harness::check::{self, Totals};
use crate::harness::{Running, Stage, body, order, orders, sale};

#[tokio::test]
async fn a_sale_sells_exactly_its_stock_in_queue_order() {
    let mut stage = Stage::new("order").await;
    stage.open(sale("s", 100)).await;
    let orders = orders("s", 1000);
    stage.post_orders(&orders).await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &orders).await;
    assert_eq!(totals, Totals { created: 100, sold_out: 900, rejected: 0 });
    for (n, order) in orders.iter().enumerate() {
        let expected = if n < 100 { Outcome::Created } else { Outcome::SoldOut };
        assert_eq!(
            check::outcome(&stage, "s", order.id.as_str()).await,
            Some(expected),
            "order {n}"
        );
    }
    worker.stop().await;
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 0);
    stage.remove().await;
}

#[tokio::test]
async fn repeats_get_the_same_event_and_conflicts_become_dead_letters() {
    let mut stage = Stage::new("repeats").await;
    stage.open(sale("s", 10)).await;
    let first = order("o", "s", "u", 1);
    stage.post_orders(std::slice::from_ref(&first)).await;
    let worker = stage.worker().await;
    let event = stage.event().await;
    assert_eq!(event["outcome"], "created");

    let (quantity, user) = (order("o", "s", "u", 2), order("o", "s", "v", 1));
    stage.post_orders(&[first.clone(), quantity.clone(), user.clone()]).await;
    assert_eq!(stage.event().await, event, "a repeat gets the first answer");
    let letters = stage.dead_letters(2).await;
    for (other, (reason, bytes)) in [quantity, user].iter().zip(letters) {
        assert_eq!((reason.as_str(), bytes), ("order_id_conflict", body(other)));
    }
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_basket_in_one_message_is_an_order_in_each_sale() {
    let mut stage = Stage::new("basket").await;
    for id in ["s", "t", "v"] {
        stage.open(sale(id, 1)).await;
    }
    let basket = [order("o", "s", "u", 1), order("o", "t", "u", 1), order("o", "v", "u", 2)];
    let (twin, other) = (basket[0].clone(), order("o", "s", "w", 1));
    let elements: Vec<Vec<u8>> = basket.iter().chain([&twin, &other]).map(body).collect();
    stage.post(&[[b"[", elements.join(&b","[..]).as_slice(), b"]"].concat()]).await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &basket).await;
    assert_eq!(totals, Totals { created: 2, sold_out: 1, rejected: 0 });
    assert_eq!(stage.dead_letters(1).await, [("order_id_conflict".into(), body(&other))]);
    worker.stop().await;
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 0);
    stage.remove().await;
}

#[tokio::test]
async fn limit_window_and_age_reject_with_their_reason() {
    let mut stage = Stage::new("rejects").await;
    let now = Utc::now();
    let hour = TimeDelta::hours(1);
    stage.open(Sale { per_user_limit: Some(1), ..sale("limited", 10) }).await;
    stage.open(Sale { opens_at: Some(now + hour), ..sale("early", 10) }).await;
    stage.open(Sale { closes_at: Some(now - hour), ..sale("late", 10) }).await;
    stage.open(sale("plain", 10)).await;
    let with_time = |order: &floodgate::domain::order::Order, at: chrono::DateTime<Utc>| {
        let mut value = serde_json::to_value(order).expect("JSON");
        value["submitted_at"] = at.to_rfc3339().into();
        value.to_string().into_bytes()
    };
    let all = [
        order("a", "limited", "u", 1),
        order("b", "limited", "u", 1),
        order("c", "early", "u", 1),
        order("d", "late", "u", 1),
        order("e", "plain", "u", 1),
        order("f", "early", "u", 1),
    ];
    let mut bodies: Vec<Vec<u8>> = all[..4].iter().map(body).collect();
    bodies.push(with_time(&all[4], now - hour));
    // A forged time doesn't get anybody in early.
    bodies.push(with_time(&all[5], now + hour * 2));
    stage.post(&bodies).await;
    let worker = stage.worker().await;
    check::settled(&mut stage, &all).await;
    for (sale, id, expected) in [
        ("limited", "a", Outcome::Created),
        ("limited", "b", Outcome::Rejected(Reason::PurchaseLimit)),
        ("early", "c", Outcome::Rejected(Reason::NotOpen)),
        ("late", "d", Outcome::Rejected(Reason::Closed)),
        ("plain", "e", Outcome::Rejected(Reason::Expired)),
        ("early", "f", Outcome::Rejected(Reason::NotOpen)),
    ] {
        assert_eq!(check::outcome(&stage, sale, id).await, Some(expected), "{id}");
    }
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn two_workers_share_the_queue_and_a_clock_16_minutes_fast_expires_nobody() {
    let mut stage = Stage::new("two").await;
    stage.open(Sale { per_user_limit: Some(2), ..sale("s", 150) }).await;
    let mut all = Vec::new();
    for n in 0..900 {
        all.push(order(&format!("o-{n}"), "s", &format!("u-{}", n % 100), 1));
    }
    // Every order three times over.
    for _ in 0..3 {
        stage.post_orders(&all).await;
    }
    let first = stage.worker().await;
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let mut skewed = stage.deployment.app.worker(&adapters);
    skewed.clock = Arc::new(|| Utc::now() + TimeDelta::minutes(16));
    let second = Running::start(skewed);
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!((totals.created, totals.rejected + totals.sold_out), (150, 750));
    let limited = check::outcomes(&stage, &all).await;
    assert!(!limited.contains(&Outcome::Rejected(Reason::Expired)));
    check::empty(&stage).await;
    first.stop().await;
    second.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_intent_with_reply_to_is_answered_there() {
    let mut stage = Stage::new("reply").await;
    stage.open(sale("s", 1)).await;
    let worker = stage.worker().await;
    let reply = crate::harness::ask(&stage, &order("o", "s", "u", 1)).await;
    assert_eq!((&reply["sale_id"], &reply["order_id"]), (&"s".into(), &"o".into()));
    assert_eq!(reply["outcome"], "created");
    assert_eq!(stage.event().await, reply);
    worker.stop().await;
    stage.remove().await;
}

/// Each copy costs the broker a message for each sale that ends, with many workers more than the orders do.
#[tokio::test]
async fn workers_do_not_get_the_news_of_sales() {
    let stage = Stage::new("news").await;
    let worker = stage.worker().await;
    let at = Utc::now();
    let sold_out = SoldOut { sale_id: sale("s", 1).id, version: 1, stock: 1, at };
    let published = stage.broker.publish(&[Message::Event(&Event::sold_out(&sold_out))]).await;
    assert_eq!(published.receipts, [Receipt::NoSubscriber]);
    worker.stop().await;
    stage.remove().await;
}
