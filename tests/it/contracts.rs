//! The contracts for machines: the files in `docs/contracts`, and real messages of every kind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use floodgate::app::App;
use floodgate::broker::PublishedAs;
use floodgate::broker::topology::Topology;
use floodgate::config::Settings;
use futures_util::StreamExt;
use jsonschema::Validator;
use lapin::message::Delivery;
use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Consumer, ExchangeKind};
use serde_json::{Map, Value, json};

use crate::harness::process::{bare_floodgate, run};
use crate::harness::{PATIENCE, Stage, channel, root, sale, tap};

fn folder() -> PathBuf {
    root().join("docs/contracts")
}

#[test]
fn the_files_are_what_the_command_prints() {
    let print = |arguments: &[&str]| {
        let printed = bare_floodgate(arguments).output().expect("floodgate");
        assert!(printed.status.success(), "{printed:?}");
        String::from_utf8(printed.stdout).expect("UTF-8")
    };
    let mut expected = BTreeMap::new();
    for name in print(&["contract"]).lines() {
        expected.insert(format!("{name}.json"), print(&["contract", name]));
    }
    let files = std::fs::read_dir(folder()).expect("docs/contracts").map(|file| {
        let file = file.expect("a file");
        let text = std::fs::read_to_string(file.path()).expect("UTF-8");
        (file.file_name().into_string().expect("UTF-8"), text)
    });
    let files: BTreeMap<String, String> = files.collect();
    assert!(files.keys().eq(expected.keys()), "{:?} {:?}", files.keys(), expected.keys());
    for (name, text) in expected {
        assert!(files[&name] == text, "{name} is another; scripts/contracts --write makes it new");
    }
    let unknown = bare_floodgate(&["contract", "Nothing"]).output().expect("floodgate");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unknown.stderr)
            .contains("accepted: openapi, asyncapi, CloudEvent")
    );
}

/// A schema, and what was checked by it.
struct Checked {
    schema: Value,
    validator: Validator,
    /// Properties that something had.
    seen: BTreeSet<String>,
}

impl Checked {
    fn new(app: &App, name: &str) -> Self {
        let schema = app.contracts().schema(name).unwrap_or_else(|| panic!("no schema {name}"));
        let options = jsonschema::draft202012::options().should_validate_formats(true);
        let validator = options.build(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { schema, validator, seen: BTreeSet::new() }
    }

    fn properties(&self) -> BTreeSet<String> {
        self.schema["properties"].as_object().expect("an object").keys().cloned().collect()
    }

    /// `message` is as the schema says, and has nothing that the schema does not tell of.
    fn check(&mut self, message: &Value) {
        let errors: Vec<String> =
            self.validator.iter_errors(message).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{message}: {errors:?}");
        let had: BTreeSet<String> =
            message.as_object().expect("an object").keys().cloned().collect();
        assert!(had.is_subset(&self.properties()), "{had:?} is more than {:?}", self.properties());
        self.seen.extend(had);
    }

    /// Everything that the schema tells of was there.
    fn must_be_complete(self) {
        assert_eq!(self.seen, self.properties());
    }
}

fn body(message: &Delivery) -> Value {
    serde_json::from_slice(&message.data).expect("JSON")
}

/// The headers that are texts.
fn headers(message: &Delivery) -> Map<String, Value> {
    let table = message.properties.headers().clone().unwrap_or_default();
    let texts = table.inner().iter().filter_map(|(name, value)| match value {
        AMQPValue::LongString(text) => Some((name.to_string(), json!(text.to_string()))),
        _ => None,
    });
    texts.collect()
}

async fn next(messages: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, messages.next()).await;
    next.expect("in time").expect("a message").expect("a delivery")
}

fn texts(headers: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, text) in headers {
        table.insert((*name).into(), AMQPValue::LongString((*text).into()));
    }
    table
}

/// Orders of each outcome, some that become dead letters, and a restock.
async fn sell(stage: &Stage, channel: &lapin::Channel, reply_to: &str) {
    let exchange = names(stage).intents_exchange();
    let trace = texts(&[
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "shop=1"),
    ]);
    let properties = BasicProperties::default().with_headers(trace);
    let asking = properties.clone().with_reply_to(reply_to.into()).with_correlation_id("c".into());
    let own = texts(&[("own", &"x".repeat(5000))]);
    let odd = BasicProperties::default()
        .with_headers(own)
        .with_priority(3)
        .with_expiration("600000".into());
    let good = |id: &str, user: &str| json!({ "order_id": id, "sale_id": "s", "user_id": user, "quantity": 1, "later": [1] });
    let mut all =
        vec![good("o-1", "u-1"), good("o-2", "u-1"), good("o-3", "u-3"), good("o-4", "u-4")];
    all[0]["submitted_at"] = json!("2126-11-27T08:00:00+01:00");
    all[1]["submitted_at"] = Value::Null;
    let message = Checked::new(&stage.deployment.app, "IntentMessage");
    for (body, properties) in
        [(json!(all), asking), (json!({ "order_id": 1 }), odd), (good("o-5", "u-5"), properties)]
    {
        let is_good = body["order_id"] != json!(1);
        assert_eq!(message.validator.is_valid(&body), is_good, "{body}");
        channel
            .basic_publish(
                exchange.clone().into(),
                "s".into(),
                BasicPublishOptions::default(),
                body.to_string().as_bytes(),
                properties,
            )
            .await
            .expect("publish");
    }
}

