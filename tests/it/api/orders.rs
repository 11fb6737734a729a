//! Orders that are taken: accepted, decided, repeated.

use floodgate::broker::Queue;
use serde_json::{Value, json};

use super::{header, refused, stage, wanted};
use crate::harness::api::{Served, answer, json as body_of};
use crate::harness::sale;

const ORDERS: &str = "/v1/sales/s/orders";

#[tokio::test]
async fn an_order_is_accepted_and_its_decision_found_at_its_location() {
    let mut stage = stage("accepted").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let order = json!({ "order_id": "o-1", "user_id": "u", "quantity": 2 });
    let response = served.post(ORDERS, &order).send().await.expect("an answer");
    assert_eq!(response.status(), 202);
    let location = header(&response, "location").expect("Location").to_owned();
    assert_eq!(location, "/v1/sales/s/orders/o-1");
    assert_eq!(header(&response, "preference-applied"), None);
    assert_eq!(
        body_of(response).await,
        json!({ "order_id": "o-1", "sale_id": "s", "user_id": "u", "quantity": 2, "status": "accepted" })
    );
    let early = served.get(&location).send().await.expect("an answer");
    assert!(header(&early, "retry-after").is_some(), "says when to ask again");
    refused(served.get(&location), 404, "not-decided").await;

    let worker = stage.worker().await;
    let event = stage.event().await;
    assert_eq!(event["outcome"], "created");
    assert_eq!(answer(served.get(&location)).await, (200, event), "the event's own words");
    worker.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn ids_are_made_for_orders_that_have_none() {
    let mut stage = stage("generated").await;
    stage.open(sale("s", 10)).await;
    let served = Served::up(&stage.deployment.app).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (status, body) = answer(served.post(ORDERS, &wanted("u", 1))).await;
        assert_eq!(status, 202);
        let id = body["order_id"].as_str().expect("an id").to_owned();
        assert_eq!(uuid::Uuid::parse_str(&id).expect("a UUID").get_version_num(), 7);
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1], "the same buyer may want the same again");
    let mut decided = Vec::new();
    for _ in &ids {
        decided.push(stage.event().await["order_id"].as_str().expect("an id").to_owned());
    }
    decided.sort();
    ids.sort();
    assert_eq!(decided, ids);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn who_prefers_to_wait_gets_the_decision() {
    let stage = stage("wait").await;
    stage.open(sale("s", 3)).await;
    let served = Served::up(&stage.deployment.app).await;
    for (preference, applied) in
        [("wait=10", "wait=10"), ("wait=9999", "wait=30"), ("respond-async, wait=\"5\"", "wait=5")]
    {
        let asked = served.post(ORDERS, &wanted("u", 1)).header("prefer", preference);
        let response = asked.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "preference-applied"), Some(applied));
        assert_eq!(header(&response, "content-type"), Some("application/json"));
        let decision = body_of(response).await;
        assert_eq!(decision["outcome"], "created", "{decision}");
        let path = format!("{ORDERS}/{}", decision["order_id"].as_str().expect("an id"));
        assert_eq!(answer(served.get(&path)).await, (200, decision));
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn who_waits_in_vain_gets_the_location() {
    let stage = stage("vain").await;
    stage.open(sale("s", 3)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    for (preference, applied) in
        [("wait=0", Some("wait=0")), ("wait=1", Some("wait=1")), ("wait=soon", None)]
    {
        let asked = served.post(ORDERS, &wanted("u", 1)).header("prefer", preference);
        let response = asked.send().await.expect("an answer");
        assert_eq!(response.status(), 202);
        assert_eq!(header(&response, "preference-applied"), applied);
        assert!(header(&response, "location").is_some());
    }
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 3);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_key_names_the_order() {
    let stage = stage("key").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let named = json!({ "order_id": "both", "user_id": "u", "quantity": 1 });
    for (body, key, id) in [
        (&wanted("u", 1), "\"quoted\"", "quoted"),
        (&wanted("u", 1), "bare", "bare"),
        (&named, "\"both\"", "both"),
    ] {
        let (status, accepted) =
            answer(served.post(ORDERS, body).header("idempotency-key", key)).await;
        assert_eq!((status, &accepted["order_id"]), (202, &Value::from(id)), "{key}");
    }
    let differing = served.post(ORDERS, &named).header("idempotency-key", "\"other\"");
    refused(differing, 422, "idempotency-mismatch").await;
    let long = "x".repeat(65);
    for bad in ["\"\"", "a b", "a/b", "\"half", long.as_str()] {
        let request = served.post(ORDERS, &wanted("u", 1)).header("idempotency-key", bad);
        refused(request, 400, "bad-header").await;
    }
    let twice = served.post(ORDERS, &wanted("u", 1));
    refused(twice.header("idempotency-key", "a").header("idempotency-key", "b"), 400, "bad-header")
        .await;
    assert_eq!(stage.broker.depth(Queue::Intents).await.expect("depth").messages, 3);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_whatever_has_happened_since() {
    let stage = stage("repeat").await;
    stage.open(sale("s", 5)).await;
    let served = Served::up(&stage.deployment.app).await;
    let ask = |body: &Value, key: &str| {
        served.post(ORDERS, body).header("idempotency-key", key).header("prefer", "wait=30")
    };
    let (status, first) = answer(ask(&wanted("u", 2), "first")).await;
    assert_eq!((status, &first["outcome"]), (200, &Value::from("created")));
    assert_eq!(answer(ask(&wanted("u", 2), "first")).await, (200, first.clone()));
    // Also without the wish to wait, and with the id in the body.
    let plain = json!({ "order_id": "first", "user_id": "u", "quantity": 2 });
    assert_eq!(answer(served.post(ORDERS, &plain)).await, (200, first.clone()));

    for other in [wanted("u", 1), wanted("v", 2)] {
        refused(ask(&other, "first"), 422, "idempotency-mismatch").await;
    }

    let (_, last) = answer(ask(&wanted("v", 3), "last")).await;
    assert_eq!(last["outcome"], "created");
    super::order_until(&served, "s", 410).await;
    assert_eq!(answer(ask(&wanted("u", 2), "first")).await, (200, first.clone()), "sold out");
    refused(ask(&wanted("u", 1), "first"), 422, "idempotency-mismatch").await;
    refused(served.post(ORDERS, &wanted("w", 1)), 410, "sold-out").await;
    assert_eq!(answer(ask(&wanted("w", 1), "new")).await.1["outcome"], "sold_out");

    assert_eq!(answer(served.post("/v1/sales/s/close", &Value::Null)).await.0, 200);
    assert_eq!(answer(ask(&wanted("u", 2), "first")).await, (200, first), "closed");
    assert_eq!(answer(ask(&wanted("v", 3), "last")).await, (200, last), "closed");
    refused(served.post(ORDERS, &wanted("w", 1)), 409, "closed").await;
    assert_eq!(answer(ask(&wanted("w", 1), "newer")).await.1["outcome"], "rejected");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_order_sent_twice_before_its_decision_is_decided_once() {
    let mut stage = stage("twice").await;
    stage.open(sale("s", 5)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let order = json!({ "order_id": "o", "user_id": "u", "quantity": 2 });
    for _ in 0..3 {
        assert_eq!(answer(served.post(ORDERS, &order)).await.0, 202);
    }
    let worker = stage.worker().await;
    let first = stage.event().await;
    for _ in 0..2 {
        assert_eq!(stage.event().await, first);
    }
    worker.stop().await;
    let (_, shown) = answer(served.get("/v1/sales/s")).await;
    assert_eq!(shown["sold"], 2);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn the_first_of_two_orders_with_one_id_stands() {
    let mut stage = stage("waiting").await;
    stage.open(sale("s", 5)).await;
    // Two processes, of which neither knows what the other has queued.
    let here = Served::without_worker(&stage.deployment.app).await;
    let there = Served::without_worker(&stage.deployment.app).await;
    let ask = |api: &Served, quantity| {
        api.post(ORDERS, &wanted("u", quantity)).header("idempotency-key", "one")
    };
    assert_eq!(answer(ask(&here, 1)).await.0, 202);
    assert_eq!(answer(ask(&here, 2)).await.0, 202, "nobody knows better yet");
    assert_eq!(answer(ask(&there, 1)).await.0, 202, "a repeat");

    let worker = stage.worker().await;
    let first = stage.event().await;
    assert_eq!((&first["quantity"], &first["outcome"]), (&1.into(), &"created".into()));
    assert_eq!(stage.event().await, first, "the repeat");
    let letters = stage.dead_letters(1).await;
    assert_eq!(letters[0].0, "order_id_conflict");
    for api in [&here, &there] {
        assert_eq!(answer(ask(api, 1)).await, (200, first.clone()));
        refused(ask(api, 2), 422, "idempotency-mismatch").await;
        assert_eq!(answer(api.get(&format!("{ORDERS}/one"))).await, (200, first.clone()));
    }
    worker.stop().await;
    here.stop().await;
    there.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_repeat_after_the_sale_closed_gets_the_answer_of_the_first_which_is_still_queued() {
    let mut stage = stage("closed").await;
    stage.open(sale("s", 5)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let order = json!({ "order_id": "o", "user_id": "u", "quantity": 2 });
    assert_eq!(answer(served.post(ORDERS, &order)).await.0, 202);
    assert_eq!(answer(served.post("/v1/sales/s/close", &Value::Null)).await.0, 200);
    refused(served.post(ORDERS, &wanted("v", 1)), 409, "closed").await;
    assert_eq!(answer(served.post(ORDERS, &order)).await.0, 202);

    let worker = stage.worker().await;
    let first = stage.event().await;
    assert_eq!(first["outcome"], "created", "it was in time");
    assert_eq!(stage.event().await, first);
    assert_eq!(answer(served.post(ORDERS, &order)).await, (200, first));
    worker.stop().await;
    served.stop().await;
    stage.remove().await;
}
