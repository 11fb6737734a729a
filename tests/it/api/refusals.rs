//! Requests that are refused before anything is queued, each with its own problem.

use chrono::{TimeDelta, Utc};
use floodgate::broker::Queue;
use floodgate::domain::sale::Sale;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json;

use super::{refused, stage, wanted};
use crate::harness::api::{Served, answer};
use crate::harness::sale;

const ORDERS: &str = "/v1/sales/s/orders";

#[tokio::test]
async fn a_sale_that_takes_no_orders_says_why() {
    let stage = stage("no-orders").await;
    let (now, hour) = (Utc::now(), TimeDelta::hours(1));
    stage.open(Sale { opens_at: Some(now + hour), ..sale("early", 10) }).await;
    stage.open(Sale { closes_at: Some(now - hour), ..sale("late", 10) }).await;
    stage.open(sale("none", 0)).await;
    let served = Served::up(&stage.deployment.app).await;
    for (id, status, kind) in [
        ("never", 404, "unknown-sale"),
        ("early", 409, "not-open"),
        ("late", 409, "closed"),
        ("none", 410, "sold-out"),
    ] {
        let request = served.post(&format!("/v1/sales/{id}/orders"), &wanted("u", 1));
        let detail = refused(request, status, kind).await;
        assert!(detail.contains(id), "{detail}");
    }
    let (broker, ledger) = (&stage.broker, &stage.ledger);
    assert_eq!(broker.depth(Queue::Intents).await.expect("depth").messages, 0);
    assert_eq!(broker.depth(Queue::DeadLetters).await.expect("depth").messages, 0);
    assert!(ledger.sales(None).await.expect("sales").iter().all(|state| state.sold == 0));
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_order_that_may_be_queued_already_is_not_refused_by_what_is_known_of_its_sale() {
    let stage = stage("queued").await;
    let (now, hour) = (Utc::now(), TimeDelta::hours(1));
    stage.open(Sale { opens_at: Some(now + hour), ..sale("early", 10) }).await;
    stage.open(Sale { closes_at: Some(now - hour), ..sale("late", 10) }).await;
    stage.open(sale("none", 0)).await;
    let served = Served::up(&stage.deployment.app).await;
    for (id, outcome, reason) in [
        ("early", "rejected", json!("not_open")),
        ("late", "rejected", json!("closed")),
        ("none", "sold_out", json!(null)),
    ] {
        let path = format!("/v1/sales/{id}/orders");
        let named = json!({ "order_id": format!("{id}-1"), "user_id": "u", "quantity": 1 });
        let with_key = served.post(&path, &wanted("u", 1));
        let with_key = with_key.header("idempotency-key", format!("{id}-2"));
        for request in [served.post(&path, &named), with_key] {
            let again = request.try_clone().expect("no stream");
            let (status, decision) = answer(request.header("prefer", "wait=30")).await;
            assert_eq!((status, &decision["outcome"]), (200, &outcome.into()), "{decision}");
            assert_eq!(decision["reason"], reason);
            assert_eq!(answer(again).await, (200, decision));
        }
    }
    let unknown = json!({ "order_id": "o", "user_id": "u", "quantity": 1 });
    refused(served.post("/v1/sales/never/orders", &unknown), 404, "unknown-sale").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_body_that_is_no_order_is_refused_with_the_field_at_fault() {
    let stage = stage("bodies").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let long = "x".repeat(65);
    for (body, named) in [
        (json!({ "user_id": "u" }), "quantity"),
        (json!({ "quantity": 1 }), "user_id"),
        (json!({ "user_id": null, "quantity": 1 }), "user_id"),
        (wanted("u", 0), "quantity"),
        (wanted("u", -1), "quantity"),
        (wanted("u", 1_000_001), "quantity"),
        (json!({ "user_id": "u", "quantity": 1.5 }), "quantity"),
        (json!({ "user_id": "u", "quantity": "1" }), "quantity"),
        (json!({ "user_id": "u", "quantity": 18_446_744_073_709_551_615_u64 }), "quantity"),
        (json!({ "user_id": 7, "quantity": 1 }), "user_id"),
        (wanted("", 1), "user_id"),
        (wanted("a b", 1), "user_id"),
        (wanted("é", 1), "user_id"),
        (wanted(&long, 1), "user_id"),
        (json!({ "user_id": "u", "quantity": 1, "order_id": "" }), "order_id"),
        (json!({ "user_id": "u", "quantity": 1, "order_id": long }), "order_id"),
        (json!({ "user_id": "u", "quantity": 1, "order_id": "a/b" }), "order_id"),
        (json!({ "user_id": "u", "quantity": 1, "order_id": "." }), "order_id"),
        (json!({ "user_id": "u", "quantity": 1, "order_id": ".." }), "order_id"),
        (json!({ "user_id": "u", "quantity": 1, "price": 5 }), "price"),
        (json!({ "user_id": "u", "quantity": 1, "sale_id": "t" }), "sale_id"),
        (json!([]), "object"),
        (json!(["u", 1, null]), "object"),
        (json!("u"), "object"),
        (json!(null), "object"),
    ] {
        let detail = refused(served.post(ORDERS, &body), 422, "invalid-request").await;
        assert!(detail.contains(named), "{body}: {detail}");
    }
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 0);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused() {
    let stage = stage("no-json").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let good = wanted("u", 1).to_string();
    let post = |body: Vec<u8>| {
        let request = served.post(ORDERS, &json!(null));
        request.body(body)
    };
    for bad in [
        String::new(),
        " ".into(),
        "{".into(),
        "nonsense".into(),
        format!("{good} {good}"),
        format!("{good}]"),
        "[1,".into(),
        r#"{"user_id":"\ud800","quantity":1}"#.into(),
        "[".repeat(2000),
    ] {
        refused(post(bad.into_bytes()), 400, "bad-json").await;
    }
    refused(post(b"{\"user_id\":\"\xff\",\"quantity\":1}".to_vec()), 400, "bad-json").await;
    let nearly = br#"{"user_id":"u","quantity":0.99999999999999999999}"#;
    refused(post(nearly.to_vec()), 422, "invalid-request").await;
    refused(post(format!("{good}{}", " ".repeat(20_000)).into_bytes()), 413, "too-large").await;

    let media_type = |kind: &'static str| {
        let kind = HeaderValue::from_static(kind);
        // In place of the one that is there.
        served.post(ORDERS, &wanted("u", 1)).headers([(CONTENT_TYPE, kind)].into_iter().collect())
    };
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        refused(media_type(kind), 415, "unsupported-media-type").await;
    }
    let compressed = served.post(ORDERS, &wanted("u", 1)).header("content-encoding", "gzip");
    refused(compressed, 415, "unsupported-media-type").await;
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 0);

    for kind in ["Application/JSON", "application/json; charset=utf-8"] {
        let taken = media_type(kind).send().await.expect("an answer");
        assert_eq!(taken.status(), 202, "{kind}");
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_path_that_leads_nowhere_is_refused() {
    let stage = stage("paths").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let long = "x".repeat(65);
    for id in ["a.b", "a%20b", "a%2Fb", "%00", "%FF", long.as_str()] {
        let orders = format!("/v1/sales/{id}/orders");
        refused(served.post(&orders, &wanted("u", 1)), 422, "invalid-request").await;
        refused(served.get(&format!("/v1/sales/{id}")), 422, "invalid-request").await;
        refused(served.get(&format!("/v1/sales/{id}/stream")), 422, "invalid-request").await;
        let close = served.post(&format!("/v1/sales/{id}/close"), &json!(null));
        refused(close, 422, "invalid-request").await;
        let order = served.get(&format!("/v1/sales/{id}/orders/o"));
        refused(order, 422, "invalid-request").await;
    }
    for id in ["a%20b", "%FF", long.as_str()] {
        refused(served.get(&format!("{ORDERS}/{id}")), 422, "invalid-request").await;
    }
    for path in
        ["/v1/sales/", "/v1/sales/s/", "/v1/sales/s/orders/", "/v1/orders/o", "/v2/sales", "/v1"]
    {
        refused(served.get(path), 404, "not-found").await;
    }
    for path in ["/v1/sales/s", "/v1/sales/s/orders/o", "/openapi.json", "/", "/livez", "/readyz"] {
        let request = || served.post(path, &json!({}));
        refused(request(), 405, "method-not-allowed").await;
        let response = request().send().await.expect("an answer");
        assert_eq!(super::header(&response, "allow"), Some("GET,HEAD"), "{path}");
    }
    refused(served.get(ORDERS), 405, "method-not-allowed").await;
    for (sale, id) in [("s", "never"), ("never", "o")] {
        let path = format!("/v1/sales/{sale}/orders/{id}");
        let detail = refused(served.get(&path), 404, "unknown-order").await;
        assert!(detail.contains(&format!("{sale}/{id}")), "{detail}");
    }
    served.stop().await;
    stage.remove().await;
}
