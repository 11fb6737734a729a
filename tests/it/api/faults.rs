//! Servers that are away while orders come in.

use floodgate::app::App;
use floodgate::config::Settings;
use floodgate_fault_proxy::{FaultProxy, Faults};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{header, refused, stage_with, until, wanted};
use crate::harness::api::{Served, answer};
use crate::harness::check::{self, Totals};
use crate::harness::{Stage, orders, sale, through_proxy};

const ORDERS: &str = "/v1/sales/s/orders";
const PATIENT: &str = "[broker]\nconfirm_timeout_ms = 1000\n[ledger]\ntimeout_ms = 1000";

/// The settings of `stage`, changed.
fn app_with(stage: &Stage, change: impl FnOnce(&mut Settings)) -> App {
    let mut settings = stage.deployment.app.settings().clone();
    change(&mut settings);
    App::new(settings)
}

/// An app that reaches the broker through a proxy.
async fn through_broker_proxy(stage: &Stage) -> (App, FaultProxy) {
    let direct = stage.deployment.app.settings().amqp_url.expose_secret();
    let (proxy, url) = through_proxy(direct).await;
    (app_with(stage, |settings| settings.amqp_url = url.into()), proxy)
}

fn hang(proxy: &FaultProxy) {
    proxy.set(Faults::without_answers());
    proxy.cut();
}

fn heal(proxy: &FaultProxy) {
    proxy.heal();
    proxy.cut();
}

