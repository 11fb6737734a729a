//! Redis that is another server by now, damaged, or wrong: it costs time and never a unit.

use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;
use floodgate::domain::sale::{Sale, SaleState};

use crate::harness::check::{self, Totals};
use crate::harness::process::PrivateRedis;
use crate::harness::users::until_decided;
use crate::harness::{
    Stage, address, candidate, order, orders, redis, redis_keys, sale, sale_id, through_proxy,
    until,
};

/// The keys of a server's that belong to sale `s`.
fn held(redis: &PrivateRedis) -> usize {
    redis.command(&["KEYS", "*{s}*"]).split_whitespace().count()
}

#[tokio::test]
async fn after_a_failover_the_new_primary_is_used_although_connections_were_kept() {
    let (old, new) = (PrivateRedis::start(), PrivateRedis::start());
    let (proxy, url) = through_proxy(&old.url()).await;
    let mut stage = Stage::with("failover", |settings| settings.redis_url = url.into()).await;
    stage.open(sale("s", 1500)).await;
    let all = orders("s", 3000);
    let worker = stage.worker().await;
    stage.post_orders(&all[..1000]).await;
    until_decided(stage.ledger.as_ref(), &all[..1000]).await;
    assert!(held(&old) > 0 && held(&new) == 0);

    proxy.lead_to(address(&new.url()));
    let (host, port) = address(&new.url())
        .split_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .expect("a port");
    old.command(&["REPLICAOF", &host, &port]);
    // The orders of the first seconds go without hints, or with old ones.
    let mut posted = 1000;
    let begun = std::time::Instant::now();
    while held(&new) == 0 {
        assert!(posted < 2900, "the new primary is not used");
        stage.post_orders(&all[posted..posted + 100]).await;
        until_decided(stage.ledger.as_ref(), &all[posted..posted + 100]).await;
        posted += 100;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    stage.post_orders(&all[posted..]).await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 1500, sold_out: 1500, rejected: 0 });
    check::empty(&stage).await;
    worker.stop().await;
    stage.remove().await;
}

async fn command(stage: &Stage, words: &[&str]) {
    let mut command = ::redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async::<()>(&mut redis(stage).await).await.expect("done");
}

/// A field of what Redis holds of a sale.
async fn field(stage: &Stage, sale: &str, field: &str) -> Option<String> {
    let [key, ..] = redis_keys(stage, &sale_id(sale));
    let mut get = ::redis::cmd("HGET");
    get.arg(key).arg(field);
    get.query_async(&mut redis(stage).await).await.expect("a hash")
}

#[tokio::test]
async fn a_key_of_the_wrong_type_costs_no_unit_and_is_made_right() {
    for damaged in 0..3 {
        let mut stage = Stage::new("damaged").await;
        let limited = Sale { per_user_limit: Some(1), ..sale("s", 300) };
        stage.open(limited).await;
        stage.open(sale("other", 300)).await;
        let (mine, others) = (orders("s", 900), orders("other", 900));
        let mixed: Vec<Order> =
            mine.iter().zip(&others).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
        let worker = stage.worker().await;
        stage.post_orders(&mixed[..300]).await;
        until_decided(stage.ledger.as_ref(), &mixed[..300]).await;
        let keys = redis_keys(&stage, &sale_id("s"));
        stage.post_orders(&mixed[300..800]).await;
        command(&stage, &["SET", &keys[damaged], "not what it was"]).await;
        stage.post_orders(&mixed[800..]).await;
        let totals = check::settled(&mut stage, &mixed).await;
        assert_eq!(totals, Totals { created: 600, sold_out: 1200, rejected: 0 }, "{damaged}");
        until(async || field(&stage, "s", "stock").await.as_deref() == Some("0")).await;
        for (key, expected) in keys.iter().zip(["hash", "set", "hash"]) {
            let mut get = ::redis::cmd("TYPE");
            get.arg(key);
            let kind: String = get.query_async(&mut redis(&stage).await).await.expect("its type");
            assert!(kind == expected || kind == "none", "{key} is a {kind}");
        }
        worker.stop().await;
        stage.remove().await;
    }
}

