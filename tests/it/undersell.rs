//! Every unit sells: orders that must be refused cost nobody else a unit, whatever Redis holds, and
//! whichever process dies in between.

#[path = "undersell/after_refusals.rs"]
mod after_refusals;

use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;
use floodgate_fault_proxy::Faults;

use crate::harness::check::{self, Totals};
use crate::harness::deployment::Deployment;
use crate::harness::embedded::Embedded;
use crate::harness::process::{PrivateRedis, WorkerProcess};
use crate::harness::{
    Stage, body, order, orders, redis, redis_keys, sale, sale_id, through_proxy, until,
};

/// `count` orders of one unit each, whose ids and users begin with `who`.
fn from(who: &str, count: usize) -> Vec<Order> {
    let one = |n| order(&format!("{who}-o-{n}"), "s", &format!("{who}-{n}"), 1);
    (0..count).map(one).collect()
}

#[tokio::test]
async fn order_ids_that_another_sale_has_used_cost_no_unit() {
    for mut deployment in Deployment::both("ids").await {
        deployment.open(&sale("other", 100)).await;
        deployment.open(&sale("s", 10)).await;
        let before = orders("other", 10);
        deployment.post_orders(&before).await;
        let worker = deployment.worker(None).await;
        // The same ids, of other buyers; and then more than enough others.
        let same: Vec<Order> =
            (0..10).map(|n| order(&format!("o-{n}"), "s", &format!("v-{n}"), 1)).collect();
        let valid = from("w", 50);
        deployment.post_orders(&same).await;
        deployment.post_orders(&valid).await;
        let all = [before, same.clone(), valid].concat();
        let totals = deployment.settled(&all).await;
        assert_eq!(totals, Totals { created: 20, sold_out: 50, rejected: 0 });
        assert_eq!(deployment.state("s").await.sold, 10);
        assert_eq!(deployment.outcomes(&same).await, [Outcome::Created; 10]);
        deployment.drain(worker).await;
        deployment.remove().await;
    }
}

#[tokio::test]
async fn conflicts_that_redis_knows_nothing_of_cost_no_unit() {
    let redis = PrivateRedis::start();
    let url = redis.url();
    let stage = Stage::with("conflicts", |settings| settings.redis_url = url.into()).await;
    let mut deployment = Deployment::Servers(Box::new(stage));
    deployment.open(&sale("s", 20)).await;
    let first = orders("s", 10);
    deployment.post_orders(&first).await;
    let worker = deployment.worker(None).await;
    until(async || deployment.state("s").await.sold == 10).await;
    redis.command(&["FLUSHALL"]);
    let others: Vec<Vec<u8>> =
        (0..10).map(|n| body(&order(&format!("o-{n}"), "s", &format!("u-{n}"), 2))).collect();
    deployment.post(&others).await;
    let valid = from("v", 50);
    deployment.post_orders(&valid).await;
    let totals = deployment.settled(&[first, valid].concat()).await;
    assert_eq!(totals, Totals { created: 20, sold_out: 40, rejected: 0 });
    deployment.are_dead(&others, "order_id_conflict").await;
    deployment.drain(worker).await;
    deployment.remove().await;
}

#[tokio::test]
async fn buyers_at_their_limit_whom_redis_has_forgotten_cost_no_unit() {
    let redis = PrivateRedis::start();
    let url = redis.url();
    let stage = Stage::with("limit", |settings| settings.redis_url = url.into()).await;
    let mut deployment = Deployment::Servers(Box::new(stage));
    deployment.open(&Sale { per_user_limit: Some(1), ..sale("s", 50) }).await;
    let first = orders("s", 25);
    deployment.post_orders(&first).await;
    let worker = deployment.worker(None).await;
    until(async || deployment.state("s").await.sold == 25).await;
    redis.command(&["FLUSHALL"]);
    let again: Vec<Order> =
        (0..25).map(|n| order(&format!("again-{n}"), "s", &format!("u-{n}"), 1)).collect();
    let valid = from("v", 25);
    deployment.post_orders(&again).await;
    deployment.post_orders(&valid).await;
    let totals = deployment.settled(&[first, again.clone(), valid].concat()).await;
    assert_eq!(totals, Totals { created: 50, sold_out: 0, rejected: 25 });
    assert_eq!(
        deployment.outcomes(&again).await,
        [Outcome::Rejected(Reason::PurchaseLimit); 25],
        "nobody is above the limit"
    );
    deployment.drain(worker).await;
    deployment.remove().await;
}

