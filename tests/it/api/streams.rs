//! Server-sent events.

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use super::{header, refused, stage, wanted};
use crate::harness::api::{Served, answer};
use crate::harness::{PATIENCE, sale};

/// A stream of events being read.
struct Events {
    response: Response,
    text: String,
    /// The latest event as it was sent.
    seen: String,
}

impl Events {
    async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
        Self { response, text: String::new(), seen: String::new() }
    }

    /// Name and data of the next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
                // A comment keeps the connection open.
                let (Some(name), Some(data)) = (field("event: "), field("data: ")) else {
                    continue;
                };
                let event_of = (name.to_owned(), serde_json::from_str(data).expect("JSON"));
                self.seen = format!("{event}\n");
                return Some(event_of);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            let chunk = chunk.expect("an event in time").expect("no break in the stream")?;
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }

    /// Data of the first event that is as wanted.
    async fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (got, data) = self.next().await.expect("an event");
            assert_eq!(got, name);
            if wanted(&data) {
                return data;
            }
        }
    }
}

#[tokio::test]
async fn a_sale_is_followed_to_its_end_and_on() {
    let stage = stage("follow").await;
    stage.open(sale("s", 2)).await;
    let served = Served::up(&stage.deployment.app).await;
    let mut events = Events::of(served.get("/v1/sales/s/stream")).await;
    let (_, shown) = answer(served.get("/v1/sales/s")).await;
    assert_eq!(events.next().await, Some(("sale".into(), shown)), "the first comes at once");

    let order = |units| served.post("/v1/sales/s/orders", &wanted("u", units)).send();
    assert_eq!(order(1).await.expect("an answer").status(), 202);
    let sold = events.until("sale", |sale| sale["sold"] == 1).await;
    assert_eq!((&sold["state"], &sold["remaining"]), (&"open".into(), &1.into()));
    assert_eq!(order(1).await.expect("an answer").status(), 202);
    events.until("sale", |sale| sale["state"] == "sold_out" && sale["remaining"] == 0).await;
    events.until("sale", |sale| sale["sold_out_at"].is_string()).await;
    let restock = json!({ "adjustment_id": "more", "units": 3 });
    assert_eq!(answer(served.post("/v1/sales/s/restock", &restock)).await.0, 200);
    events.until("sale", |sale| sale["state"] == "open" && sale["remaining"] == 3).await;
    assert_eq!(answer(served.post("/v1/sales/s/close", &Value::Null)).await.0, 200);
    events.until("sale", |sale| sale["state"] == "closed").await;

    refused(served.get("/v1/sales/never/stream"), 404, "unknown-sale").await;
    served.stop().await;
    while events.next().await.is_some() {}
    stage.remove().await;
}

#[tokio::test]
async fn decisions_are_counted_for_all_who_look() {
    let stage = stage("count").await;
    stage.open(sale("s", 3)).await;
    let served = Served::up(&stage.deployment.app).await;
    let mut first = Events::of(served.get("/v1/status/stream")).await;
    let is_there = |status: &Value| status["workers"].as_array().is_some_and(|all| !all.is_empty());
    let empty = first.until("status", is_there).await;
    assert_eq!((&empty["decisions"], &empty["latency"]), (&json!({}), &Value::Null), "{empty}");
    let mut second = Events::of(served.get("/v1/status/stream")).await;
    for units in [1, 3, 2] {
        let order =
            served.post("/v1/sales/s/orders", &wanted("u", units)).header("prefer", "wait=30");
        assert_eq!(answer(order).await.0, 200);
    }
    for events in [&mut first, &mut second] {
        let counted = |status: &Value| {
            status["decisions"]["created"] == 2 && status["decisions"]["sold_out"] == 1
        };
        let status = events.until("status", counted).await;
        let at = |percent: &str| status["latency"][percent].as_f64().expect("seconds");
        assert!(at("p50") > 0.0 && at("p99") >= at("p50"), "{status}");
        let worker = &status["workers"][0];
        assert_eq!((&worker["state"], &worker["in_flight"]), (&json!("running"), &json!(0)));
        assert_eq!(status["dependencies"]["PostgreSQL"], json!({ "up": 1, "down": 0 }));
        assert_eq!(status["queues"]["dead_letters"], 0);
    }
    served.stop().await;
    for mut events in [first, second] {
        while events.next().await.is_some() {}
    }
    stage.remove().await;
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_has_not() {
    let stage = stage("comes-back").await;
    stage.open(sale("s", 10)).await;
    let served = Served::up(&stage.deployment.app).await;
    let follow = |last: &str| served.get("/v1/sales/s/stream").header("last-event-id", last);
    let mut first = Events::of(served.get("/v1/sales/s/stream")).await;
    first.next().await.expect("an event");
    assert!(
        first.seen.contains("id: 1-0\n") && first.seen.contains("retry: 2000\n"),
        "{}",
        first.seen
    );
    let mut again = Events::of(follow("1-0")).await;
    let mut late = Events::of(follow("0-7")).await;
    assert_eq!(late.next().await.expect("an event").1["version"], 1, "not the one it has");
    assert_eq!(answer(served.post("/v1/sales/s/close", &Value::Null)).await.0, 200);
    assert_eq!(again.next().await.expect("an event").1["version"], 2, "nothing before the change");
    served.stop().await;
    stage.remove().await;
}