#[tokio::test]
async fn while_the_broker_is_unavailable_orders_are_refused_and_none_that_was_accepted_is_lost() {
    let mut stage = stage_with("broker", PATIENT).await;
    stage.open(sale("s", 30)).await;
    let (app, proxy) = through_broker_proxy(&stage).await;
    let served = Served::without_worker(&app).await;
    let all = orders("s", 60);
    // As a client would: again with the same id until it is accepted.
    let post = async |from: usize, to: usize| {
        let posting = all[from..to].iter().map(async |order| {
            until("an order accepted", async || {
                let body = json!({ "order_id": order.id, "user_id": order.user_id, "quantity": 1 });
                let response = served.post(ORDERS, &body).send().await.expect("an answer");
                let status = response.status();
                assert!(status == 202 || status == 503, "{status}");
                assert!(status == 202 || header(&response, "retry-after").is_some());
                status == 202
            })
            .await;
        });
        futures_util::future::join_all(posting).await;
    };
    post(0, 20).await;
    hang(&proxy);
    let alone = json!({ "order_id": "o-20", "user_id": "u-20", "quantity": 1 });
    refused(served.post(ORDERS, &alone), 503, "broker-unavailable").await;
    until("not ready", async || {
        served.get("/readyz").send().await.expect("an answer").status() == 503
    })
    .await;
    refused(served.get("/readyz"), 503, "broker-unavailable").await;
    assert_eq!(served.get("/livez").send().await.expect("an answer").status(), 200);
    // What needs no broker works.
    assert_eq!(answer(served.get("/v1/sales/s")).await.0, 200);
    tokio::join!(post(20, 40), async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        heal(&proxy);
    });
    // Links that break, one after the other, rather than one that hangs.
    tokio::join!(post(40, 60), async {
        for _ in 0..5 {
            proxy.cut();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    until("ready again", async || {
        served.get("/readyz").send().await.expect("an answer").status() == 200
    })
    .await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 30, sold_out: 30, rejected: 0 });
    // Replies come again too.
    until("a decision that was waited for", async || {
        let again = served.post(ORDERS, &wanted("again", 1)).header("prefer", "wait=1");
        [200, 410].contains(&again.send().await.expect("an answer").status().as_u16())
    })
    .await;
    worker.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn replies_come_again_after_the_broker_was_unavailable() {
    let stage = stage_with("replies", PATIENT).await;
    stage.open(sale("s", 1000)).await;
    let (app, proxy) = through_broker_proxy(&stage).await;
    let served = Served::up(&app).await;
    let ask = || served.post(ORDERS, &json!({ "user_id": "u", "quantity": 1 }));
    assert_eq!(answer(ask().header("prefer", "wait=30")).await.0, 200);
    proxy.cut();
    let mut n = 0;
    until("a decision that was waited for", async || {
        n += 1;
        let order = served.post(ORDERS, &wanted(&format!("u-{n}"), 1)).header("prefer", "wait=1");
        order.send().await.expect("an answer").status() == 200
    })
    .await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn while_the_ledger_is_unavailable_orders_for_known_sales_are_accepted() {
    let mut stage = stage_with("ledger", PATIENT).await;
    stage.open(sale("s", 30)).await;
    let direct = stage.deployment.app.settings().database_url.expose_secret();
    let (proxy, url) = through_proxy(direct).await;
    let app = app_with(&stage, |settings| settings.database_url = url.into());
    let served = Served::without_worker(&app).await;
    let all = orders("s", 20);
    let post = async |order: &floodgate::domain::order::Order| {
        let body = json!({ "order_id": order.id, "user_id": order.user_id, "quantity": 1 });
        let response = served.post(ORDERS, &body).send().await.expect("an answer");
        assert_eq!(response.status(), 202, "{}", order.id);
    };
    for order in &all[..10] {
        post(order).await;
    }
    hang(&proxy);
    for order in &all[10..] {
        post(order).await;
    }
    refused(served.get("/v1/sales/s/orders/o-1"), 503, "ledger-unavailable").await;
    refused(served.get("/v1/sales"), 503, "ledger-unavailable").await;
    refused(served.get("/v1/sales/s"), 503, "ledger-unavailable").await;
    refused(served.post("/v1/sales/t/orders", &wanted("u", 1)), 503, "ledger-unavailable").await;
    let restock = json!({ "adjustment_id": "a", "units": 1 });
    refused(served.post("/v1/sales/s/restock", &restock), 503, "ledger-unavailable").await;
    refused(served.post("/v1/sales/s/close", &json!(null)), 503, "ledger-unavailable").await;
    until("not ready", async || {
        served.get("/readyz").send().await.expect("an answer").status() == 503
    })
    .await;
    refused(served.get("/readyz"), 503, "ledger-unavailable").await;
    heal(&proxy);
    until("ready again", async || {
        served.get("/readyz").send().await.expect("an answer").status() == 200
    })
    .await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 20, sold_out: 0, rejected: 0 });
    assert_eq!(answer(served.get("/v1/sales/s/orders/o-1")).await.0, 200);
    worker.stop().await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_ledger_that_hangs_holds_up_no_order() {
    // With time limits as they are by default, all of them the same.
    let stage = stage_with("hang", "").await;
    stage.open(sale("s", 30)).await;
    let direct = stage.deployment.app.settings().database_url.expose_secret();
    let (proxy, url) = through_proxy(direct).await;
    let app = app_with(&stage, |settings| settings.database_url = url.into());
    let served = Served::without_worker(&app).await;
    let order = |id: &str| {
        let body = json!({ "order_id": id, "user_id": "u", "quantity": 1 });
        served.post(ORDERS, &body)
    };
    assert_eq!(answer(order("a")).await.0, 202);
    hang(&proxy);
    assert_eq!(answer(order("b")).await.0, 202);
    refused(served.get("/v1/sales/s/orders/a"), 503, "ledger-unavailable").await;
    heal(&proxy);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_broker_that_hangs_is_told_from_a_client_that_does() {
    let stage = stage_with("hang-broker", "").await;
    stage.open(sale("s", 30)).await;
    let (app, proxy) = through_broker_proxy(&stage).await;
    let served = Served::without_worker(&app).await;
    assert_eq!(answer(served.post(ORDERS, &wanted("u", 1))).await.0, 202);
    hang(&proxy);
    let response = served.post(ORDERS, &wanted("u", 1)).send().await.expect("an answer");
    assert_eq!(response.status(), 503, "not 408, which says that the client was slow");
    assert!(header(&response, "retry-after").is_some());
    heal(&proxy);
    served.stop().await;
    stage.remove().await;
}
