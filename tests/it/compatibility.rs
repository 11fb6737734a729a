//! What `docs/compatibility.md` promises: messages, requests, settings and commands of an earlier version, kept as files,
//! work as they did. There may be more in what comes back.

use std::path::PathBuf;

use floodgate::broker::PublishedAs;
use floodgate::broker::topology::Topology;
use floodgate::config::Settings;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicPublishOptions;
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Consumer};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::harness::api::{Served, client, on_free_port};
use crate::harness::process::run;
use crate::harness::{PATIENCE, Stage, channel, root, sale, tap};

/// Stands for anything in a text that differs from run to run.
const ANY: &str = "<any>";

fn file(name: &str) -> PathBuf {
    root().join("tests/compatibility/0.3").join(name)
}

fn kept(name: &str) -> Value {
    let text = std::fs::read_to_string(file(name)).expect(name);
    serde_json::from_str(&text).expect("JSON")
}

/// Where `now` has not what `before` has; `None`: nowhere.
fn differs(before: &Value, now: &Value) -> Option<String> {
    match (before, now) {
        (Value::String(text), _) if text == ANY => None,
        (Value::String(text), Value::String(now)) => {
            let (start, end) = text.split_once(ANY).unwrap_or((text, ""));
            let fits = if text.contains(ANY) {
                now.len() >= start.len() + end.len() && now.starts_with(start) && now.ends_with(end)
            } else {
                text == now
            };
            (!fits).then(|| format!("{now:?} is not {text:?}"))
        }
        (Value::Object(before), Value::Object(now)) => before.iter().find_map(|(name, value)| {
            let Some(now) = now.get(name) else { return Some(format!("no {name}")) };
            differs(value, now).map(|what| format!("{name}: {what}"))
        }),
        (Value::Array(before), Value::Array(now)) if before.len() == now.len() => {
            before.iter().zip(now).find_map(|(before, now)| differs(before, now))
        }
        _ => (before != now).then(|| format!("{now} is not {before}")),
    }
}

/// Waits until each of `before` has come. Others may come, and some twice.
async fn come(messages: &mut Consumer, before: &Value) {
    let before = before.as_array().expect("an array");
    let mut now: Vec<Value> = Vec::new();
    for one in before {
        while now.iter().all(|now| differs(one, now).is_some()) {
            let next = tokio::time::timeout(PATIENCE, messages.next()).await;
            let Ok(next) = next else {
                let reasons: Vec<String> = now.iter().filter_map(|now| differs(one, now)).collect();
                panic!("{one}\ndoes not come: {reasons:#?}");
            };
            let delivery = next.expect("a message").expect("a delivery");
            let events = message(&delivery);
            // A batch is taken apart.
            match events["body"].as_array() {
                Some(events) => now.extend(events.iter().cloned()),
                None => now.push(events),
            }
        }
    }
}

fn text(value: Option<&lapin::types::ShortString>) -> Value {
    value.map_or(Value::Null, |text| json!(text.to_string()))
}

/// A message as the files have it.
fn message(delivery: &Delivery) -> Value {
    let properties = &delivery.properties;
    let headers: Map<String, Value> = properties
        .headers()
        .iter()
        .flat_map(lapin::types::FieldTable::inner)
        .filter_map(|(name, value)| match value {
            AMQPValue::LongString(text) => Some((name.to_string(), json!(text.to_string()))),
            _ => None,
        })
        .collect();
    json!({
        "routing_key": delivery.routing_key.to_string(),
        "properties": {
            "content_type": text(properties.content_type().as_ref()),
            "delivery_mode": properties.delivery_mode(),
            "message_id": text(properties.message_id().as_ref()),
            "correlation_id": text(properties.correlation_id().as_ref()),
            "type": text(properties.kind().as_ref()),
            "app_id": text(properties.app_id().as_ref()),
        },
        "headers": headers,
        "body": serde_json::from_slice(&delivery.data).unwrap_or(Value::Null),
        "text": String::from_utf8_lossy(&delivery.data),
    })
}

