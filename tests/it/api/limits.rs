//! What is too much, too slow, or meant for somebody else; and how the server ends.

use floodgate::broker::Queue;
use serde_json::json;

use super::raw::{Raw, address, head};
use super::{header, refused, stage, stage_with, until, wanted};
use crate::harness::api::{Served, answer};
use crate::harness::{PATIENCE, process, sale};

const ORDERS: &str = "/v1/sales/s/orders";

#[tokio::test]
async fn a_buyer_who_is_too_fast_is_slowed_alone() {
    let stage = stage_with(
        "rate",
        "[api]\nbuyer_orders_per_s = 1\nbuyer_burst = 2\nrequest_timeout_ms = 60000",
    )
    .await;
    stage.open(sale("s", 1000)).await;
    let served = Served::up(&stage.deployment.app).await;
    let order = |user: &str| served.post(ORDERS, &wanted(user, 1));
    let named = json!({ "order_id": "o", "user_id": "fast", "quantity": 1 });
    let first = served.post(ORDERS, &named).header("prefer", "wait=30");
    assert_eq!(answer(first).await.0, 200);
    // However slow this machine is, sometime two orders come within the same second.
    until("a refusal", async || order("fast").send().await.expect("an answer").status() == 429)
        .await;
    let refusals = async || {
        let response = order("fast").send().await.expect("an answer");
        response.status() == 429 && header(&response, "retry-after") == Some("1")
    };
    until("a refusal with its time", refusals).await;
    assert_eq!(answer(order("other")).await.0, 202, "another buyer");
    assert_eq!(answer(served.post(ORDERS, &named)).await.0, 200, "a repeat costs nothing");
    until("its next turn", async || order("fast").send().await.expect("an answer").status() == 202)
        .await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_slow_body_is_not_waited_for() {
    let stage = stage_with("slow", "[api]\nrequest_timeout_ms = 500").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    for beginning in ["", "{\"user_id\":"] {
        let mut slow = Raw::open(&served).await;
        slow.send(head(40)).await;
        slow.send(beginning).await;
        let (status, text) = slow.answer().await;
        assert_eq!(status, 408, "{text}");
        assert!(text.contains("/problems/timeout"), "{text}");
    }
    let mut broken = Raw::open(&served).await;
    broken.send(format!("{}{{", head(40))).await;
    drop(broken);
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 0);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_body_or_head_that_is_too_large_is_refused_unread() {
    let stage = stage_with("large", "[api]\nmax_body_bytes = 1024\nmax_header_bytes = 8192").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let order = |padding: usize| {
        let body = format!("{}{}", wanted("u", 1), " ".repeat(padding));
        served.post(ORDERS, &json!(null)).body(body)
    };
    assert_eq!(answer(order(500)).await.0, 202);
    refused(order(1024), 413, "too-large").await;
    // A length that is never sent is no reason to wait for it.
    let mut claims = Raw::open(&served).await;
    claims.send(head(1 << 40)).await;
    let (status, text) = claims.answer().await;
    assert_eq!(status, 413, "{text}");
    // Without a length, in chunks.
    let mut chunked = Raw::open(&served).await;
    chunked.send(head(0).replace("Content-Length: 0", "Transfer-Encoding: chunked")).await;
    chunked.send(format!("800\r\n{}\r\n", " ".repeat(0x800))).await;
    assert_eq!(chunked.answer().await.0, 413);

    let big = served.get("/v1/sales").header("x-padding", "x".repeat(9000));
    assert_eq!(big.send().await.expect("an answer").status(), 431);
    let many =
        (0..100).fold(served.get("/v1/sales"), |request, n| request.header(format!("x-{n}"), "x"));
    assert_eq!(many.send().await.expect("an answer").status(), 431);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn more_requests_than_there_is_room_for_are_turned_away() {
    let stage = stage_with("room", "[api]\nmax_in_flight = 1").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let body = wanted("u", 1).to_string();
    let mut slow = Raw::open(&served).await;
    slow.send(head(body.len())).await;
    until("no room", async || {
        served.get("/v1/sales/s").send().await.expect("an answer").status() == 503
    })
    .await;
    refused(served.get("/v1/sales/s"), 503, "overloaded").await;
    refused(served.post(ORDERS, &wanted("u", 1)), 503, "overloaded").await;
    for path in ["/livez", "/readyz"] {
        until(path, async || served.get(path).send().await.expect("an answer").status() == 200)
            .await;
    }
    slow.send(body).await;
    assert_eq!(slow.answer().await.0, 202);
    // Streams take no room.
    let stream = served.get("/v1/sales/s/stream").send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    assert_eq!(answer(served.get("/v1/sales/s")).await.0, 200);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn without_a_key_only_this_machine_is_answered() {
    let stage = stage("host").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let evil = |host: &str| served.post(ORDERS, &wanted("u", 1)).header("host", host);
    for host in ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1"] {
        refused(evil(host), 421, "misdirected").await;
        refused(served.get("/").header("host", host), 421, "misdirected").await;
    }
    assert_eq!(answer(evil("localhost")).await.0, 202);
    let mut two = Raw::open(&served).await;
    let hosts = "Host: localhost\r\nHost: localhost\r\n";
    two.send(format!("GET /v1/sales HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")).await;
    let (status, text) = two.answer().await;
    assert!(status == 400 && text.contains("Host is given more than once"), "{text}");
    // Nor is a page of another site that was opened on this machine: its requests may come without
    // a body that a browser would ask about first.
    let close = |origin: &str| {
        served.post("/v1/sales/s/close", &json!(null)).body("").header("origin", origin)
    };
    for origin in
        ["https://evil.example", "http://127.0.0.1:1", "null", "http://localhost.evil.example"]
    {
        refused(close(origin), 403, "cross-origin").await;
    }
    assert_eq!(answer(served.get("/v1/sales/s")).await.1["state"], "open");
    assert_eq!(answer(close(served.url())).await.0, 200, "the page that it serves itself");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn without_a_key_it_refuses_to_listen_where_others_can_reach_it() {
    let stage = stage("exposed").await;
    for command in ["api", "up"] {
        let mut floodgate = process::floodgate(&stage, &[command]);
        floodgate.env("FLOODGATE_API__LISTEN", "0.0.0.0:0");
        let output = floodgate.output().expect("floodgate runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("FLOODGATE_API__JWT_SECRET"), "{text}");
    }
    stage.remove().await;
}

#[tokio::test]
async fn every_answer_keeps_the_page_to_itself() {
    let stage = stage("headers").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    for path in ["/", "/docs", "/openapi.json", "/v1/sales", "/nothing", "/livez", "/app.js"] {
        let response = served.get(path).send().await.expect("an answer");
        let policy = header(&response, "content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'"), "{path}");
        assert_eq!(header(&response, "x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(header(&response, "cache-control"), Some("no-store"), "{path}");
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_server_that_stops_answers_the_requests_in_flight() {
    let stage = stage("stop").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    for path in ["/livez", "/readyz"] {
        until(path, async || served.get(path).send().await.expect("an answer").status() == 200)
            .await;
    }
    let body = wanted("u", 1).to_string();
    let mut order = Raw::open(&served).await;
    order.send(head(body.len())).await;
    // Somebody waits for a decision that does not come.
    let waiting = served.post(ORDERS, &wanted("v", 1)).header("prefer", "wait=30");
    let waiting = tokio::spawn(waiting.send());
    until("an order queued", async || {
        stage.broker.depth(Queue::Intents).await.expect("depth").messages == 1
    })
    .await;
    let mut ready = Raw::open(&served).await;
    ready.send("GET /readyz HTTP/1.1\r\n").await;
    // Connected, and silent.
    let idle = Raw::open(&served).await;
    assert_eq!(served.get("/livez").send().await.expect("an answer").status(), 200);

    let address = address(&served).to_owned();
    let began = std::time::Instant::now();
    let stopping = tokio::spawn(served.stop());
    until("no more connections", async || tokio::net::TcpStream::connect(&address).await.is_err())
        .await;
    let accepted = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(accepted.status(), 202, "accepted, but nobody is kept waiting");
    ready.send("Host: localhost\r\n\r\n").await;
    let (status, text) = ready.answer().await;
    assert_eq!(status, 503, "{text}");
    assert!(text.to_lowercase().contains("retry-after: 1"), "{text}");
    order.send(body).await;
    let (status, text) = order.answer().await;
    assert_eq!(status, 202, "{text}");
    tokio::time::timeout(PATIENCE, stopping).await.expect("it ends").expect("no panic");
    assert!(began.elapsed().as_secs() < 8, "a connection without a request holds nothing up");
    drop(idle);
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 2);
    stage.remove().await;
}
