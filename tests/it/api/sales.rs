//! Sales, as everybody sees them and as operators change them.

use floodgate::domain::sale::MAX_STOCK;
use serde_json::{Value, json};

use super::{header, refused, stage, wanted};
use crate::harness::api::{Served, answer, json as body_of};
use crate::harness::process::run;
use crate::harness::{check, sale, sale_id};

#[tokio::test]
async fn a_sale_is_opened_once_and_shown() {
    let stage = stage("open").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let definition = json!({
        "sale_id": "s", "stock": 5, "per_user_limit": 2,
        "opens_at": "2026-01-01T08:00:00+01:00", "closes_at": "2999-01-01T00:00:00Z",
    });
    refused(served.get("/v1/sales/s"), 404, "unknown-sale").await;
    let response = served.post("/v1/sales", &definition).send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    assert_eq!(header(&response, "location"), Some("/v1/sales/s"));
    let shown = body_of(response).await;
    assert_eq!(
        shown,
        json!({
            "sale_id": "s", "stock": 5, "sold": 0, "remaining": 5, "state": "open",
            "per_user_limit": 2, "opens_at": "2026-01-01T07:00:00.000Z",
            "closes_at": "2999-01-01T00:00:00.000Z", "verification": false, "sold_out_at": null, "paused": null,
            "archived": false, "version": 1,
        })
    );
    assert_eq!(answer(served.post("/v1/sales", &definition)).await, (200, shown.clone()));
    assert_eq!(answer(served.get("/v1/sales/s")).await, (200, shown));
    let differing = json!({ "sale_id": "s", "stock": 6 });
    let detail = refused(served.post("/v1/sales", &differing), 409, "sale-differs").await;
    assert!(detail.contains("stock of 5"), "{detail}");
    // Opened here, it is known here at once.
    let order = served.post("/v1/sales/s/orders", &wanted("u", 1));
    assert_eq!(order.send().await.expect("an answer").status(), 202);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_definition_that_makes_no_sense_opens_nothing() {
    let stage = stage("bad-open").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    for bad in [
        json!({ "sale_id": "a.b", "stock": 1 }),
        json!({ "sale_id": "s" }),
        json!({ "stock": 1 }),
        json!({ "sale_id": "s", "stock": -1 }),
        json!({ "sale_id": "s", "stock": MAX_STOCK + 1 }),
        json!({ "sale_id": "s", "stock": 4_294_967_296_u64 }),
        json!({ "sale_id": "s", "stock": 1, "per_user_limit": 0 }),
        json!({ "sale_id": "s", "stock": 1, "opens_at": "tomorrow" }),
        json!({ "sale_id": "s", "stock": 1, "opens_at": 5 }),
        json!({ "sale_id": "s", "stock": 1, "price": 1 }),
        json!({ "sale_id": "s", "stock": 1, "opens_at": "2026-01-02T00:00:00Z", "closes_at": "2026-01-02T00:00:00Z" }),
        json!(["s", 1]),
    ] {
        refused(served.post("/v1/sales", &bad), 422, "invalid-request").await;
    }
    assert_eq!(answer(served.get("/v1/sales")).await, (200, json!({ "sales": [] })));
    let most = json!({ "sale_id": "s", "stock": MAX_STOCK, "per_user_limit": u32::MAX });
    assert_eq!(answer(served.post("/v1/sales", &most)).await.0, 201);
    assert_eq!(answer(served.post("/v1/sales", &most)).await.0, 200);
    let restock = json!({ "adjustment_id": "a", "units": 1 });
    refused(served.post("/v1/sales/s/restock", &restock), 422, "invalid-request").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn sales_are_listed_page_by_page() {
    let stage = stage("list").await;
    for id in ["b", "a", "d", "c"] {
        stage.open(sale(id, 1)).await;
    }
    let served = Served::without_worker(&stage.deployment.app).await;
    let ids = |page: &Value| -> String {
        let sales = page["sales"].as_array().expect("sales");
        sales.iter().map(|sale| sale["sale_id"].as_str().expect("an id")).collect()
    };
    let (_, first) = answer(served.get("/v1/sales?limit=3")).await;
    assert_eq!(ids(&first), "abc");
    let next = first["next"].as_str().expect("more");
    let (_, second) = answer(served.get(next)).await;
    assert_eq!((ids(&second).as_str(), &second["next"]), ("d", &Value::Null));
    assert_eq!(ids(&answer(served.get("/v1/sales?limit=4")).await.1), "abcd");
    assert_eq!(answer(served.get("/v1/sales?limit=4")).await.1["next"], Value::Null);
    assert_eq!(ids(&answer(served.get("/v1/sales?after=aa")).await.1), "bcd");
    for bad in ["limit=0", "limit=1001", "limit=x", "limit=", "after=a.b", "after=", "page=2"] {
        refused(served.get(&format!("/v1/sales?{bad}")), 422, "invalid-request").await;
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_restock_adds_its_units_once() {
    let stage = stage("restock").await;
    stage.open(sale("s", 5)).await;
    stage.open(sale("t", 5)).await;
    let served = Served::up(&stage.deployment.app).await;
    let restock = |sale: &str, id: &str, units: i64| {
        let body = json!({ "adjustment_id": id, "units": units });
        served.post(&format!("/v1/sales/{sale}/restock"), &body)
    };
    let (status, added) = answer(restock("s", "delivery-1", 3)).await;
    assert_eq!(status, 200);
    let figures = |sale: &Value| (sale["stock"].clone(), sale["version"].clone());
    assert_eq!(figures(&added), (8.into(), 2.into()));
    assert_eq!(answer(restock("s", "delivery-1", 3)).await, (200, added));
    refused(restock("s", "delivery-1", 4), 409, "adjustment-conflict").await;
    // The same id in another sale is another restock.
    assert_eq!(figures(&answer(restock("t", "delivery-1", 4)).await.1), (9.into(), 2.into()));
    refused(restock("never", "delivery-2", 1), 404, "unknown-sale").await;
    for (id, units) in [("delivery-2", 0), ("delivery-2", 1_000_001), ("", 1), ("a b", 1)] {
        refused(restock("s", id, units), 422, "invalid-request").await;
    }
    assert_eq!(figures(&answer(served.get("/v1/sales/s")).await.1), (8.into(), 2.into()));
    assert_eq!(figures(&answer(served.get("/v1/sales/t")).await.1), (9.into(), 2.into()));
    let all = served.post("/v1/sales/s/orders", &wanted("u", 8)).header("prefer", "wait=30");
    assert_eq!(answer(all).await.1["outcome"], "created");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn verification_is_switched_for_a_sale_that_runs() {
    let stage = stage("switch").await;
    let served = Served::up(&stage.deployment.app).await;
    let checked = json!({ "sale_id": "s", "stock": 5, "verification": true });
    let (status, opened) = answer(served.post("/v1/sales", &checked)).await;
    assert_eq!((status, &opened["verification"]), (201, &true.into()));
    let switch =
        |sale: &str, body: Value| served.post(&format!("/v1/sales/{sale}/verification"), &body);
    // Nobody checks users here, so with checks it would wait until it is too old.
    let order = served.post("/v1/sales/s/orders", &wanted("u", 2)).header("prefer", "wait=30");
    let (off, ordered) =
        tokio::join!(answer(switch("s", json!({ "verification": false }))), answer(order));
    assert_eq!((off.0, &off.1["verification"], &off.1["version"]), (200, &false.into(), &2.into()));
    assert_eq!((ordered.0, &ordered.1["outcome"]), (200, &"created".into()), "{}", ordered.1);
    let (status, again) = answer(switch("s", json!({ "verification": false }))).await;
    assert_eq!((status, &again["version"]), (200, &2.into()), "repeating it changes nothing");
    let (_, on) = answer(switch("s", json!({ "verification": true }))).await;
    assert_eq!((&on["verification"], &on["version"]), (&true.into(), &3.into()));
    assert_eq!(answer(served.get("/v1/sales/s")).await.1["verification"], true);
    for bad in
        [json!({}), json!({ "verification": "off" }), json!({ "verification": 0 }), json!([])]
    {
        refused(switch("s", bad), 422, "invalid-request").await;
    }
    refused(switch("s", json!({ "verification": true, "on": 1 })), 422, "invalid-request").await;
    refused(switch("never", json!({ "verification": true })), 404, "unknown-sale").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_closed_sale_takes_no_orders_and_decides_those_it_has() {
    let mut stage = stage("close").await;
    stage.open(sale("s", 5)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let other = Served::without_worker(&stage.deployment.app).await;
    let order = json!({ "order_id": "before", "user_id": "u", "quantity": 1 });
    for api in [&served, &other] {
        assert_eq!(answer(api.post("/v1/sales/s/orders", &order)).await.0, 202);
    }
    let close = || served.post("/v1/sales/s/close", &Value::Null);
    let (status, closed) = answer(close()).await;
    assert_eq!((status, &closed["state"]), (200, &Value::from("closed")));
    assert_eq!(answer(close()).await, (200, closed.clone()), "closing again changes nothing");
    refused(served.post("/v1/sales/s/orders", &wanted("v", 1)), 409, "closed").await;
    super::order_until(&other, "s", 409).await;
    refused(served.post("/v1/sales/never/close", &Value::Null), 404, "unknown-sale").await;

    let worker = stage.worker().await;
    // Batches are decided in order; their events may come in another.
    let mut event = stage.event().await;
    while event["order_id"] != "before" {
        assert_eq!(event["outcome"], "rejected", "{event}");
        event = stage.event().await;
    }
    assert_eq!(event["outcome"], "created", "{event}");
    check::empty(&stage).await;
    worker.stop().await;
    let sold = stage.ledger.sales(Some(&[sale_id("s")])).await.expect("sales")[0].sold;
    assert_eq!(sold, 1, "what slipped in elsewhere after the closing is rejected");
    served.stop().await;
    other.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn the_command_line_restocks_and_closes_what_the_api_sells() {
    let stage = stage("cli").await;
    stage.open(sale("s", 1)).await;
    let served = Served::up(&stage.deployment.app).await;
    let order = |user: &str| {
        served.post("/v1/sales/s/orders", &wanted(user, 1)).header("prefer", "wait=30")
    };
    assert_eq!(answer(order("a")).await.1["outcome"], "created");
    super::order_until(&served, "s", 410).await;

    let restock = |units: &str| {
        let arguments =
            ["sale", "restock", "s", "--adjustment-id", "d-1", "--units", units, "--json"];
        run(&stage, &arguments)
    };
    for _ in 0..2 {
        let output = restock("2");
        assert_eq!(output.status.code(), Some(0));
        let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&shown["stock"], &shown["version"]), (&3.into(), &2.into()));
    }
    let conflict = restock("3");
    assert_eq!(conflict.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&conflict.stderr).contains("added 2 units to sale s"));
    super::order_until(&served, "s", 202).await;

    let closed = run(&stage, &["sale", "close", "s", "--json"]);
    let shown: Value = serde_json::from_slice(&closed.stdout).expect("JSON");
    assert_eq!(shown["state"], "closed");
    super::order_until(&served, "s", 409).await;
    for command in ["restock", "close"] {
        let mut arguments = vec!["sale", command, "never"];
        if command == "restock" {
            arguments.extend(["--adjustment-id", "d-2", "--units", "1"]);
        }
        assert_eq!(run(&stage, &arguments).status.code(), Some(1), "{command}");
    }
    served.stop().await;
    stage.remove().await;
}
