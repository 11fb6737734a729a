//! Orders that wait on delay queues: they hold up nobody, and take the time along that the ledger
//! gave them.

use std::sync::atomic::Ordering;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use floodgate::broker::{Deliveries, Delivery, Queue};
use floodgate::domain::order::Order;

use crate::harness::check::{self, Totals};
use crate::harness::deployment::Deployment;
use crate::harness::users::{Users, checked_sale, until_decided, with_users};
use crate::harness::{PATIENCE, Stage, body, order, orders, sale, until};

#[tokio::test]
async fn thousands_that_wait_for_the_user_service_hold_up_no_other_sale() {
    const WAITING: usize = 3000;
    let mut stage = Stage::new("deferral").await;
    stage.open(checked_sale("away", 3000)).await;
    stage.open(sale("s", 500)).await;
    let waiting: Vec<Order> =
        (0..WAITING).map(|n| order(&format!("away-{n}"), "away", &format!("a-{n}"), 1)).collect();
    let plain = orders("s", 1000);
    stage.post_orders(&waiting).await;
    stage.post_orders(&plain[..500]).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until_decided(stage.ledger.as_ref(), &plain[..500]).await;
    // Now all of them wait, and come back now and then.
    until(async || stage.broker.depth(Queue::Intents).await.expect("depth").messages == 0).await;
    stage.post_orders(&plain[500..]).await;
    until_decided(stage.ledger.as_ref(), &plain[500..]).await;
    let keys: Vec<_> = waiting.iter().map(Order::key).collect();
    let decisions = stage.ledger.decisions(&keys).await.expect("decisions");
    assert!(decisions.iter().all(Option::is_none), "they wait");

    users.out.store(false, Ordering::SeqCst);
    let totals = check::settled(&mut stage, &[waiting, plain].concat()).await;
    assert_eq!(totals, Totals { created: WAITING + 500, sold_out: 500, rejected: 0 });
    assert_eq!(stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages, 0);
    worker.stop().await;
    stage.remove().await;
}

async fn next(returned: &mut Deliveries) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, returned.next()).await;
    next.expect("back in time").expect("a delivery")
}

/// The bodies of `count` orders that come back from their delay, by order id. They are given back to
/// their queue.
async fn bodies_that_come_back(deployment: &Deployment, count: usize) -> Vec<Vec<u8>> {
    let mut returned = deployment.broker().consume(Queue::Returned, 100).await.expect("consume");
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let delivery = next(&mut returned).await;
        assert!(!delivery.redelivered, "it was deferred, and not only given back");
        deliveries.push(delivery);
    }
    returned.stop();
    let mut bodies: Vec<Vec<u8>> = deliveries.iter().map(|one| one.body.clone()).collect();
    deliveries.into_iter().for_each(Delivery::requeue);
    returned.finished().await;
    bodies.sort_unstable();
    bodies
}

fn time_in(body: &[u8]) -> DateTime<Utc> {
    let value: serde_json::Value = serde_json::from_slice(body).expect("JSON");
    crate::harness::time(value["submitted_at"].as_str().expect("a time"))
}

#[tokio::test]
async fn an_order_without_a_time_keeps_the_one_that_the_ledger_gave_it() {
    for deployment in Deployment::both("carried").await {
        deployment.open(&checked_sale("s", 10)).await;
        let [missing, later, told] =
            ["a", "b", "c"].map(|id| order(id, "s", &format!("u-{id}"), 1));
        let before = Utc::now().trunc_subsecs(3);
        let later = floodgate::domain::intent::to_json(&later, before + TimeDelta::hours(1));
        // A time that the ledger need not correct stays as it was written, to the byte.
        let told = String::from_utf8(body(&told)).expect("UTF-8");
        let at = (before - TimeDelta::seconds(9)).to_rfc3339();
        let told = told.replace('}', &format!(" , \"submitted_at\":\"{at}\" }}")).into_bytes();
        deployment.post(&[body(&missing), later, told.clone()]).await;
        // Without a user service they can only be deferred.
        let worker = deployment.worker(None).await;
        deployment.drain(worker).await;
        let after = Utc::now();

        let first = bodies_that_come_back(&deployment, 3).await;
        for body in &first[..2] {
            assert!((before..=after).contains(&time_in(body)), "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(first[2], told);
        let worker = deployment.worker(None).await;
        deployment.drain(worker).await;
        assert_eq!(bodies_that_come_back(&deployment, 3).await, first, "for good");
        deployment.remove().await;
    }
}
