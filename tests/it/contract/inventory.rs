//! The contract of `Inventory`. Which hints single orders may get is in `vectors`; here is what the port
//! promises around them.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use floodgate::domain::decision::Hint;
use floodgate::domain::order::{Candidate, Order, UserId};
use floodgate::domain::sale::{Sale, SaleState};
use floodgate::inventory::{Amendment, InventoryError};

use crate::harness::{Stage, candidate, order, orders, redis, redis_keys, sale, sale_id};

const MAX_AGE: Duration = Duration::from_hours(1);
const YES: Option<Hint> = Some(Hint::Granted);
const NO: Option<Hint> = Some(Hint::Refused);

async fn try_propose(stage: &Stage, orders: &[Order]) -> Result<Vec<Option<Hint>>, InventoryError> {
    let candidates: Vec<Candidate> = orders.iter().cloned().map(candidate).collect();
    let candidates: Vec<&Candidate> = candidates.iter().collect();
    Ok(stage.inventory.propose(&candidates, MAX_AGE).await?.hints)
}

async fn propose(stage: &Stage, orders: &[Order]) -> Vec<Option<Hint>> {
    try_propose(stage, orders).await.expect("hints")
}

async fn prime(stage: &Stage, sale: Sale) -> SaleState {
    let opened = SaleState::opened(sale);
    stage.inventory.prime(std::slice::from_ref(&opened)).await.expect("prime");
    opened
}

async fn amend(stage: &Stage, sale: &SaleState, orders: Vec<(&Order, bool)>) {
    let orders = orders.into_iter().map(|(order, granted)| (order.clone(), granted)).collect();
    let amendment = Amendment { orders, ..Amendment::of(sale.clone()) };
    stage.inventory.amend(&[amendment]).await.expect("amend");
}

/// The stock left by its own count.
async fn left(stage: &Stage, id: &str) -> Option<u32> {
    let [key, ..] = redis_keys(stage, &sale_id(id));
    let mut get = ::redis::cmd("HGET");
    get.arg(key).arg("stock");
    get.query_async(&mut redis(stage).await).await.expect("HGET")
}

#[tokio::test]
async fn a_sale_is_held_once_it_is_primed_and_orders_are_answered_in_their_order() {
    let stage = Stage::new("inventory").await;
    let all = [order("a", "s", "u", 2), order("b", "t", "u", 1), order("c", "s", "u", 2)];
    assert_eq!(propose(&stage, &all).await, [None, None, None]);
    prime(&stage, sale("s", 3)).await;
    assert_eq!(propose(&stage, &all).await, [YES, None, NO]);
    prime(&stage, sale("t", 3)).await;
    assert_eq!(propose(&stage, &all).await, [YES, YES, NO], "a again, b is new");
    assert_eq!((left(&stage, "s").await, left(&stage, "t").await), (Some(1), Some(2)));
    stage.remove().await;
}

#[tokio::test]
async fn copies_at_once_are_deducted_once() {
    let stage = Stage::new("inventory").await;
    prime(&stage, sale("s", 100)).await;
    let all = orders("s", 20);
    let candidates: Vec<Candidate> = all.iter().cloned().map(candidate).collect();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (inventory, candidates) = (stage.inventory.clone(), candidates.clone());
        calls.spawn(async move {
            let candidates: Vec<&Candidate> = candidates.iter().chain(&candidates).collect();
            inventory.propose(&candidates, MAX_AGE).await.expect("hints").hints
        });
    }
    while let Some(hints) = calls.join_next().await {
        assert!(hints.expect("no panic").iter().all(|hint| *hint == YES));
    }
    assert_eq!(left(&stage, "s").await, Some(80));
    stage.remove().await;
}

