//! Messages that break something: each hurts only itself.

use std::time::Duration;

use floodgate::broker::topology::Topology;
use floodgate::broker::{Delivery, Queue};
use floodgate::config::Settings;
use floodgate::domain::decision::Outcome;
use floodgate::domain::order::Order;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};

use crate::harness::process::WorkerProcess;
use crate::harness::{Stage, body, channel, order, orders, sale, until};

fn names(stage: &Stage) -> Topology {
    Topology::new(&stage.deployment.app.settings().namespace)
}

/// Publishes a message to the intents, with properties as a producer may set them.
async fn publish(channel: &Channel, stage: &Stage, bytes: &[u8], properties: BasicProperties) {
    publish_to(channel, &names(stage).intents_exchange(), bytes, properties).await;
}

async fn publish_to(channel: &Channel, exchange: &str, bytes: &[u8], properties: BasicProperties) {
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(exchange.into(), "s".into(), options, bytes, properties)
        .await
        .expect("publish")
        .await
        .expect("confirm");
}

fn asking(reply_to: &str) -> BasicProperties {
    BasicProperties::default().with_reply_to(reply_to.into()).with_correlation_id("c".into())
}

/// A queue that takes one message and refuses every other, bound to `exchange`.
async fn full_queue(channel: &Channel, exchange: &str, routing_key: &str) -> String {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), exclusive, arguments).await.expect("declare");
    let name = queue.name().to_string();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(name.clone().into(), exchange.into(), routing_key.into(), options, none)
        .await
        .expect("bind");
    name
}

/// How many events of `orders` there are in all, once none has come for a while.
async fn count_events(stage: &mut Stage) -> usize {
    let mut count = 0;
    while let Ok(Some(event)) =
        tokio::time::timeout(Duration::from_secs(2), stage.events.next()).await
    {
        event.ack();
        count += 1;
    }
    count
}

