//! Decisions that are published again, from the ledger.

use std::collections::HashMap;

use floodgate::broker::PublishedAs;
use floodgate::broker::topology::Topology;
use futures_util::StreamExt;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions};
use lapin::types::FieldTable;

use crate::harness::process::run;
use crate::harness::{PATIENCE, Stage, channel, check, orders, sale, tap, unique};

const ORDERS: usize = 2500;

#[tokio::test]
async fn decisions_come_again_as_they_were_to_those_who_ask_for_them() {
    let mut stage = Stage::new("replay-events").await;
    stage.open(sale("s", 1000)).await;
    let channel = channel(&stage).await;
    let names = Topology::new(&stage.deployment.app.settings().namespace);
    let mut first = tap(&channel, &names.events_exchange(), "order.#").await;
    let all = orders("s", ORDERS);
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    check::settled(&mut stage, &all).await;
    worker.stop().await;
    let mut told: HashMap<String, (Vec<u8>, String)> = HashMap::new();
    let take = async |messages: &mut lapin::Consumer| {
        let event = tokio::time::timeout(PATIENCE, messages.next()).await;
        let event = event.expect("in time").expect("an event").expect("a delivery");
        let id = event.properties.message_id().clone().expect("an id").to_string();
        (id, (event.data, event.routing_key.to_string()))
    };
    while told.len() < ORDERS {
        told.extend([take(&mut first).await]);
    }

    let exchange = unique("catching-up");
    let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default());
    channel
        .exchange_declare(exchange.clone().into(), ExchangeKind::Topic, options, none)
        .await
        .expect("declare");
    let mut again = tap(&channel, &exchange, "#").await;
    let replayed = run(&stage, &["events", "replay", "s", "--to", &exchange, "--json"]);
    assert!(replayed.status.success(), "{replayed:?}");
    let summary: serde_json::Value = serde_json::from_slice(&replayed.stdout).expect("JSON");
    assert_eq!(summary, serde_json::json!({ "replayed": ORDERS, "without_subscriber": 0 }));
    for _ in 0..ORDERS {
        let (id, event) = take(&mut again).await;
        assert_eq!(told.remove(&id), Some(event), "{id}");
    }
    let options = ExchangeDeleteOptions::default();
    channel.exchange_delete(exchange.into(), options).await.expect("delete");

    // Without an exchange everybody gets them.
    let replayed = run(&stage, &["events", "replay", "s"]);
    assert!(replayed.status.success(), "{replayed:?}");
    check::settled(&mut stage, &all).await;
    let unknown = run(&stage, &["events", "replay", "t"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no sale t"));
    stage.remove().await;
}

#[tokio::test]
async fn decisions_come_again_in_batches_where_those_are_published() {
    let batches = |settings: &mut floodgate::config::Settings| {
        settings.events.publish = PublishedAs::Batch;
    };
    let mut stage = Stage::with("replay-batches", batches).await;
    stage.open(sale("s", 10)).await;
    let all = orders("s", 40);
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    check::settled(&mut stage, &all).await;
    worker.stop().await;
    let replayed = run(&stage, &["events", "replay", "s", "--json"]);
    assert!(replayed.status.success(), "{replayed:?}");
    check::settled(&mut stage, &all).await;
    stage.remove().await;
}