#[tokio::test]
async fn an_amendment_overwrites_the_state_and_takes_orders_in_and_out() {
    let stage = Stage::new("inventory").await;
    let opened = prime(&stage, sale("s", 5)).await;
    let (wrong, right) = (order("a", "s", "u", 3), order("b", "s", "v", 3));
    assert_eq!(propose(&stage, &[wrong.clone(), right.clone()]).await, [YES, NO]);
    let sold = SaleState { sold: 3, ..opened.clone() };
    for _ in 0..2 {
        amend(&stage, &sold, vec![(&wrong, false), (&right, true)]).await;
        assert_eq!(left(&stage, "s").await, Some(2));
        assert_eq!(propose(&stage, &[right.clone(), wrong.clone()]).await, [YES, NO]);
    }
    // Late ones: what they say of orders holds, the older state does not.
    amend(&stage, &opened, vec![]).await;
    assert_eq!(left(&stage, "s").await, Some(2));
    let restocked = SaleState { version: 2, sale: sale("s", 50), ..sold.clone() };
    amend(&stage, &restocked, vec![]).await;
    amend(&stage, &SaleState { sold: 5, ..sold }, vec![]).await;
    assert_eq!(left(&stage, "s").await, Some(47));
    // Of a sale that is not held nothing is taken in.
    amend(&stage, &SaleState::opened(sale("t", 9)), vec![(&order("a", "t", "u", 1), true)]).await;
    assert_eq!(propose(&stage, &[order("a", "t", "u", 1)]).await, [None]);
    stage.remove().await;
}

#[tokio::test]
async fn an_amendment_without_orders_only_lowers_the_stock_of_the_same_version() {
    let stage = Stage::new("inventory").await;
    let opened = prime(&stage, sale("s", 9)).await;
    assert_eq!(propose(&stage, &[order("in-flight", "s", "u", 4)]).await, [YES]);
    amend(&stage, &SaleState { sold: 2, ..opened.clone() }, vec![]).await;
    assert_eq!(left(&stage, "s").await, Some(5), "what is in flight stays deducted");
    amend(&stage, &SaleState { sold: 6, ..opened.clone() }, vec![]).await;
    assert_eq!(left(&stage, "s").await, Some(3));
    let restocked = SaleState { sold: 6, version: 2, sale: sale("s", 20), ..opened };
    amend(&stage, &restocked, vec![]).await;
    assert_eq!(left(&stage, "s").await, Some(14));
    stage.remove().await;
}

#[tokio::test]
async fn priming_a_sale_that_is_held_takes_over_what_is_newer() {
    let stage = Stage::new("inventory").await;
    let opened = prime(&stage, sale("s", 5)).await;
    let first = order("a", "s", "u", 3);
    propose(&stage, std::slice::from_ref(&first)).await;
    let closed = Sale { closes_at: Some(Utc::now() - TimeDelta::minutes(1)), ..sale("s", 5) };
    let newer = SaleState { version: 2, sale: closed, sold: 3, ..opened };
    stage.inventory.prime(&[newer]).await.expect("prime");
    assert_eq!(propose(&stage, &[first, order("b", "s", "v", 1)]).await, [YES, NO]);
    stage.remove().await;
}

#[tokio::test]
async fn an_amendment_teaches_what_buyers_have() {
    let stage = Stage::new("inventory").await;
    let opened = prime(&stage, Sale { per_user_limit: Some(2), ..sale("s", 9) }).await;
    let sold = SaleState { sold: 2, ..opened };
    let user = UserId::parse("u").expect("id");
    let amendment = Amendment { buyers: vec![(user, 2)], ..Amendment::of(sold) };
    stage.inventory.amend(&[amendment]).await.expect("amend");
    let hints = propose(&stage, &[order("a", "s", "u", 1), order("b", "s", "v", 2)]).await;
    assert_eq!(hints, [NO, YES]);
    stage.remove().await;
}

