//! URLs with several hosts: nodes that are down, a cluster of Redis, Sentinels. Failovers are in `scripts/failovers`.

use std::time::{Duration, Instant};

use floodgate::config::Settings;
use floodgate::domain::order::Order;
use secrecy::ExposeSecret;

use crate::harness::check::{self, Totals};
use crate::harness::process::PrivateRedis;
use crate::harness::users::until_decided;
use crate::harness::{PATIENCE, Stage, orders, sale};

/// `url` with a host before its own at which nothing listens.
fn after_one_that_is_down(url: &str) -> String {
    let (before, after) = url
        .rsplit_once('@')
        .map_or_else(
            || url.split_once("://").map(|(scheme, rest)| (format!("{scheme}://"), rest)),
            |(user, rest)| Some((format!("{user}@"), rest)),
        )
        .expect("a URL");
    format!("{before}127.0.0.1:1,{after}")
}

/// Sells half as many units as there are orders in each of some sales.
async fn sells(stage: &mut Stage) {
    let mut all: Vec<Order> = Vec::new();
    for id in ["a", "b", "c", "d", "e"] {
        stage.open(sale(id, 50)).await;
        all.extend(orders(id, 100));
    }
    let worker = stage.worker().await;
    stage.post_orders(&all).await;
    let totals = check::settled(stage, &all).await;
    assert_eq!(totals, Totals { created: 250, sold_out: 250, rejected: 0 });
    check::empty(stage).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_host_that_is_down_is_passed_over() {
    let change = |settings: &mut Settings| {
        for url in [&mut settings.amqp_url, &mut settings.database_url] {
            *url = after_one_that_is_down(url.expose_secret()).into();
        }
    };
    let mut stage = Stage::with("hosts", change).await;
    sells(&mut stage).await;
    stage.remove().await;
}

#[tokio::test]
async fn a_cluster_of_redis_holds_each_sale_on_one_of_its_nodes() {
    let nodes = PrivateRedis::cluster();
    let url = format!("{}?cluster=true", nodes[0].url());
    let mut stage = Stage::with("cluster", |settings| settings.redis_url = url.into()).await;
    sells(&mut stage).await;
    let keys = |node: &PrivateRedis| node.command(&["KEYS", "*:sale"]).split_whitespace().count();
    let held = nodes.each_ref().map(keys);
    assert!(held.iter().all(|&sales| sales > 0) && held.iter().sum::<usize>() == 5, "{held:?}");
    let held = stage.deployment.app.audited().await.expect("servers").holdings.expect("Redis");
    assert_eq!(held.sales().await.expect("sales"), ["a", "b", "c", "d", "e"]);
    stage.remove().await;
    assert_eq!(nodes.each_ref().map(keys), [0, 0], "removed on every node");
}

#[tokio::test]
async fn the_primary_that_sentinels_know_is_used_also_after_a_failover() {
    let (first, second) = (PrivateRedis::start(), PrivateRedis::start());
    let sentinel = PrivateRedis::sentinel("shop", &first);
    let url = format!("{}?sentinel=shop", sentinel.url());
    let mut stage = Stage::with("sentinel", |settings| settings.redis_url = url.into()).await;
    let held =
        |server: &PrivateRedis| server.command(&["KEYS", "*:sale"]).split_whitespace().count();
    sells(&mut stage).await;
    assert_eq!((held(&first), held(&second)), (5, 0));
    sentinel.command(&["SENTINEL", "REMOVE", "shop"]);
    sentinel.command(&[
        "SENTINEL",
        "MONITOR",
        "shop",
        "127.0.0.1",
        &second.port().to_string(),
        "1",
    ]);
    drop(first);
    stage.open(sale("f", 50)).await;
    let worker = stage.worker().await;
    // Orders go without hints until the other one is used.
    let (all, begun) = (orders("f", 1000), Instant::now());
    for some in all.chunks(10) {
        stage.post_orders(some).await;
        until_decided(stage.ledger.as_ref(), some).await;
        if held(&second) > 0 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the new primary is not used");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(held(&second), 1);
    worker.stop().await;
    stage.remove().await;
}
