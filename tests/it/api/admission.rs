//! What one client may have at once, and what is kept for operators and probes.

use std::time::Duration;

use floodgate::broker::{Message, Queue};
use floodgate::config::Settings;
use floodgate::metrics::Metrics;
use floodgate::status::{WorkerHealth, WorkerName, WorkerStatus};
use serde_json::json;

use super::raw::{Raw, head};
use super::tokens::{SECRET, Signer, claims};
use super::{refused, until, wanted};
use crate::harness::api::{Served, answer, json as json_of, on_free_port, problem};
use crate::harness::{Stage, orders, sale};

const ORDERS: &str = "/v1/sales/s/orders";
const STREAM: &str = "/v1/sales/s/stream";

async fn served(what: &str, set: impl FnOnce(&mut Settings)) -> (Stage, Served) {
    let stage = Stage::with(what, |settings| {
        on_free_port(settings);
        set(settings);
    })
    .await;
    stage.open(sale("s", 100)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    (stage, served)
}

#[tokio::test]
async fn one_address_has_so_many_streams_and_others_have_their_own() {
    let (stage, served) = served("streams", |settings| {
        settings.api.max_streams_per_address = 2;
        settings.api.max_streams = 3;
        settings.api.trusted_proxies = vec!["127.0.0.1/32".parse().expect("a network")];
    })
    .await;
    let follow = |client: &str| served.get(STREAM).header("x-forwarded-for", client);
    let open = async |client: &str| {
        let response = follow(client).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{client}");
        response
    };
    let first = (open("192.0.2.1").await, open("192.0.2.1").await);
    refused(follow("192.0.2.1"), 429, "too-many-at-once").await;
    // What the client itself puts into the header changes nothing.
    refused(follow("1.1.1.1, 192.0.2.1"), 429, "too-many-at-once").await;
    let other = open("192.0.2.2").await;
    refused(follow("192.0.2.3"), 503, "overloaded").await;
    drop(first.0);
    until("room", async || follow("192.0.2.3").send().await.expect("an answer").status() == 200)
        .await;
    drop((first.1, other));
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn without_trusted_proxies_nobody_can_choose_an_address() {
    let (stage, served) =
        served("spoofed", |settings| settings.api.max_streams_per_address = 1).await;
    let follow = |client: &str| served.get(STREAM).header("x-forwarded-for", client);
    let first = follow("192.0.2.1").send().await.expect("an answer");
    assert_eq!(first.status(), 200);
    refused(follow("192.0.2.2"), 429, "too-many-at-once").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn bodies_that_arrive_slowly_leave_room_for_those_that_do_not() {
    let (stage, served) = served("bodies", |settings| {
        settings.api.max_slow_bodies_per_address = 1;
        settings.api.max_in_flight = 3;
    })
    .await;
    let mut slow = Raw::open(&served).await;
    slow.send(head(40)).await;
    until("no room for a slow one", async || {
        let mut second = Raw::open(&served).await;
        second.send(format!("{}{{", head(40))).await;
        let (status, text) = second.answer().await;
        status == 429 && text.contains("/problems/too-many-at-once")
    })
    .await;
    assert_eq!(answer(served.post(ORDERS, &wanted("u", 1))).await.0, 202);
    drop(slow);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn one_buyer_and_one_address_have_so_many_requests_in_flight() {
    let (stage, served) = served("in-flight", |settings| {
        settings.api.jwt_secret = SECRET.into();
        settings.api.max_in_flight_per_buyer = 1;
        settings.api.max_in_flight_per_address = 2;
    })
    .await;
    let order = |who: &str| {
        let token = Signer::Hs256(SECRET).sign(&claims(who, ""));
        served.post(ORDERS, &json!({ "quantity": 1 })).bearer_auth(token)
    };
    // No worker decides it, so it waits.
    let waiting = tokio::spawn(order("ada").header("prefer", "wait=30").send());
    let queued = async |count| {
        until("orders queued", async || {
            stage.broker.depth(Queue::Intents).await.expect("depth").messages == count
        })
        .await;
    };
    queued(1).await;
    refused(order("ada"), 429, "too-many-at-once").await;
    let other = tokio::spawn(order("bob").header("prefer", "wait=30").send());
    queued(2).await;
    refused(order("cleo"), 429, "too-many-at-once").await;
    served.stop().await;
    for waiting in [waiting, other] {
        assert_eq!(waiting.await.expect("no panic").expect("an answer").status(), 202);
    }
    stage.remove().await;
}

#[tokio::test]
async fn operators_and_probes_are_answered_when_there_is_no_room_for_others() {
    let (stage, served) = served("kept", |settings| settings.api.max_in_flight = 1).await;
    let mut slow = Raw::open(&served).await;
    slow.send(head(40)).await;
    until("no room", async || {
        served.get("/v1/sales/s").send().await.expect("an answer").status() == 503
    })
    .await;
    let close = || served.post("/v1/sales/s/close", &json!(null));
    assert_eq!(answer(close()).await.0, 200);
    let stream = served.get("/v1/status/stream").send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    assert_eq!(served.get("/livez").send().await.expect("an answer").status(), 200);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn when_all_connections_are_taken_probes_and_operators_still_connect() {
    let (stage, served) = served("connections", |settings| settings.api.max_connections = 1).await;
    let idle = Raw::open(&served).await;
    let ask = async |request: &str| {
        let mut connection = Raw::open(&served).await;
        connection.send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        connection.answer().await
    };
    // Without asking for it, the connection is closed after the answer: it is read to its end.
    let (status, text) = ask("GET /v1/sales/s").await;
    assert!(status == 503 && text.contains("/problems/overloaded"), "{text}");
    let mut probe = Raw::open(&served).await;
    probe.send("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!(probe.answer().await.0, 200);
    let mut operator = Raw::open(&served).await;
    let close = "POST /v1/sales/s/close HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    operator.send(close).await;
    assert_eq!(operator.answer().await.0, 200);
    drop(idle);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn one_address_has_so_many_connections() {
    let (stage, served) =
        served("address", |settings| settings.api.max_connections_per_address = 2).await;
    let probe = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let idle = (Raw::open(&served).await, Raw::open(&served).await);
    let mut third = Raw::open(&served).await;
    third.send(probe).await;
    assert_eq!(third.answer().await.0, 0, "closed without an answer");
    drop(idle.0);
    until("its next turn", async || {
        let mut next = Raw::open(&served).await;
        next.send(probe).await;
        next.answer().await.0 == 200
    })
    .await;
    served.stop().await;
    stage.remove().await;
}

/// Tells a status as a worker would that has settled so many messages.
async fn tell(stage: &Stage, name: &WorkerName, settled: u64) {
    let status = WorkerStatus::of(name, &Metrics::new(), &WorkerHealth::default());
    let body = serde_json::to_vec(&WorkerStatus { settled, ..status }).expect("JSON");
    stage.broker.publish(&[Message::Status(&body)]).await.all().expect("publish");
}

#[tokio::test]
async fn an_order_that_would_wait_too_long_is_refused_and_one_that_waits_is_told_its_place() {
    let limit = Duration::from_mins(1);
    let (stage, served) = served("wait", |settings| settings.api.max_predicted_wait = limit).await;
    let early = wanted_as("early", "v");
    assert_eq!(answer(served.post(ORDERS, &early)).await.0, 202);
    stage.post_orders(&orders("s", 300)).await;
    // A worker that settles two messages a second, if that.
    let name = WorkerName::here();
    let pace = async {
        for settled in (0..).step_by(2) {
            tell(&stage, &name, settled).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let asking = async {
        until("the wait can be told", async || {
            answer(served.post(ORDERS, &wanted("u", 1))).await.0 == 503
        })
        .await;
        let response = served.post(ORDERS, &wanted("u", 1)).send().await.expect("an answer");
        assert_eq!(response.headers()["retry-after"], "60");
        assert_eq!(problem(&json_of(response).await), "queue-overloaded");
        // Who comes again with an order that was taken is not refused.
        assert_eq!(answer(served.post(ORDERS, &early)).await.0, 202);
        let (status, body) = answer(served.get("/v1/sales/s/orders/early")).await;
        assert_eq!((status, problem(&body)), (404, "not-decided"));
        // It was posted again, behind the others.
        let told = &body["place"];
        assert!(told["ahead"].as_u64().is_some_and(|ahead| ahead > 250), "{body}");
        assert!(told["wait_s"].as_f64().is_some_and(|wait_s| wait_s > 60.0), "{body}");
    };
    tokio::select! {
        () = asking => {}
        () = pace => {}
    }
    served.stop().await;
    stage.remove().await;
}

/// The same with an order id.
fn wanted_as(id: &str, user: &str) -> serde_json::Value {
    json!({ "order_id": id, "user_id": user, "quantity": 1 })
}