#[tokio::test]
async fn refused_orders_leave_no_trace_and_keys_expire_after_the_close() {
    let stage = Stage::new("inventory").await;
    let closes_at = Some(Utc::now() + TimeDelta::hours(1));
    prime(&stage, Sale { per_user_limit: Some(1), closes_at, ..sale("s", 1) }).await;
    let mut connection = redis(&stage).await;
    let all = orders("s", 50);
    propose(&stage, &all).await;
    let [sale, deducted, buyers] = redis_keys(&stage, &sale_id("s"));
    for (command, key) in [("SCARD", &deducted), ("HLEN", &buyers)] {
        let mut size = ::redis::cmd(command);
        let size: u32 = size.arg(key).query_async(&mut connection).await.expect("size");
        assert_eq!(size, 1, "{key}");
    }
    let keep = stage.deployment.app.settings().inventory.keep_after_close.as_secs();
    for key in [&sale, &deducted, &buyers] {
        let mut ttl = ::redis::cmd("TTL");
        let ttl: u64 = ttl.arg(key).query_async(&mut connection).await.expect("TTL");
        assert!((keep..=keep + 3600).contains(&ttl), "{key} lives {ttl} s");
    }
    stage.remove().await;
}

#[tokio::test]
async fn damaged_keys_are_forgotten_and_other_sales_do_not_notice() {
    let stage = Stage::new("inventory").await;
    let mut connection = redis(&stage).await;
    let held = ["t", "v"].map(|id| SaleState::opened(sale(id, 9)));
    stage.inventory.prime(&held).await.expect("prime");
    let limited = Sale { per_user_limit: Some(9), ..sale("s", 9) };
    let damages: HashMap<usize, Vec<&str>> = HashMap::from([
        (0, vec!["SET", "KEY", "text"]),
        (1, vec!["SET", "KEY", "text"]),
        (2, vec!["LPUSH", "KEY", "item"]),
        (3, vec!["HSET", "KEY", "stock", "plenty"]),
    ]);
    for (n, damage) in damages {
        prime(&stage, limited.clone()).await;
        let key = &redis_keys(&stage, &sale_id("s"))[n % 3];
        let mut command = ::redis::cmd(damage[0]);
        if damage[0] != "HSET" {
            ::redis::cmd("DEL").arg(key).query_async::<()>(&mut connection).await.expect("DEL");
        }
        for argument in &damage[1..] {
            command.arg(if *argument == "KEY" { key.as_str() } else { argument });
        }
        command.query_async::<()>(&mut connection).await.expect("damage");
        let all = [
            order(&format!("a{n}"), "t", "u", 1),
            order(&format!("b{n}"), "s", "u", 1),
            order(&format!("c{n}"), "v", "u", 1),
        ];
        assert_eq!(propose(&stage, &all).await, [YES, None, YES], "damage {n}");
        prime(&stage, limited.clone()).await;
        assert_eq!(propose(&stage, &all).await, [YES, YES, YES], "damage {n} repaired");
    }
    stage.remove().await;
}

#[tokio::test]
async fn the_highest_that_was_committed_is_kept_whatever_is_forgotten() {
    let stage = Stage::new("inventory").await;
    let holdings = stage.deployment.app.audited().await.expect("servers").holdings.expect("Redis");
    let reached = |version, sold| SaleState { version, sold, ..SaleState::opened(sale("s", 9)) };
    let candidate = candidate(order("a", "s", "u", 1));
    let known = async || {
        let proposal = stage.inventory.propose(&[&candidate], MAX_AGE).await.expect("hints");
        proposal.watermarks.get(&sale_id("s")).map(|mark| (mark.version, mark.sold))
    };
    assert_eq!(known().await, None);
    for (told, highest) in [((1, 3), (1, 3)), ((2, 2), (2, 3)), ((1, 5), (2, 5)), ((1, 1), (2, 5))]
    {
        stage.inventory.committed(&[reached(told.0, told.1)]).await.expect("kept");
        assert_eq!(known().await, Some(highest), "after {told:?}");
    }
    stage.inventory.prime(&[reached(1, 0)]).await.expect("prime");
    assert_eq!(known().await, Some((2, 5)));
    holdings.forget(&sale_id("s")).await.expect("forgotten");
    assert_eq!(known().await, Some((2, 5)));
    holdings.forget_watermark(&sale_id("s")).await.expect("forgotten");
    assert_eq!(known().await, None);
    stage.remove().await;
}
