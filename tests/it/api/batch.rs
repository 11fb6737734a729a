//! Many orders in one request.

use std::time::Duration;

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use super::raw::{Raw, address};
use super::tokens::{SECRET, Signer, claims, with_secret};
use super::{header, refused, stage};
use crate::harness::api::{Served, client};
use crate::harness::{check, orders, sale};

const ALL: &str = "/v1/orders:batch";
const OF_SALE: &str = "/v1/sales/s/orders:batch";
const NDJSON: &str = "application/x-ndjson";

fn post(served: &Served, path: &str, lines: &[String]) -> RequestBuilder {
    let body = lines.join("\n");
    client().post(format!("{}{path}", served.url())).header("content-type", NDJSON).body(body)
}

/// The answers to the lines of a batch.
async fn answers(request: RequestBuilder) -> Vec<Value> {
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "content-type"), Some(NDJSON));
    let text = response.text().await.expect("a body");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn each_line_gets_the_answer_that_its_order_would_get() {
    let mut stage = stage("batch").await;
    stage.open(sale("s", 2)).await;
    stage.open(sale("t", 9)).await;
    let served = Served::up(&stage.deployment.app).await;
    let lines = [
        json!({ "sale_id": "s", "order_id": "o-1", "user_id": "u-1", "quantity": 1 }).to_string(),
        String::new(),
        "{".into(),
        json!({ "sale_id": "t", "order_id": "o-1", "user_id": "u-1", "quantity": 2 }).to_string()
            + "\r",
        json!({ "sale_id": "nothing", "order_id": "o-1", "user_id": "u", "quantity": 1 })
            .to_string(),
        json!({ "sale_id": "s", "order_id": "o-2", "user_id": "u-2", "quantity": 0 }).to_string(),
        // More than there ever were: lines may be decided in another order.
        json!({ "sale_id": "s", "order_id": "o-3", "user_id": "u-3", "quantity": 3 }).to_string(),
        json!({ "order_id": "o-4", "user_id": "u-3", "quantity": 2 }).to_string(),
        json!({ "sale_id": "s", "user_id": "u-3", "quantity": 2 }).to_string(),
        json!({ "sale_id": "s", "order_id": "o-5", "user_id": "u", "quantity": 1, "more": 1 })
            .to_string(),
        format!("{{\"sale_id\": \"s\", \"order_id\": \"{}\"}}", "x".repeat(5000)),
    ];
    let got = answers(post(&served, ALL, &lines).header("prefer", "wait=20")).await;
    let statuses: Vec<(u64, u64)> = got
        .iter()
        .map(|answer| {
            (answer["line"].as_u64().expect("a line"), answer["status"].as_u64().expect("a status"))
        })
        .collect();
    let expected = [
        (1, 200),
        (3, 400),
        (4, 200),
        (5, 404),
        (6, 422),
        (7, 200),
        (8, 422),
        (9, 422),
        (10, 422),
        (11, 413),
    ];
    assert_eq!(statuses, expected, "{got:#?}");
    let mut event = stage.event().await;
    while event["sale_id"] != "s" || event["order_id"] != "o-1" {
        event = stage.event().await;
    }
    assert_eq!(got[0]["answer"], event, "the event's own words");
    assert_eq!(got[2]["answer"]["sale_id"], "t");
    assert_eq!(got[5]["answer"]["outcome"], "sold_out");
    let problem = &got[3]["answer"];
    assert!(
        problem["type"].as_str().expect("a type").ends_with("/problems/unknown-sale"),
        "{problem}"
    );
    assert!(problem["detail"].as_str().expect("a detail").contains("nothing"), "{problem}");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_batch_that_is_sent_again_gets_the_same_decisions() {
    let mut stage = stage("batch-again").await;
    stage.open(sale("s", 1500)).await;
    let served = Served::up(&stage.deployment.app).await;
    let all = orders("s", 3000);
    let lines: Vec<String> = all
        .iter()
        .map(|order| {
            json!({ "order_id": order.id, "user_id": order.user_id, "quantity": order.quantity.get() }).to_string()
        })
        .collect();
    let taken = answers(post(&served, OF_SALE, &lines)).await;
    assert!(taken.iter().all(|answer| answer["status"] == 202 || answer["status"] == 200));
    check::settled(&mut stage, &all).await;
    let ask = || answers(post(&served, OF_SALE, &lines));
    let (first, second) = (ask().await, ask().await);
    assert_eq!(first, second);
    let created = first.iter().filter(|answer| answer["answer"]["outcome"] == "created").count();
    assert_eq!((first.len(), created), (3000, 1500));
    assert!(
        first
            .iter()
            .zip(&all)
            .all(|(answer, order)| answer["answer"]["order_id"] == order.id.as_str())
    );
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_batch_that_is_not_accepted_is_refused_as_a_whole() {
    let stage = stage("batch-refused").await;
    stage.open(sale("s", 2)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let line =
        json!({ "sale_id": "s", "order_id": "o-1", "user_id": "u-1", "quantity": 1 }).to_string();
    let batch = || post(&served, ALL, std::slice::from_ref(&line));
    refused(served.post(ALL, &json!({})), 415, "unsupported-media-type").await;
    refused(batch().header("idempotency-key", "k"), 400, "bad-header").await;
    let large = post(&served, ALL, &[" ".repeat(5_000_000)]);
    refused(large, 413, "too-large").await;
    let other = line.replace("\"s\"", "\"t\"");
    let got = answers(post(&served, OF_SALE, &[line.clone(), other])).await;
    assert_eq!((&got[0]["status"], &got[1]["status"]), (&json!(202), &json!(422)));
    assert_eq!(answers(post(&served, ALL, &[])).await, Vec::<Value>::new());
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn clients_that_read_no_answers_hold_up_nobody() {
    let stage = stage("batch-stalled").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    // Long answers, and a question to the ledger now and then.
    let lines = (0..60_000).map(|n| match n % 16 {
        0 => json!({ "sale_id": format!("unknown-{n}"), "order_id": "o", "user_id": "u", "quantity": 1 }).to_string(),
        _ => "{".to_owned(),
    });
    let body = lines.collect::<Vec<_>>().join("\n");
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(2048).expect("a small buffer");
        let address = address(&served).parse().expect("an address");
        let mut client = socket.connect(address).await.expect("connect");
        let request = head(ALL, body.len(), "") + &body;
        client.write_all(request.as_bytes()).await.expect("sent");
        stalled.push(client);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let wanted = json!({ "user_id": "v", "quantity": 1, "order_id": "mine" });
    let answered = served.post("/v1/sales/s/orders", &wanted).send().await.expect("an answer");
    assert_eq!(answered.status(), 202);
    drop(stalled);
    served.stop().await;
    stage.remove().await;
}

/// The head of a request with a batch of `length` bytes.
fn head(path: &str, length: usize, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {NDJSON}\r\n\
         {more}Content-Length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn only_who_orders_for_others_hands_in_batches() {
    let (stage, served) = with_secret("batch-token").await;
    let line = json!({ "order_id": "o-1", "user_id": "u-1", "quantity": 1 }).to_string();
    let with = |scope: &str| {
        let token = Signer::Hs256(SECRET).sign(&claims("ada", scope));
        post(&served, OF_SALE, std::slice::from_ref(&line)).bearer_auth(token)
    };
    refused(post(&served, OF_SALE, &[]), 401, "unauthorized").await;
    refused(with(""), 403, "forbidden").await;
    refused(with("floodgate:admin"), 403, "forbidden").await;
    assert_eq!(answers(with("floodgate:submit")).await[0]["status"], 202);
    // The refusal does not wait for a body.
    let buyer = Signer::Hs256(SECRET).sign(&claims("ada", ""));
    let mut waiting = Raw::open(&served).await;
    let authorization = format!("Authorization: Bearer {buyer}\r\n");
    waiting.send(head(OF_SALE, 1_000_000, &authorization)).await;
    assert_eq!(waiting.answer().await.0, 403);
    served.stop().await;
    stage.remove().await;
}