fn names(stage: &Stage) -> Topology {
    Topology::new(&stage.deployment.app.settings().namespace)
}

#[tokio::test]
async fn every_kind_of_message_is_as_its_schema_says() {
    let both = |settings: &mut Settings| settings.events.publish = PublishedAs::Both;
    let stage = Stage::with("contracts", both).await;
    let mut limited = sale("s", 2);
    limited.per_user_limit = Some(1);
    stage.open(limited).await;
    let (channel, names) = (channel(&stage).await, names(&stage));
    let mut events = tap(&channel, &names.events_exchange(), "#").await;
    let mut batches = tap(&channel, &names.event_batches_exchange(), "#").await;
    let mut dead = tap(&channel, &names.dead_exchange(), "#").await;
    let mut replies = tap(&channel, &names.events_exchange(), "nothing").await;
    sell(&stage, &channel, replies.queue().as_str()).await;
    let worker = stage.worker().await;

    let checked = |name: &str| Checked::new(&stage.deployment.app, name);
    let [mut decision, mut head, mut sold_out, mut restocked, mut in_batch] =
        ["Decision", "EventHeaders", "SaleSoldOut", "SaleRestocked", "CloudEvent"].map(checked);
    let (mut decisions, mut news) = (0, BTreeSet::new());
    while decisions < 5 || news.len() < 2 {
        let event = next(&mut events).await;
        head.check(&Value::Object(headers(&event)));
        let key = event.routing_key.to_string();
        match key.split('.').nth(1).filter(|_| key.starts_with("sale.")) {
            None => {
                decision.check(&body(&event));
                decisions += 1;
            }
            Some("sold_out") => {
                sold_out.check(&body(&event));
                let restock = ["sale", "restock", "s", "--units", "1", "--adjustment-id", "a-1"];
                let restock = run(&stage, &restock);
                assert!(restock.status.success(), "{restock:?}");
            }
            Some(_) => restocked.check(&body(&event)),
        }
        if key.starts_with("sale.") {
            news.insert(key);
        }
    }
    let batch = Checked::new(&stage.deployment.app, "EventBatch");
    let mut told = 0;
    while told < 5 {
        let events = body(&next(&mut batches).await);
        assert!(batch.validator.is_valid(&events), "{events}");
        let events = events.as_array().expect("an array");
        for event in events {
            in_batch.check(event);
        }
        told += events.len();
    }
    for _ in 0..4 {
        let reply = next(&mut replies).await;
        head.check(&Value::Object(headers(&reply)));
        decision.check(&body(&reply));
    }
    let mut why = Checked::new(&stage.deployment.app, "DeadLetterHeaders");
    let letter = next(&mut dead).await;
    let of_floodgate =
        headers(&letter).into_iter().filter(|(name, _)| name.starts_with("floodgate-"));
    why.check(&Value::Object(of_floodgate.collect()));
    for complete in [decision, head, sold_out, restocked, in_batch, why] {
        complete.must_be_complete();
    }
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn exchanges_and_queues_are_as_asyncapi_says() {
    let stage = Stage::new("asyncapi").await;
    let document = stage.deployment.app.contracts().asyncapi();
    let channel = channel(&stage).await;
    let (mut exchanges, mut queues) = (0, 0);
    // RabbitMQ refuses to declare again what is there and is otherwise (its page on queues, "equivalence").
    for (name, described) in document["channels"].as_object().expect("channels") {
        let amqp = &described["bindings"]["amqp"];
        let is = |value: &Value| value.as_bool().expect("true or false");
        if let Some(exchange) = amqp["exchange"]["name"].as_str() {
            assert_eq!(amqp["exchange"]["type"], "topic");
            let options = ExchangeDeclareOptions {
                durable: is(&amqp["exchange"]["durable"]),
                auto_delete: is(&amqp["exchange"]["autoDelete"]),
                ..Default::default()
            };
            let none = FieldTable::default();
            let declared =
                channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, none);
            declared.await.unwrap_or_else(|error| panic!("{name}: {error}"));
            exchanges += 1;
        }
        if let Some(queue) = amqp["queue"]["name"].as_str() {
            let options = QueueDeclareOptions {
                durable: is(&amqp["queue"]["durable"]),
                exclusive: is(&amqp["queue"]["exclusive"]),
                auto_delete: is(&amqp["queue"]["autoDelete"]),
                ..Default::default()
            };
            let mut arguments = FieldTable::default();
            for (name, value) in described["x-queue-arguments"].as_object().expect("arguments") {
                let value = match value.as_i64() {
                    Some(number) => AMQPValue::LongLongInt(number),
                    None => AMQPValue::LongString(value.as_str().expect("a text").into()),
                };
                arguments.insert(name.as_str().into(), value);
            }
            let declared = channel.queue_declare(queue.into(), options, arguments);
            declared.await.unwrap_or_else(|error| panic!("{name}: {error}"));
            queues += 1;
        }
    }
    assert_eq!((exchanges, queues), (5, 2));
    stage.remove().await;
}