#[tokio::test]
async fn orders_of_earlier_producers_are_decided_and_earlier_subscribers_understand_what_they_get()
{
    let kept = kept("rabbitmq.json");
    let both = |settings: &mut Settings| settings.events.publish = PublishedAs::Both;
    let stage = Stage::with("compatibility", both).await;
    let mut limited = sale("s", 2);
    limited.per_user_limit = Some(1);
    stage.open(limited).await;
    let names = Topology::new(&stage.deployment.app.settings().namespace);
    let channel = channel(&stage).await;
    let mut events = tap(&channel, &names.events_exchange(), "#").await;
    let mut batches = tap(&channel, &names.event_batches_exchange(), "#").await;
    let mut dead = tap(&channel, &names.dead_exchange(), "#").await;
    let mut replies = tap(&channel, &names.events_exchange(), "nothing").await;
    let worker = stage.worker().await;
    let asking = BasicProperties::default()
        .with_reply_to(replies.queue())
        .with_correlation_id("question".into());
    for intent in kept["intents"].as_array().expect("intents") {
        let (exchange, options) = (names.intents_exchange(), BasicPublishOptions::default());
        let body = intent.as_str().expect("a text").as_bytes();
        let published =
            channel.basic_publish(exchange.into(), "s".into(), options, body, asking.clone());
        published.await.expect("publish");
    }
    come(&mut events, &kept["events"]).await;
    let restocked =
        run(&stage, &["sale", "restock", "s", "--units", "1", "--adjustment-id", "a-1"]);
    assert!(restocked.status.success(), "{restocked:?}");
    come(&mut events, &kept["restocked"]).await;
    come(&mut batches, &kept["in_batches"]).await;
    come(&mut replies, &kept["replies"]).await;
    come(&mut dead, &kept["dead_letters"]).await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn earlier_clients_get_the_answers_they_know() {
    let stage = Stage::with("compatibility-http", on_free_port).await;
    let served = Served::up(&stage.deployment.app).await;
    for exchange in kept("http.json").as_array().expect("an array") {
        let asked = &exchange["request"];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let method: Method = text(&asked["method"]).parse().expect("a method");
        let url = format!("{}{}", served.url(), text(&asked["path"]));
        let mut request = client().request(method, url);
        for (name, value) in asked["headers"].as_object().expect("headers") {
            request = request.header(name, text(value));
        }
        if !asked["body"].is_null() {
            request = request.json(&asked["body"]);
        }
        let response = request.send().await.expect("an answer");
        let headers: Map<String, Value> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value.to_str().expect("a text"))))
            .collect();
        let status = response.status().as_u16();
        let body = response.text().await.expect("a body");
        let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
        let now = json!({ "status": status, "headers": headers, "body": body });
        let mut before = exchange["answer"].clone();
        if before["body"].is_null() {
            before["body"] = json!(ANY);
        }
        assert_eq!(differs(&before, &now), None, "{asked}\n{now}");
    }
    served.stop().await;
    stage.remove().await;
}

#[test]
fn earlier_settings_are_read() {
    Settings::load(Some(&file("settings.toml"))).expect("settings");
}

#[tokio::test]
async fn earlier_scripts_get_the_exit_codes_and_the_json_they_know() {
    let stage = Stage::new("compatibility-cli").await;
    for command in kept("commands.json").as_array().expect("an array") {
        let arguments = command["arguments"].as_array().expect("arguments");
        let arguments: Vec<&str> =
            arguments.iter().map(|text| text.as_str().expect("a text")).collect();
        let ran = run(&stage, &arguments);
        assert_eq!(
            ran.status.code().map(Value::from).as_ref(),
            command["exit"].as_i64().map(Value::from).as_ref(),
            "{arguments:?}: {ran:?}"
        );
        if arguments.contains(&"--json") {
            let printed: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
            if !command["prints"].is_null() {
                assert_eq!(differs(&command["prints"], &printed), None, "{arguments:?}: {printed}");
            }
        }
    }
    stage.remove().await;
}

#[test]
fn what_is_not_there_any_more_is_seen() {
    let before = json!({ "a": "x-<any>-y", "b": [1], "c": { "d": null } });
    assert_eq!(
        differs(&before, &json!({ "a": "x-1-y", "b": [1], "c": { "d": null, "e": 1 } })),
        None
    );
    for now in [
        json!({ "a": "x-1", "b": [1], "c": { "d": null } }),
        json!({ "a": "x--y", "b": [1, 2], "c": { "d": null } }),
        json!({ "a": "x--y", "b": [1], "c": {} }),
        json!({ "a": 1, "b": [1], "c": { "d": null } }),
    ] {
        assert!(differs(&before, &now).is_some(), "{now}");
    }
}
