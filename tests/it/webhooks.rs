//! Webhooks: every event arrives, signed, whatever becomes of receivers and senders.

mod receiver;
mod registering;

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floodgate::app::App;
use floodgate::config::Settings;
use floodgate_fault_proxy::Faults;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::examples::{Running, count, example};
use crate::harness::api::{Served, answer, client, on_free_port};
use crate::harness::process::{floodgate, free_port, signal};
use crate::harness::{PATIENCE, Stage, body, orders, post, sale, through_proxy, until};
use receiver::Receiver;

/// How long the receiver fails. WEBHOOK_OUTAGE_S says another time.
fn outage() -> Duration {
    let seconds = std::env::var("WEBHOOK_OUTAGE_S").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Settings with a feed, and endpoints on this machine.
fn with_webhooks(settings: &mut Settings) {
    on_free_port(settings);
    settings.feed.enabled = true;
    settings.webhooks.allowed_networks = vec!["127.0.0.0/8".parse().expect("a network")];
    settings.webhooks.timeout = Duration::from_secs(2);
}

/// A sender in this process.
struct Sender {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Sender {
    async fn start(app: &App) -> Self {
        let adapters = app.adapters().await.expect("adapters");
        let sender = app.webhook_sender(&adapters, Arc::default()).expect("a sender");
        let stop = CancellationToken::new();
        let until = stop.clone();
        let task = tokio::spawn(async move { sender.run(until).await.expect("sent") });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic");
    }
}

/// A stage with sale `s`, an API and a worker on it, and an endpoint.
async fn with_receiver(what: &str, stock: u32) -> (Stage, Served, Receiver) {
    let stage = Stage::with(what, with_webhooks).await;
    stage.open(sale("s", stock)).await;
    let served = Served::up(&stage.deployment.app).await;
    (stage, served, Receiver::start().await)
}

/// Registers a webhook; its id and its secret.
async fn register(served: &Served, request: &Value) -> (String, String) {
    let (status, body) = answer(served.post("/v1/webhooks", request)).await;
    assert_eq!(status, 201, "{body}");
    let text = |name: &str| body[name].as_str().expect("a text").to_owned();
    (text("webhook_id"), text("secret"))
}

async fn webhook(served: &Served, id: &str) -> Value {
    let (status, body) = answer(served.get(&format!("/v1/webhooks/{id}"))).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The ids of the events of orders `o-0` and so on, and of the end of their sale.
fn events_of(sale: &str, count: usize) -> HashSet<String> {
    let orders = orders(sale, count).into_iter();
    let ids = orders.map(|order| format!("order:{sale}:{}", order.id));
    ids.chain([format!("sale:{sale}:sold_out:1")]).collect()
}

#[tokio::test]
async fn a_receiver_that_fails_gets_everything_and_one_that_hangs_delays_no_other() {
    let stage = Stage::with("webhooks", with_webhooks).await;
    stage.open(sale("s", 200)).await;
    stage.open(sale("other", 1)).await;
    let served = Served::up(&stage.deployment.app).await;
    let (failing, good, hanging) =
        (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    failing.answer(StatusCode::SERVICE_UNAVAILABLE);
    hanging.hang();
    let (failing_id, secret) = register(&served, &json!({ "url": failing.url() })).await;
    register(&served, &json!({ "url": good.url(), "sale_id": "s" })).await;
    let (hanging_id, _) = register(&served, &json!({ "url": hanging.url() })).await;
    let sender = Sender::start(&stage.deployment.app).await;
    let begun = Instant::now();
    stage.post_orders(&orders("s", 300)).await;
    stage.post_orders(&orders("other", 1)).await;
    let expected = events_of("s", 300);
    until(async || good.ids() == expected).await;
    assert!(begun.elapsed() < outage() + PATIENCE / 2, "the hanging one delays it");
    until(async || webhook(&served, &failing_id).await["state"] == "failing").await;
    let told = webhook(&served, &failing_id).await;
    assert_eq!(told["reason"], "it answered 503: as the test wants it", "{told}");
    tokio::time::sleep(outage().saturating_sub(begun.elapsed())).await;
    failing.answer(StatusCode::OK);
    let all: HashSet<String> = expected.union(&events_of("other", 1)).cloned().collect();
    let deadline = Instant::now() + PATIENCE + outage() * 2;
    while failing.ids() != all {
        assert!(Instant::now() < deadline, "{} of {}", failing.ids().len(), all.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!(
        "{} events in {:?}, {} requests",
        all.len(),
        begun.elapsed(),
        failing.requests().len()
    );
    until(async || webhook(&served, &failing_id).await["waiting"] == 0).await;
    assert_eq!(webhook(&served, &failing_id).await["state"], "active");
    let (_, described) = answer(served.get("/openapi.json")).await;
    let described = &described["webhooks"]["event"]["post"];
    let content = &described["requestBody"]["content"]["application/cloudevents+json"];
    let schema = jsonschema::validator_for(&content["schema"]).expect("a schema");
    for request in failing.requests() {
        assert!(request.is_signed_by(&secret), "{request:?}");
        assert!(schema.is_valid(&request.event()), "{}", request.event());
        for header in described["parameters"].as_array().expect("headers") {
            let name = header["name"].as_str().expect("a name");
            assert!(request.headers.contains_key(name), "{name}");
        }
    }
    let waits = webhook(&served, &hanging_id).await;
    assert_eq!(waits["state"], "failing", "{waits}");
    let path = format!("/v1/webhooks/{hanging_id}/deliveries?state=waiting&limit=1");
    let (_, listed) = answer(served.get(&path)).await;
    let delivery = &listed["deliveries"][0];
    assert_eq!(delivery["status"], Value::Null);
    assert!(delivery["answer"].as_str().is_some_and(|why| why.contains("timed out")), "{listed}");
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn what_a_killed_sender_had_under_way_another_one_sends() {
    let (stage, served, receiver) = with_receiver("webhooks-killed", 500).await;
    receiver.take(Duration::from_millis(20));
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let start = || {
        let mut command = floodgate(&stage, &["webhooks"]);
        command
            .env("FLOODGATE_WEBHOOKS__ALLOWED_NETWORKS", "127.0.0.0/8")
            .env("FLOODGATE_WEBHOOKS__MAX_IN_FLIGHT", "4")
            .stderr(Stdio::inherit());
        Running(command.spawn().expect("a sender"))
    };
    let (first, second) = (start(), start());
    stage.post_orders(&orders("s", 800)).await;
    until(async || receiver.ids().len() > 100).await;
    // Whoever of both has the webhook: it is killed, and the other one takes over when its claim has run out.
    drop(first);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = start();
    drop(second);
    let deadline = Instant::now() + PATIENCE * 2;
    while receiver.ids() != events_of("s", 800) {
        assert!(Instant::now() < deadline, "{}", receiver.ids().len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until(async || webhook(&served, &id).await["waiting"] == 0).await;
    signal(third.0.id(), "TERM");
    let mut third = third;
    assert_eq!(third.0.wait().expect("wait").code(), Some(0));
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn what_is_due_is_sent_while_the_feed_cannot_be_read() {
    let (stage, served, receiver) = with_receiver("webhooks-due", 10).await;
    receiver.answer(StatusCode::SERVICE_UNAVAILABLE);
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let mut settings = stage.deployment.app.settings().clone();
    let (proxy, through) = through_proxy(settings.amqp_url.expose_secret()).await;
    settings.amqp_url = through.into();
    let sender = Sender::start(&App::new(settings)).await;
    stage.post_orders(&orders("s", 5)).await;
    until(async || webhook(&served, &id).await["waiting"] == 5).await;
    proxy.lead_to("127.0.0.1:1");
    proxy.cut();
    receiver.answer(StatusCode::OK);
    until(async || receiver.ids().len() == 5).await;
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn no_event_is_left_out_when_connections_to_the_feed_break() {
    let (stage, served, receiver) = with_receiver("webhooks-broken", 1000).await;
    register(&served, &json!({ "url": receiver.url() })).await;
    stage.post_orders(&orders("s", 1500)).await;
    let mut settings = stage.deployment.app.settings().clone();
    let (proxy, through) = through_proxy(settings.amqp_url.expose_secret()).await;
    // Enough for the beginning of a connection and some hundred events.
    proxy.set(Faults { reset_after: Some(200_000), ..Faults::default() });
    settings.amqp_url = through.into();
    let sender = Sender::start(&App::new(settings)).await;
    let deadline = Instant::now() + PATIENCE * 2;
    while receiver.ids() != events_of("s", 1500) {
        assert!(Instant::now() < deadline, "{}", receiver.ids().len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_receiver_with_the_public_library_ships_each_order_once_although_it_is_killed() {
    let stage = Stage::with("webhooks-python", with_webhooks).await;
    stage.open(sale("s", 300)).await;
    let served = Served::up(&stage.deployment.app).await;
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/");
    let (id, secret) = register(&served, &json!({ "url": url })).await;
    let database_url = stage.deployment.app.settings().database_url.clone();
    let start = |secrets: &str| {
        let mut command = example("python", "webhook");
        command.env("SECRETS", secrets).env("PORT", port.to_string());
        command.env("DATABASE_URL", database_url.expose_secret()).stderr(Stdio::null());
        Running(command.spawn().expect("the example"))
    };
    let receiver = start(&secret);
    until(async || client().get(&url).send().await.is_ok()).await;
    let sender = Sender::start(&stage.deployment.app).await;
    stage.post_orders(&orders("s", 400)).await;
    until(async || count(&stage, "count(*)").await > 50).await;
    drop(receiver);
    assert!(count(&stage, "count(*)").await < 300, "it was killed too late");
    let (status, made) =
        answer(served.post(&format!("/v1/webhooks/{id}/secret"), &json!({}))).await;
    assert_eq!(status, 200, "{made}");
    // Requests are signed with both: the receiver may have either.
    let receiver = start(made["secret"].as_str().expect("a secret"));
    until(async || count(&stage, "count(distinct order_id)").await == 300).await;
    until(async || webhook(&served, &id).await["waiting"] == 0).await;
    assert_eq!(count(&stage, "count(*)").await, 300);
    // One byte changed, and it is refused.
    let good = Receiver::start().await;
    let (_, other_secret) = register(&served, &json!({ "url": good.url(), "sale_id": "s" })).await;
    let replay = json!({ "sale_id": "s" });
    drop(receiver);
    let receiver = start(&other_secret);
    until(async || client().get(&url).send().await.is_ok()).await;
    let good_id = good_id(&served, &good).await;
    let (status, body) =
        answer(served.post(&format!("/v1/webhooks/{good_id}/replay"), &replay)).await;
    assert_eq!(status, 202, "{body}");
    until(async || !good.requests().is_empty()).await;
    let captured = good.requests().remove(0);
    assert_eq!(captured.send_to(&url, captured.body.clone()).await, StatusCode::NO_CONTENT);
    let mut changed = captured.body.clone();
    let last = changed.len() - 3;
    changed[last] ^= 1;
    assert_eq!(captured.send_to(&url, changed).await, StatusCode::BAD_REQUEST);
    drop(receiver);
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

async fn good_id(served: &Served, receiver: &Receiver) -> String {
    let (_, list) = answer(served.get("/v1/webhooks")).await;
    let all = list["webhooks"].as_array().expect("webhooks").iter();
    let mut found = all.filter(|webhook| webhook["url"] == receiver.url());
    found.next().expect("the webhook")["webhook_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn an_embedded_deployment_sends_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = Settings::load(None).expect("settings");
    for url in [&mut settings.amqp_url, &mut settings.redis_url, &mut settings.database_url] {
        *url = String::new().into();
    }
    settings.embedded.file = folder.path().join("floodgate.db");
    with_webhooks(&mut settings);
    let app = App::new(settings);
    let served = Served::up(&app).await;
    app.ledger().await.expect("a ledger").open(&[sale("s", 100)]).await.expect("open");
    let receiver = Receiver::start().await;
    let broker = app.broker().await.expect("a broker");
    let post_some = async |from: usize, to: usize| {
        let bodies: Vec<Vec<u8>> = orders("s", to)[from..].iter().map(body).collect();
        post(broker.as_ref(), &bodies).await;
    };
    // What was published long before is not sent.
    post_some(0, 20).await;
    until(async || answer(served.get("/v1/sales/s")).await.1["sold"] == 20).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let sender = Sender::start(&app).await;
    post_some(20, 150).await;
    let new: HashSet<String> =
        events_of("s", 150).difference(&events_of("s", 20)).cloned().collect();
    let expected: HashSet<String> =
        new.into_iter().chain(["sale:s:sold_out:1".to_owned()]).collect();
    until(async || receiver.ids() == expected).await;
    let (status, body) =
        answer(served.post(&format!("/v1/webhooks/{id}/replay"), &json!({ "sale_id": "s" }))).await;
    assert_eq!((status, &body["replaying"]), (202, &json!("s")), "{body}");
    until(async || receiver.ids() == events_of("s", 150)).await;
    until(async || webhook(&served, &id).await["replaying"].is_null()).await;
    let (status, body) =
        answer(served.post(
            &format!("/v1/webhooks/{id}/replay"),
            &json!({ "since": "2026-01-01T00:00:00Z" }),
        ))
        .await;
    assert_eq!(status, 202, "{body}");
    let before = receiver.requests().len();
    until(async || receiver.requests().len() >= before + 151).await;
    assert_eq!(receiver.ids(), events_of("s", 150));
    sender.stop().await;
    served.stop().await;
    app.close().await;
}
