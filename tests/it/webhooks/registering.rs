//! What operators may do with webhooks.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::receiver::Receiver;
use super::{Sender, register, webhook, with_receiver, with_webhooks};
use crate::api::tokens::{SECRET, Signer, claims};
use crate::harness::api::{Served, answer, on_free_port, problem};
use crate::harness::{Stage, database, orders, sale, until};

#[tokio::test]
async fn a_webhook_is_registered_once_and_its_secret_shown_once() {
    let (stage, served, receiver) = with_receiver("webhooks-api", 10).await;
    let request = json!({ "url": receiver.url() });
    let (id, secret) = register(&served, &request).await;
    let (status, again) = answer(served.post("/v1/webhooks", &request)).await;
    assert_eq!((status, &again["webhook_id"], &again["secret"]), (200, &json!(id), &Value::Null));
    let (other, _) = register(&served, &json!({ "url": receiver.url(), "sale_id": "s" })).await;
    assert_ne!(id, other);
    let (_, list) = answer(served.get("/v1/webhooks")).await;
    assert_eq!(list["webhooks"].as_array().map(Vec::len), Some(2));
    assert!(!list.to_string().contains("whsec_"), "{list}");

    // Old secrets sign for a while.
    let path = format!("/v1/webhooks/{id}/secret");
    let (_, second) = answer(served.post(&path, &json!({}))).await;
    let (_, third) = answer(served.post(&path, &json!({}))).await;
    let sender = Sender::start(&stage.deployment.app).await;
    stage.post_orders(&orders("s", 1)).await;
    until(async || receiver.requests().len() == 2).await;
    let signed = receiver.requests().into_iter().find(|request| request.signatures() == 3);
    let signed = signed.expect("a request with three signatures");
    for secret in [&json!(secret), &second["secret"], &third["secret"]] {
        assert!(signed.is_signed_by(secret.as_str().expect("a secret")), "{secret}");
    }
    let event = signed.event();
    assert_eq!((&event["specversion"], &event["id"]), (&json!("1.0"), &json!("order:s:o-0")));

    let delete =
        |id: &str| reqwest::Client::new().delete(format!("{}/v1/webhooks/{id}", served.url()));
    assert_eq!(delete(&id).send().await.expect("an answer").status(), 204);
    let (status, body) = answer(delete(&id)).await;
    assert_eq!((status, problem(&body)), (404, "unknown-webhook"));
    let (_, list) = answer(served.get("/v1/webhooks")).await;
    assert_eq!(list["webhooks"].as_array().map(Vec::len), Some(1));
    sender.stop().await;

    let wanted = floodgate::operator_log::Wanted { limit: 100, before: None, sale_id: None };
    let entries = stage.operator_log.entries(&wanted).await.expect("entries");
    let text = serde_json::to_string(&entries).expect("JSON");
    for action in ["webhook_registered", "webhook_secret_made", "webhook_deleted"] {
        assert!(text.contains(action), "{text}");
    }
    assert!(!text.contains("hush") && !text.contains("whsec_"), "{text}");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_webhook_that_is_registered_again_has_its_new_secret_at_once() {
    let (stage, served, receiver) = with_receiver("webhooks-again", 10).await;
    let request = json!({ "url": receiver.url() });
    let (id, old) = register(&served, &request).await;
    let sender = Sender::start(&stage.deployment.app).await;
    stage.post_orders(&orders("s", 1)).await;
    until(async || receiver.ids().len() == 1).await;
    until(async || webhook(&served, &id).await["waiting"] == 0).await;
    let path = format!("{}/v1/webhooks/{id}", served.url());
    let deleted = reqwest::Client::new().delete(path).send().await.expect("an answer");
    assert_eq!(deleted.status(), 204);
    let (again, secret) = register(&served, &request).await;
    assert_eq!(again, id);
    let before = receiver.requests().len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    stage.post_orders(&orders("s", 2)).await;
    until(async || receiver.ids().len() == 2).await;
    for request in &receiver.requests()[before..] {
        assert!(request.is_signed_by(&secret) && !request.is_signed_by(&old), "{request:?}");
    }
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn decisions_in_files_are_not_sent_again() {
    let (stage, served, receiver) = with_receiver("webhooks-archived", 10).await;
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let replay = || served.post(&format!("/v1/webhooks/{id}/replay"), &json!({ "sale_id": "s" }));
    assert_eq!(answer(replay()).await.0, 202);
    let mut ledger = database(&stage).await;
    sqlx::raw_sql("update sales set archived = true").execute(&mut ledger).await.expect("set");
    until(async || {
        let (status, body) = answer(replay()).await;
        status == 410 && problem(&body) == "archived"
    })
    .await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_with_its_reason_and_can_be_enabled() {
    let (stage, served, receiver) = with_receiver("webhooks-gone", 10).await;
    receiver.answer(StatusCode::GONE);
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let sender = Sender::start(&stage.deployment.app).await;
    stage.post_orders(&orders("s", 1)).await;
    until(async || webhook(&served, &id).await["state"] == "disabled").await;
    let told = webhook(&served, &id).await;
    assert_eq!(told["reason"], "it answered 410: as the test wants it", "{told}");
    let before = receiver.requests().len();
    receiver.answer(StatusCode::NO_CONTENT);
    stage.post_orders(&orders("s", 3)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.requests().len(), before, "nothing is sent");
    let enable = served.post(&format!("/v1/webhooks/{id}/enable"), &json!({}));
    let (status, body) = answer(enable).await;
    assert_eq!((status, &body["state"]), (200, &json!("active")), "{body}");
    until(async || receiver.ids().len() == 3).await;
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn what_fails_for_too_long_is_given_up_and_its_webhook_disabled() {
    let stage = Stage::with("webhooks-given-up", |settings| {
        with_webhooks(settings);
        settings.webhooks.give_up_after = Duration::from_secs(1);
        settings.webhooks.disable_after = Duration::from_secs(3);
    })
    .await;
    stage.open(sale("s", 10)).await;
    let served = Served::up(&stage.deployment.app).await;
    let receiver = Receiver::start().await;
    receiver.answer(StatusCode::INTERNAL_SERVER_ERROR);
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let sender = Sender::start(&stage.deployment.app).await;
    stage.post_orders(&orders("s", 1)).await;
    until(async || webhook(&served, &id).await["state"] == "disabled").await;
    let told = webhook(&served, &id).await;
    assert_eq!((&told["waiting"], &told["given_up"]), (&json!(0), &json!(1)), "{told}");
    let path = format!("/v1/webhooks/{id}/deliveries?state=given_up");
    let (_, listed) = answer(served.get(&path)).await;
    let delivery = &listed["deliveries"][0];
    assert_eq!((&delivery["status"], &delivery["attempts"]), (&json!(500), &json!(2)), "{listed}");
    assert_eq!(delivery["answer"], "as the test wants it");
    let text = stage.deployment.app.metrics().text();
    for line in [
        "floodgate_webhook_requests_total{result=\"failed\"} 1",
        "floodgate_webhook_requests_total{result=\"given_up\"} 1",
    ] {
        assert!(text.contains(line), "{line}");
    }
    until(async || {
        stage.deployment.app.metrics().text().contains("floodgate_webhooks{state=\"disabled\"} 1")
    })
    .await;
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn sending_again_leaves_nothing_out() {
    let stage = Stage::with("webhooks-again", with_webhooks).await;
    for id in ["s", "t"] {
        stage.open(sale(id, 10)).await;
    }
    let served = Served::up(&stage.deployment.app).await;
    let receiver = Receiver::start().await;
    let (id, _) = register(&served, &json!({ "url": receiver.url() })).await;
    let replay =
        async |what: Value| answer(served.post(&format!("/v1/webhooks/{id}/replay"), &what)).await;
    stage.post_orders(&orders("s", 3)).await;
    stage.post_orders(&orders("t", 3)).await;
    until(async || answer(served.get("/v1/events")).await.1["next"] == 5).await;
    assert_eq!(replay(json!({ "sale_id": "s" })).await.0, 202);
    let (status, body) = replay(json!({ "sale_id": "t" })).await;
    assert_eq!((status, problem(&body)), (409, "replaying"), "{body}");
    assert_eq!(replay(json!({ "sale_id": "s" })).await.0, 202, "the same again");
    for bad in [
        json!({}),
        json!({ "sale_id": "s", "since": "2026-01-01T00:00:00Z" }),
        json!({ "since": "2999-01-01T00:00:00Z" }),
        json!({ "since": "1969-01-01T00:00:00Z" }),
    ] {
        let (status, body) = replay(bad).await;
        assert_eq!((status, problem(&body)), (422, "invalid-request"), "{body}");
    }
    assert_eq!(replay(json!({ "sale_id": "none" })).await.0, 404);
    // Nothing was sent yet. From now on only would leave it out.
    let now = chrono::Utc::now().to_rfc3339();
    assert_eq!(replay(json!({ "since": now })).await.0, 202);
    let sender = Sender::start(&stage.deployment.app).await;
    until(async || receiver.ids().len() == 6).await;
    until(async || webhook(&served, &id).await["replaying"].is_null()).await;
    let before = receiver.requests().len();
    assert_eq!(replay(json!({ "sale_id": "t" })).await.0, 202);
    until(async || receiver.requests().len() == before + 3).await;
    assert_eq!(replay(json!({ "since": "2026-01-01T00:00:00Z" })).await.0, 202);
    until(async || receiver.requests().len() == before + 9).await;
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn nothing_is_sent_to_addresses_that_are_not_allowed() {
    let stage = Stage::with("webhooks-private", |settings| {
        with_webhooks(settings);
        settings.webhooks.allowed_networks = vec!["10.0.0.0/8".parse().expect("a network")];
    })
    .await;
    stage.open(sale("s", 10)).await;
    let served = Served::up(&stage.deployment.app).await;
    let receiver = Receiver::start().await;
    for (request, part) in [
        (json!({ "url": receiver.url() }), "127.0.0.1, which is not public"),
        (json!({ "url": "https://[::1]/" }), "not public"),
        (json!({ "url": "https://169.254.169.254/latest" }), "not public"),
        (json!({ "url": "file:///etc/passwd" }), "accepted: https:"),
        (json!({ "url": "https://shop.example", "sale_id": "a.b" }), "sale_id"),
        (json!({ "uri": "https://shop.example" }), "url"),
    ] {
        let (status, body) = answer(served.post("/v1/webhooks", &request)).await;
        assert_eq!((status, problem(&body)), (422, "invalid-request"), "{body}");
        assert!(body["detail"].as_str().is_some_and(|detail| detail.contains(part)), "{body}");
    }
    let unknown = json!({ "url": "https://shop.example", "sale_id": "none" });
    let (status, body) = answer(served.post("/v1/webhooks", &unknown)).await;
    assert_eq!((status, problem(&body)), (404, "unknown-sale"));
    // A name is looked up when it is sent to.
    let url = receiver.url().replace("127.0.0.1", "localhost");
    let (id, _) = register(&served, &json!({ "url": url })).await;
    let sender = Sender::start(&stage.deployment.app).await;
    stage.post_orders(&orders("s", 1)).await;
    until(async || webhook(&served, &id).await["state"] == "failing").await;
    let told = webhook(&served, &id).await;
    assert!(
        told["reason"].as_str().is_some_and(|why| why.contains("webhooks.allowed_networks")),
        "{told}"
    );
    assert!(receiver.requests().is_empty());
    sender.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn webhooks_are_for_operators_and_need_the_feed() {
    let stage = Stage::with("webhooks-token", |settings| {
        with_webhooks(settings);
        settings.api.jwt_secret = SECRET.into();
    })
    .await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let with = |scope: &str| {
        served.get("/v1/webhooks").bearer_auth(Signer::Hs256(SECRET).sign(&claims("ada", scope)))
    };
    assert_eq!(answer(served.get("/v1/webhooks")).await.0, 401);
    assert_eq!(answer(with("floodgate:events")).await.0, 403);
    assert_eq!(answer(with("floodgate:admin")).await.0, 200);
    served.stop().await;
    stage.remove().await;

    let stage = Stage::with("webhooks-no-feed", on_free_port).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let request = json!({ "url": "https://shop.example/events" });
    let (status, body) = answer(served.post("/v1/webhooks", &request)).await;
    assert_eq!((status, problem(&body)), (404, "no-feed"));
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let refused = stage.deployment.app.webhook_sender(&adapters, std::sync::Arc::default());
    assert!(refused.is_err_and(|error| error.to_string().contains("FLOODGATE_FEED__ENABLED")));
    served.stop().await;
    stage.remove().await;
}