#[tokio::test]
async fn an_embedded_sale_with_a_limit_sells_its_stock_through_sudden_ends() {
    let embedded = Embedded::new().await;
    let limited = Sale { per_user_limit: Some(2), ..sale("s", 60) };
    embedded.ledger.open(&[limited]).await.expect("open");
    let mut events = embedded.events().await;
    // Three orders of each buyer, of which two may be created.
    let all: Vec<Order> =
        (0..120).map(|n| order(&format!("o-{n}"), "s", &format!("u-{}", n % 40), 1)).collect();
    let bodies: Vec<Vec<u8>> = all.iter().map(body).collect();
    crate::harness::post(embedded.broker.as_ref(), &bodies).await;
    for gap in ["parsed", "decided", "confirmed", "acked"] {
        let fail_points = format!("{gap}=2*off->return");
        let variables =
            [("FAILPOINTS", fail_points.as_str()), ("FLOODGATE_WORKER__MAX_BATCH", "8")];
        let doomed = WorkerProcess::embedded(&embedded, &variables);
        assert_eq!(doomed.wait(), None, "{gap}: it aborts");
    }
    let sold = embedded.ledger.sales(None).await.expect("sales")[0].sold;
    assert!((8..60).contains(&sold), "it ended in the middle: {sold}");
    let worker = WorkerProcess::embedded(&embedded, &[]);
    let totals = check::settled_in(embedded.ledger.as_ref(), &mut events, &all, 0).await;
    // In queue order: everybody's first and the second of half of them, who have reached the limit then.
    assert_eq!(totals, Totals { created: 60, sold_out: 40, rejected: 20 });
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
}

/// The units that Redis counts for a buyer.
async fn counted(stage: &Stage, user: &str) -> u32 {
    let [_, _, buyers] = redis_keys(stage, &sale_id("s"));
    let mut get = ::redis::cmd("HGET");
    get.arg(buyers).arg(user);
    get.query_async::<Option<u32>>(&mut redis(stage).await).await.expect("HGET").unwrap_or(0)
}

#[tokio::test]
async fn an_amendment_that_fails_costs_its_buyer_nothing() {
    let amend = ::redis::Script::new(include_str!("../../src/inventory/lua/amend.lua"));
    for passes in [false, true] {
        let redis = PrivateRedis::start();
        let (proxy, url) = through_proxy(&redis.url()).await;
        let mut stage = Stage::with("amend", |settings| settings.redis_url = url.into()).await;
        let limited = Sale { per_user_limit: Some(3), ..sale("s", 4) };
        stage.open(limited.clone()).await;
        let worker = stage.worker().await;
        let first = order("o", "s", "u", 1);
        stage.post_orders(std::slice::from_ref(&first)).await;
        stage.event().await;

        // Redis forgets the buyer, grants a conflict, and is not told that it was wrong.
        crate::harness::forget(&stage, &[limited]).await;
        let sales = stage.ledger.sales(None).await.expect("sales");
        stage.inventory.prime(&sales).await.expect("prime");
        proxy.set(Faults::trap(amend.get_hash(), passes));
        let conflict = order("o", "s", "u", 2);
        stage.post_orders(std::slice::from_ref(&conflict)).await;
        assert_eq!(stage.dead_letters(1).await, [("order_id_conflict".into(), body(&conflict))]);
        until(async || proxy.trapped() > 0).await;
        proxy.heal();
        let wrong = if passes { 1 } else { 2 };
        until(async || counted(&stage, "u").await == wrong).await;

        let (second, last) = (order("p", "s", "u", 2), order("q", "s", "v", 1));
        let all = [first, second, last];
        stage.post_orders(&all[1..]).await;
        let totals = check::settled_but(&mut stage, &all, 1).await;
        assert_eq!(totals, Totals { created: 3, sold_out: 0, rejected: 0 });
        worker.stop().await;
        stage.remove().await;
    }
}
