//! Sales that an operator pauses: their orders are refused, or held until they are resumed.

use std::time::Duration;

use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;
use floodgate::domain::sale::PauseMode;
use floodgate::ledger::Change;

use crate::harness::check::{self, Totals};
use crate::harness::deployment::Deployment;
use crate::harness::process::run;
use crate::harness::users::until_decided;
use crate::harness::{Stage, orders, sale, sale_id, until};

async fn pause(deployment: &Deployment, mode: Option<PauseMode>) {
    let change = Change::Pause { mode, at: chrono::Utc::now() };
    deployment.ledger().change(&sale_id("s"), &change).await.expect("changed");
}

/// Waits until `count` orders wait on a delay queue.
async fn until_held(deployment: &Deployment, count: u64) {
    until(async || deployment.broker().deferred().await.expect("deferred") == count).await;
}

#[tokio::test]
async fn held_orders_wait_and_are_then_sold_in_a_sale_that_its_inventory_knew_as_open() {
    for mut deployment in Deployment::both("hold").await {
        deployment.open(&sale("s", 30)).await;
        deployment.open(&sale("other", 5)).await;
        let worker = deployment.worker(None).await;
        let all = orders("s", 60);
        deployment.post_orders(&all[..10]).await;
        until_decided(deployment.ledger(), &all[..10]).await;

        pause(&deployment, Some(PauseMode::Hold)).await;
        deployment.post_orders(&all[10..]).await;
        until_held(&deployment, 50).await;
        assert_eq!(deployment.state("s").await.sold, 10);
        let beside = orders("other", 10);
        deployment.post_orders(&beside).await;
        until_decided(deployment.ledger(), &beside).await;

        pause(&deployment, None).await;
        let totals = deployment.settled(&[all, beside].concat()).await;
        assert_eq!(totals, Totals { created: 35, sold_out: 35, rejected: 0 });
        deployment.drain(worker).await;
        deployment.remove().await;
    }
}

#[tokio::test]
async fn held_orders_do_not_expire() {
    let max_age = Duration::from_secs(4);
    let stage = Stage::with("hold-age", |settings| settings.intent.max_age = max_age).await;
    stage.open(sale("s", 10)).await;
    let deployment = Deployment::Servers(Box::new(stage));
    pause(&deployment, Some(PauseMode::Hold)).await;
    let worker = deployment.worker(None).await;
    let all = orders("s", 5);
    deployment.post_orders(&all).await;
    until_held(&deployment, 5).await;
    // When they come back they are older than an order may be.
    tokio::time::sleep(max_age + Duration::from_secs(2)).await;
    pause(&deployment, None).await;
    until_decided(deployment.ledger(), &all).await;
    assert_eq!(deployment.outcomes(&all).await, [Outcome::Created; 5]);
    deployment.drain(worker).await;
    deployment.remove().await;
}

#[tokio::test]
async fn the_command_pauses_and_resumes_and_the_log_says_so() {
    let mut stage = Stage::new("pause").await;
    stage.open(sale("s", 20)).await;
    let worker = stage.worker().await;
    let all = orders("s", 30);
    let refuse = run(&stage, &["sale", "pause", "s", "--mode", "refuse", "--json"]);
    assert_eq!(refuse.status.code(), Some(0));
    let shown: serde_json::Value = serde_json::from_slice(&refuse.stdout).expect("JSON");
    assert_eq!((&shown["state"], &shown["paused"]), (&"paused".into(), &"refuse".into()));
    stage.post_orders(&all[..10]).await;
    until_decided(stage.ledger.as_ref(), &all[..10]).await;
    let paused = Outcome::Rejected(Reason::Paused);
    assert_eq!(check::outcomes(&stage, &all[..10]).await, [paused; 10]);

    // Held, then refused after all, and then sold to again.
    assert_eq!(run(&stage, &["sale", "pause", "s", "--mode", "hold"]).status.code(), Some(0));
    let held: &[Order] = &all[10..20];
    stage.post_orders(held).await;
    until(async || stage.broker.deferred().await.expect("deferred") == 10).await;
    assert_eq!(run(&stage, &["sale", "pause", "s", "--mode", "refuse"]).status.code(), Some(0));
    until_decided(stage.ledger.as_ref(), held).await;
    for _ in 0..2 {
        assert_eq!(run(&stage, &["sale", "resume", "s"]).status.code(), Some(0));
    }
    stage.post_orders(&all[20..]).await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 10, sold_out: 0, rejected: 20 });

    let log = run(&stage, &["operator-log", "--json"]);
    let log = String::from_utf8(log.stdout).expect("UTF-8");
    assert_eq!(log.matches("\"paused\"").count(), 3, "{log}");
    assert_eq!(log.matches("\"resumed\"").count(), 1, "{log}");
    assert_eq!(run(&stage, &["audit"]).status.code(), Some(0));

    let unknown = run(&stage, &["sale", "pause", "nope", "--mode", "hold"]);
    assert_eq!(unknown.status.code(), Some(1));
    let bad = run(&stage, &["sale", "pause", "s", "--mode", "wait"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("accepted: refuse, hold"));
    worker.stop().await;
    stage.remove().await;
}
