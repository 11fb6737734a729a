//! Sales that are paused by the API.

use serde_json::json;

use super::{order_until, refused, stage, wanted};
use crate::harness::api::{Served, answer};
use crate::harness::sale;

#[tokio::test]
async fn a_paused_sale_refuses_at_once_or_takes_orders_that_wait() {
    let stage = stage("paused").await;
    stage.open(sale("s", 10)).await;
    let (here, there) = (
        Served::up(&stage.deployment.app).await,
        Served::without_worker(&stage.deployment.app).await,
    );
    order_until(&there, "s", 202).await;
    let pause = async |mode: &str| {
        let (status, paused) =
            answer(here.post("/v1/sales/s/pause", &json!({ "mode": mode }))).await;
        assert_eq!(status, 200);
        assert_eq!((&paused["state"], &paused["paused"]), (&"paused".into(), &mode.into()));
    };
    let orders = "/v1/sales/s/orders";
    pause("refuse").await;
    refused(here.post(orders, &wanted("u", 1)), 409, "sale-paused").await;
    order_until(&there, "s", 409).await;
    // An id that a client has chosen may have been taken before: the queue has the answer.
    let mut chosen = wanted("u", 1);
    chosen["order_id"] = json!("chosen");
    let (status, decision) = answer(here.post(orders, &chosen).header("prefer", "wait=30")).await;
    assert_eq!((status, &decision["reason"]), (200, &"paused".into()), "{decision}");

    pause("hold").await;
    order_until(&there, "s", 202).await;
    let mut held = wanted("v", 1);
    held["order_id"] = json!("held");
    let (status, _) = answer(here.post(orders, &held).header("prefer", "wait=1")).await;
    assert_eq!(status, 202);
    refused(here.get("/v1/sales/s/orders/held"), 404, "not-decided").await;

    let (status, resumed) = answer(here.post("/v1/sales/s/resume", &json!(null))).await;
    assert_eq!((status, &resumed["state"]), (200, &"open".into()));
    assert_eq!(resumed["paused"], json!(null));
    let (status, decision) = answer(here.post(orders, &held).header("prefer", "wait=30")).await;
    assert_eq!((status, &decision["outcome"]), (200, &"created".into()), "{decision}");

    refused(here.post("/v1/sales/s/pause", &json!({ "mode": "wait" })), 422, "invalid-request")
        .await;
    refused(here.post("/v1/sales/nope/pause", &json!({ "mode": "hold" })), 404, "unknown-sale")
        .await;
    refused(here.post("/v1/sales/nope/resume", &json!(null)), 404, "unknown-sale").await;
    here.stop().await;
    there.stop().await;
    stage.remove().await;
}
