//! Decisions in batches of events.

use std::collections::HashMap;

use floodgate::broker::topology::Topology;
use floodgate::broker::{PublishedAs, Queue, Topic};
use floodgate::config::Settings;
use floodgate::domain::event::order_key_of;
use floodgate::domain::event_batch::data_of;
use floodgate::domain::order::{Order, OrderKey};
use futures_util::StreamExt;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::harness::check::{self, Totals};
use crate::harness::{PATIENCE, Stage, channel, order, orders, sale, tap, until};

/// Publishes events in this form, at most six to a batch.
fn publishing(publish: PublishedAs) -> impl FnOnce(&mut Settings) {
    move |settings| {
        settings.events.publish = publish;
        settings.events.max_batch_bytes = 3000;
    }
}

/// Many orders of one sale, and some of ten others.
fn mixture() -> Vec<Order> {
    let mut all = orders("hot", 300);
    for n in 0..10 {
        let id = format!("cold-{n}");
        all.extend((0..5).map(|m| order(&format!("o-{m}"), &id, "u", 1)));
    }
    all
}

async fn open_sales(stage: &Stage) {
    stage.open(sale("hot", 100)).await;
    for n in 0..10 {
        stage.open(sale(&format!("cold-{n}"), 5)).await;
    }
}

#[tokio::test]
async fn batches_have_every_decision_and_hot_sales_have_their_own() {
    let mut stage = Stage::with("batches", publishing(PublishedAs::Batch)).await;
    open_sales(&stage).await;
    let channel = channel(&stage).await;
    let exchange =
        Topology::new(&stage.deployment.app.settings().namespace).event_batches_exchange();
    let mut batches = tap(&channel, &exchange, "#").await;
    let news = Queue::Private("news".into());
    let topics = [Topic::Events("#")];
    let mut singles = stage.broker.subscribe(news, &topics, 100).await.expect("subscribe");

    let all = mixture();
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 150, sold_out: 200, rejected: 0 });
    let (mut told, mut of_hot) = (0, 0);
    while told < all.len() {
        let next = tokio::time::timeout(PATIENCE, batches.next()).await;
        let batch = next.expect("in time").expect("a batch").expect("a delivery");
        let content_type = batch.properties.content_type().as_ref().map(ToString::to_string);
        assert_eq!(content_type.as_deref(), Some("application/cloudevents-batch+json"));
        assert_eq!(batch.properties.delivery_mode(), &Some(2));
        assert!(batch.data.len() <= 3000);
        let events: Vec<Value> = serde_json::from_slice(&batch.data).expect("JSON");
        told += events.len();
        let key = batch.routing_key.to_string();
        let sales = |event: &Value| event["data"]["sale_id"].as_str().map(str::to_owned);
        if key == "_mixed" {
            assert!(events.iter().all(|event| event["specversion"] == "1.0"));
        } else {
            assert_eq!(key, "hot");
            of_hot += events.len();
            assert!(events.iter().all(|event| sales(event).as_deref() == Some("hot")));
        }
    }
    assert!(of_hot > 200, "{of_hot}");
    // What becomes of sales is told one by one, and orders are not.
    let mut sold_out = Vec::new();
    while sold_out.len() < 11 {
        let next = tokio::time::timeout(PATIENCE, singles.next()).await;
        let event = next.expect("in time").expect("an event");
        assert!(event.properties.routing_key.starts_with("sale.sold_out."));
        sold_out.push(event.properties.routing_key.clone());
        event.ack();
    }
    singles.stop();
    singles.finished().await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn who_takes_both_gets_each_decision_in_both_forms() {
    let mut stage = Stage::with("both", publishing(PublishedAs::Both)).await;
    open_sales(&stage).await;
    let queue = Queue::Private("batches".into());
    let mut batches =
        stage.broker.subscribe(queue, &[Topic::Batches("#")], 100).await.expect("subscribe");
    let all = mixture();
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    check::settled(&mut stage, &all).await;
    let mut told: HashMap<OrderKey, Vec<u8>> = HashMap::new();
    while told.len() < all.len() {
        let batch = tokio::time::timeout(PATIENCE, batches.next()).await;
        let batch = batch.expect("in time").expect("a batch");
        for data in data_of(&batch.body).expect("a batch") {
            told.insert(order_key_of(data).expect("an order"), data.to_vec());
        }
        batch.ack();
    }
    for order in &all {
        let decision = check::decision(stage.ledger.as_ref(), &order.key()).await.expect("decided");
        assert_eq!(told[&order.key()], floodgate::domain::event::decision_json(&decision));
    }
    batches.stop();
    batches.finished().await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_subscriber_that_refuses_batches_gets_them_later() {
    let mut stage = Stage::with("batches-full", publishing(PublishedAs::Batch)).await;
    open_sales(&stage).await;
    let channel = channel(&stage).await;
    let exchange =
        Topology::new(&stage.deployment.app.settings().namespace).event_batches_exchange();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), exclusive, arguments).await.expect("declare");
    let (name, options, none) =
        (queue.name().clone(), QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(name.clone(), exchange.into(), "_mixed".into(), options, none)
        .await
        .expect("bind");
    let all = mixture();
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    // The others have them at once, and the hot sale is held up by nothing.
    check::settled(&mut stage, &all).await;
    until(async || stage.broker.deferred().await.expect("deferred") > 0).await;
    let deferred = stage.broker.deferred().await.expect("deferred");
    assert!(deferred < 300, "{deferred} orders wait, of 50 in sales of few");
    channel
        .queue_purge(name.clone(), lapin::options::QueuePurgeOptions::default())
        .await
        .expect("purge");
    let delete = lapin::options::QueueDeleteOptions::default();
    channel.queue_delete(name, delete).await.expect("delete");
    until(async || {
        let empty = async |queue| stage.broker.depth(queue).await.expect("depth").messages == 0;
        stage.broker.deferred().await.expect("deferred") == 0
            && empty(Queue::Returned).await
            && empty(Queue::Intents).await
    })
    .await;
    worker.stop().await;
    stage.remove().await;
}
