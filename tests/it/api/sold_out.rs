//! Who knows that a sale is sold out, and that it is not any more.

use chrono::Utc;
use floodgate::broker::Message;
use floodgate::domain::event::Event;
use floodgate::domain::order::{AdjustmentId, Quantity};
use floodgate::domain::sale::{Restock, SoldOut};
use serde_json::json;

use super::{order_until, refused, stage, wanted};
use crate::harness::api::{Served, answer};
use crate::harness::process::WorkerProcess;
use crate::harness::{Stage, orders, sale, sale_id};

#[tokio::test]
async fn every_process_learns_of_the_end_and_of_the_restock() {
    let mut stage = stage("known").await;
    stage.open(sale("s", 10)).await;
    let (here, there) = (
        Served::without_worker(&stage.deployment.app).await,
        Served::without_worker(&stage.deployment.app).await,
    );
    for api in [&here, &there] {
        order_until(api, "s", 202).await;
    }
    let worker = WorkerProcess::start(&stage);
    // Two units are sold by the orders above, and more than the rest by a producer on the queue.
    stage.post_orders(&orders("s", 20)).await;
    for _ in 0..22 {
        stage.event().await;
    }
    for api in [&here, &there] {
        order_until(api, "s", 410).await;
        let (_, shown) = answer(api.get("/v1/sales/s")).await;
        assert_eq!((&shown["state"], &shown["remaining"]), (&"sold_out".into(), &0.into()));
        assert!(shown["sold_out_at"].is_string());
    }

    let restock = json!({ "adjustment_id": "more", "units": 5 });
    let (_, restocked) = answer(here.post("/v1/sales/s/restock", &restock)).await;
    assert_eq!((&restocked["state"], &restocked["sold_out_at"]), (&"open".into(), &json!(null)));
    // At once where it was done, and soon elsewhere; and what is accepted is sold.
    for (api, user) in [(&here, "a"), (&there, "b")] {
        if user == "b" {
            order_until(api, "s", 202).await;
        }
        let order = api.post("/v1/sales/s/orders", &wanted(user, 1)).header("prefer", "wait=30");
        let (status, decision) = answer(order).await;
        assert_eq!((status, &decision["outcome"]), (200, &"created".into()), "{decision}");
    }
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
    here.stop().await;
    there.stop().await;
    stage.remove().await;
}

/// Tells subscribers that version `version` of sale `s` has sold out, whether or not it has.
async fn say_sold_out(stage: &Stage, version: u32) {
    let (sale_id, at) = (sale_id("s"), Utc::now());
    let event = Event::sold_out(&SoldOut { sale_id, version, stock: 1, at });
    stage.broker.publish(&[Message::Event(&event)]).await.all().expect("publish");
}

#[tokio::test]
async fn news_out_of_order_change_nothing() {
    let stage = stage("news").await;
    stage.open(sale("s", 1)).await;
    let served = Served::up(&stage.deployment.app).await;
    let order = |user: &str| {
        served.post("/v1/sales/s/orders", &wanted(user, 1)).header("prefer", "wait=30")
    };
    assert_eq!(answer(order("a")).await.1["outcome"], "created");
    order_until(&served, "s", 410).await;
    let restock = json!({ "adjustment_id": "more", "units": 50 });
    assert_eq!(answer(served.post("/v1/sales/s/restock", &restock)).await.1["version"], 2);

    // An old end, an end to come that the ledger knows nothing of, and an old restock.
    let old = Event::restocked(&Restock {
        adjustment_id: AdjustmentId::parse("old").expect("id"),
        sale_id: sale_id("s"),
        units: Quantity::new(1).expect("units"),
        version: 1,
        stock: 9,
        at: Utc::now(),
    });
    for n in 0..30 {
        match n % 3 {
            0 => say_sold_out(&stage, 1).await,
            1 => say_sold_out(&stage, 7).await,
            _ => {
                stage.broker.publish(&[Message::Event(&old)]).await.all().expect("publish");
            }
        }
        let (status, decision) = answer(order(&format!("u-{n}"))).await;
        assert_eq!((status, &decision["outcome"]), (200, &"created".into()), "{decision}");
    }
    // The true end still counts.
    assert_eq!(answer(order("rest").json(&wanted("rest", 20))).await.1["outcome"], "created");
    order_until(&served, "s", 410).await;
    refused(order("z"), 410, "sold-out").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_event_that_lies_is_corrected_by_the_ledger() {
    let stage = stage("lies").await;
    stage.open(sale("s", 100)).await;
    let served = Served::up(&stage.deployment.app).await;
    order_until(&served, "s", 202).await;
    // Events are believed, until the next look at the ledger tells better.
    super::until("an order refused", async || {
        say_sold_out(&stage, 1).await;
        let sent = served.post("/v1/sales/s/orders", &wanted("u", 1)).send().await;
        sent.expect("an answer").status() == 410
    })
    .await;
    order_until(&served, "s", 202).await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_repeat_is_queued_although_the_sale_is_said_to_be_sold_out() {
    let mut stage = stage("last").await;
    stage.open(sale("s", 1000)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let order = json!({ "order_id": "first", "user_id": "first", "quantity": 1 });
    let repeat = || served.post("/v1/sales/s/orders", &order);
    let (status, accepted) = answer(repeat()).await;
    assert_eq!(status, 202);
    let refused_without_id = async |n: usize| {
        let other = served.post("/v1/sales/s/orders", &wanted(&format!("u-{n}"), 1));
        other.send().await.expect("an answer").status() == 410
    };
    // Until the repeat was surely posted while this process took the sale for sold out.
    let mut n = 0;
    super::until("a repeat between two refusals", async || {
        n += 2;
        say_sold_out(&stage, 1).await;
        let before = refused_without_id(n).await;
        assert_eq!(answer(repeat()).await, (202, accepted.clone()));
        before && refused_without_id(n + 1).await
    })
    .await;
    let worker = stage.worker().await;
    let mut event = stage.event().await;
    while event["order_id"] != "first" {
        event = stage.event().await;
    }
    assert_eq!(event["outcome"], "created");
    assert_eq!(answer(repeat()).await, (200, event));
    worker.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_sale_opened_elsewhere_is_known_soon() {
    let stage = stage("elsewhere").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    refused(served.post("/v1/sales/s/orders", &wanted("u", 1)), 404, "unknown-sale").await;
    stage.open(sale("s", 1)).await;
    order_until(&served, "s", 202).await;
    served.stop().await;
    stage.remove().await;
}