/// Ways in which Redis may be wrong: fields of the sale's hash.
const WRONG: [&[&str]; 10] = [
    &["stock", "1000000"],
    &["stock", "0"],
    &["stock", "-7"],
    &["version", "99", "sold", "99"],
    &["version", "0"],
    &["stock", "0", "version", "99"],
    &["opens_at", "99999999999999"],
    &["closes_at", "1"],
    &["verification", "1"],
    &["limit", "0"],
];

/// A stage with sales of 50 units, one for each buyer, that Redis holds.
async fn primed(what: &str, sales: &[String]) -> Stage {
    let stage = Stage::with(what, |settings| settings.worker.max_batch = 16).await;
    for id in sales {
        let limited = Sale { per_user_limit: Some(1), ..sale(id, 50) };
        stage.open(limited.clone()).await;
        stage.inventory.prime(&[SaleState::opened(limited)]).await.expect("prime");
    }
    stage
}

/// Each of `sales` sells its stock to the first of its 120 buyers.
async fn sell_their_stock(stage: &mut Stage, sales: &[String]) {
    let all: Vec<Vec<Order>> = sales.iter().map(|id| orders(id, 120)).collect();
    let mixed: Vec<Order> =
        (0..120).flat_map(|n| all.iter().map(move |orders| orders[n].clone())).collect();
    stage.post_orders(&mixed).await;
    let worker = stage.worker().await;
    let totals = check::settled(stage, &mixed).await;
    for (id, orders) in sales.iter().zip(&all) {
        let outcomes = check::outcomes(stage, orders).await;
        assert_eq!(outcomes[..50], [Outcome::Created; 50], "{id}");
        assert_eq!(outcomes[50..], [Outcome::SoldOut; 70], "{id}");
    }
    let (created, sold_out) = (50 * sales.len(), 70 * sales.len());
    assert_eq!(totals, Totals { created, sold_out, rejected: 0 });
    check::empty(stage).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_sale_sells_its_stock_whatever_redis_says_of_it() {
    let sales: Vec<String> = (0..WRONG.len()).map(|n| format!("wrong-{n}")).collect();
    let mut stage = primed("wrong-hints", &sales).await;
    for (id, wrong) in sales.iter().zip(WRONG) {
        let [key, ..] = redis_keys(&stage, &sale_id(id));
        command(&stage, &[&["HSET", key.as_str()], wrong].concat()).await;
    }
    sell_their_stock(&mut stage, &sales).await;
    stage.remove().await;
}

#[tokio::test]
async fn a_sale_sells_its_stock_whatever_redis_says_of_its_buyers_and_orders() {
    let sales = ["orders".to_owned(), "buyers".to_owned(), "forgotten".to_owned()];
    let mut stage = primed("wrong-hints", &sales).await;
    // It has deducted for orders that nobody has decided: the last ones of the queue.
    let early: Vec<_> = orders("orders", 120).split_off(70).into_iter().map(candidate).collect();
    let early: Vec<_> = early.iter().collect();
    stage.inventory.propose(&early, std::time::Duration::from_hours(1)).await.expect("hints");
    assert_eq!(field(&stage, "orders", "stock").await.as_deref(), Some("0"));
    // Every buyer is at the limit.
    let [_, _, buyers] = redis_keys(&stage, &sale_id("buyers"));
    for n in 0..120 {
        command(&stage, &["HSET", &buyers, &format!("u-{n}"), "1"]).await;
    }
    sell_their_stock(&mut stage, &sales).await;

    // Nobody has bought anything, though fifty have, and there is plenty left.
    let [key, _, buyers] = redis_keys(&stage, &sale_id("forgotten"));
    command(&stage, &["DEL", &buyers]).await;
    command(&stage, &["HSET", &key, "stock", "1000"]).await;
    let again: Vec<Order> =
        (0..50).map(|n| order(&format!("again-{n}"), "forgotten", &format!("u-{n}"), 1)).collect();
    stage.post_orders(&again).await;
    let worker = stage.worker().await;
    until_decided(stage.ledger.as_ref(), &again).await;
    let limit = Outcome::Rejected(Reason::PurchaseLimit);
    assert_eq!(check::outcomes(&stage, &again).await, [limit; 50]);
    worker.stop().await;
    stage.remove().await;
}