#[tokio::test]
async fn replies_that_cannot_be_sent_delay_and_repeat_no_event() {
    let mut stage = Stage::new("replies").await;
    stage.open(sale("s", 1000)).await;
    let channel = channel(&stage).await;
    let full = full_queue(&channel, &names(&stage).events_exchange(), "nothing").await;
    let own = names(&stage).queue(&Queue::Intents);
    let dead = names(&stage).queue(&Queue::DeadLetters);
    let bad = [
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMTQ0MDE5NDIAAA.forged==",
        "amq.rabbitmq.reply-to.nothing",
        "no-such-queue",
        &full,
        &own,
        &dead,
        "",
    ];
    let all = orders("s", 600);
    for (n, order) in all.iter().enumerate() {
        let properties =
            if n % 20 == 0 { asking(bad[n / 20 % bad.len()]) } else { BasicProperties::default() };
        publish(&channel, &stage, &body(order), properties).await;
    }
    let worker = stage.worker().await;
    let asked = crate::harness::ask(&stage, &order("asked", "s", "asker", 1)).await;
    assert_eq!(asked["outcome"], "created", "neighbours get their replies");
    assert_eq!(count_events(&mut stage).await, all.len() + 1, "each once");
    for queue in [Queue::Intents, Queue::DeadLetters] {
        assert_eq!(stage.broker.depth(queue).await.expect("depth").messages, 0);
    }
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_full_subscriber_holds_up_the_orders_it_refuses_and_no_others() {
    let mut stage = Stage::new("full-subscriber").await;
    stage.open(sale("s", 1000)).await;
    stage.open(sale("t", 1000)).await;
    let channel = channel(&stage).await;
    let exchange = names(&stage).events_exchange();
    let full = full_queue(&channel, &exchange, "order.created.s").await;
    let refused: Vec<Order> =
        (0..100).map(|n| order(&format!("s-{n}"), "s", &format!("u-{n}"), 1)).collect();
    let others: Vec<Order> =
        (0..300).map(|n| order(&format!("t-{n}"), "t", &format!("u-{n}"), 1)).collect();
    stage.post_orders(&refused).await;
    let worker = stage.worker().await;
    stage.post_orders(&others).await;
    let mut told = std::collections::HashMap::<String, usize>::new();
    while told.keys().filter(|id| id.starts_with("t-")).count() < others.len() {
        let event = stage.event().await;
        *told.entry(event["order_id"].as_str().expect("id").to_owned()).or_default() += 1;
    }
    // It can stop at any time: the orders wait at the broker.
    worker.stop().await;
    channel.queue_delete(full.into(), QueueDeleteOptions::default()).await.expect("delete");
    let worker = stage.worker().await;
    while told.len() < refused.len() + others.len() {
        let event = stage.event().await;
        *told.entry(event["order_id"].as_str().expect("id").to_owned()).or_default() += 1;
    }
    let (of_others, most) = told.iter().fold((0, 0), |(of_others, most), (id, count)| {
        (of_others + if id.starts_with("t-") { *count } else { 0 }, most.max(*count))
    });
    assert_eq!(of_others, others.len(), "each once");
    assert!(most <= 4, "an event came {most} times");
    let keys: Vec<_> = refused.iter().chain(&others).map(Order::key).collect();
    let decided = stage.ledger.decisions(&keys).await.expect("decisions");
    assert!(decided.iter().flatten().all(|decision| decision.outcome == Outcome::Created));
    assert_eq!(decided.iter().flatten().count(), keys.len());
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_full_queue_of_dead_letters_holds_up_no_order() {
    let mut stage = Stage::new("full-dead").await;
    stage.open(sale("s", 1000)).await;
    let channel = channel(&stage).await;
    let exchange = names(&stage).dead_exchange();
    let full = full_queue(&channel, &exchange, "#").await;
    stage.post(&["bad 1", "bad 2", "bad 3"]).await;
    let all = orders("s", 100);
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    for _ in 0..all.len() {
        stage.event().await;
    }
    worker.stop().await;
    channel.queue_delete(full.into(), QueueDeleteOptions::default()).await.expect("delete");
    let worker = stage.worker().await;
    let mut letters = std::collections::BTreeSet::new();
    while letters.len() < 3 {
        letters.extend(stage.dead_letters(1).await);
    }
    worker.stop().await;
    stage.remove().await;
}

/// A header table of about `bytes` bytes.
fn headers(bytes: usize) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("padding".into(), AMQPValue::LongString("x".repeat(bytes).into()));
    BasicProperties::default().with_headers(headers)
}

/// Has every intent delivered once, to a consumer that is lost.
async fn come_back(stage: &Stage) {
    let channel = channel(stage).await;
    let none = FieldTable::default();
    let name = names(stage).queue(&Queue::Intents);
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(name.into(), "".into(), options, none).await;
    let _consumer = consumer.expect("consume");
    until(async || stage.broker.depth(Queue::Intents).await.expect("depth").messages == 0).await;
    channel.close(200, "lost".into()).await.expect("close");
    until(async || stage.broker.depth(Queue::Intents).await.expect("depth").messages > 0).await;
}

#[tokio::test]
async fn orders_whose_headers_fill_a_frame_are_decided_like_their_neighbours() {
    let few = |settings: &mut Settings| settings.intent.delivery_limit = 10;
    let mut stage = Stage::with("headers", few).await;
    stage.open(sale("s", 1000)).await;
    let channel = channel(&stage).await;
    let all = orders("s", 300);
    for (n, order) in all.iter().enumerate() {
        let properties = match n {
            50 => headers(120_000),
            150 => headers(131_015),
            151 | 250 => headers(131_030),
            _ => BasicProperties::default(),
        };
        publish(&channel, &stage, &body(order), properties).await;
    }
    come_back(&stage).await;
    let worker = stage.worker().await;
    for _ in 0..all.len() {
        assert_eq!(stage.event().await["outcome"], "created");
    }
    for queue in [Queue::DeadLetters, Queue::Intents] {
        until(async || stage.broker.depth(queue.clone()).await.expect("depth").messages == 0).await;
    }
    worker.stop().await;
    stage.remove().await;
}

/// Has a message as large as fits dead-lettered by RabbitMQ, by bringing it back too often, which makes it the
/// `count`th dead letter.
async fn bury(
    channel: &Channel,
    stage: &Stage,
    bytes: &[u8],
    properties: BasicProperties,
    count: u32,
) {
    publish(channel, stage, bytes, properties).await;
    until(async || {
        if stage.broker.depth(Queue::Intents).await.expect("depth").messages > 0 {
            // Its frames do not fit, which ends the connection.
            let lost = crate::harness::channel(stage).await;
            let name = names(stage).queue(&Queue::Intents);
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = lost.basic_consume(name.into(), "".into(), options, none).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(consumer);
            let _ = lost.close(200, "lost".into()).await;
        }
        stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages == count
    })
    .await;
}

#[tokio::test]
async fn dead_letters_whose_headers_do_not_fit_a_frame_are_listed_redriven_and_purged() {
    let few = |settings: &mut Settings| settings.intent.delivery_limit = 1;
    let mut stage = Stage::with("unreadable", few).await;
    stage.open(sale("s", 10)).await;
    let channel = channel(&stage).await;
    let exchange = names(&stage).dead_exchange();
    let small = |n: u32| format!("small {n}").into_bytes();
    for n in 0..3_u32 {
        publish_to(&channel, &exchange, &small(n), BasicProperties::default()).await;
        let order = order(&format!("large-{n}"), "s", "u", 1);
        bury(&channel, &stage, &body(&order), headers(131_030), 2 * n + 2).await;
    }
    let json = |arguments: &[&str]| {
        let output = crate::harness::process::run(&stage, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect(&said)
    };
    for _ in 0..2 {
        let listed = json(&["dead-letters", "list", "--json"]);
        assert_eq!(listed["reasons"], serde_json::json!({ "delivery_limit": 3, "unknown": 3 }));
        let letters = listed["dead_letters"].as_array().expect("letters");
        let large = letters.iter().filter(|letter| letter["reason"] == "delivery_limit");
        for letter in large {
            assert_eq!(letter["id"].as_str().map(str::len), Some(32), "{letter}");
            assert!(letter["body"].as_str().is_some_and(|body| body.contains("large-")));
        }
    }
    let purged = json(&["dead-letters", "purge", "--reason", "unknown", "--json"]);
    assert_eq!(purged["purged"], 3);
    let redriven = json(&["dead-letters", "redrive", "--reason", "delivery_limit", "--json"]);
    assert_eq!(redriven["redriven"], 3);
    let worker = stage.worker().await;
    for _ in 0..3 {
        assert_eq!(stage.event().await["outcome"], "created");
    }
    for queue in [Queue::DeadLetters, Queue::Intents] {
        until(async || stage.broker.depth(queue.clone()).await.expect("depth").messages == 0).await;
    }
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_dead_letter_never_expires_and_says_by_its_id_what_it_is() {
    let mut stage = Stage::new("expiration").await;
    let channel = channel(&stage).await;
    for _ in 0..2 {
        let properties = BasicProperties::default().with_expiration("60000".into());
        publish(&channel, &stage, b"bad", properties.with_priority(9)).await;
    }
    publish(&channel, &stage, b"other", BasicProperties::default()).await;
    let worker = stage.worker().await;
    until(async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages == 3)
        .await;
    let mut letters = stage.broker.consume(Queue::DeadLetters, 10).await.expect("consume");
    let mut ids = Vec::new();
    for _ in 0..3 {
        let letter: Delivery = letters.next().await.expect("a letter");
        ids.push(letter.properties.dead.clone().expect("dead").id);
        letter.ack();
    }
    letters.stop();
    letters.finished().await;
    assert_eq!(ids[0], ids[1], "the same message");
    assert_ne!(ids[0], ids[2]);
    assert_eq!(ids[0].len(), 32);
    worker.stop().await;
    let _ = &mut stage;
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_consumes_again_when_its_queue_was_deleted_and_made_again() {
    let mut stage = Stage::new("cancelled").await;
    stage.open(sale("s", 10)).await;
    let worker = stage.worker().await;
    stage.post_orders(&orders("s", 1)).await;
    stage.event().await;
    for queue in [Queue::Intents, Queue::Returned] {
        crate::harness::delete_queue(&stage, queue).await;
    }
    until(async || {
        let depth = stage.broker.depth(Queue::Intents).await;
        depth.is_ok_and(|depth| depth.consumers == 1)
    })
    .await;
    stage.post_orders(&[order("again", "s", "u", 1)]).await;
    assert_eq!(stage.event().await["order_id"], "again");
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn large_messages_do_not_fill_the_memory() {
    const MESSAGES: usize = 2000;
    let mut stage = Stage::new("memory").await;
    stage.open(sale("s", 9000)).await;
    let all = orders("s", MESSAGES);
    let padding = " ".repeat(250_000);
    for some in all.chunks(50) {
        let padded = some.iter().map(|order| [padding.as_bytes(), &body(order)].concat());
        stage.post(&padded.collect::<Vec<_>>()).await;
    }
    let worker = WorkerProcess::with(&stage, &[("FLOODGATE_BROKER__PREFETCH_BYTES", "8388608")]);
    for _ in 0..all.len() {
        stage.event().await;
    }
    let peak = worker.peak_bytes();
    assert!(peak < 200 << 20, "{} MiB for 500 MB of messages", peak >> 20);
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
    stage.remove().await;
}

#[test]
fn a_reason_that_does_not_exist_is_named_with_those_that_do() {
    for command in ["list", "redrive", "purge"] {
        let arguments = ["dead-letters", command, "--reason", "bad-json"];
        let refused = crate::harness::process::bare_floodgate(&arguments).output().expect("runs");
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("bad-json") && said.contains("bad_json"), "{said}");
    }
}
