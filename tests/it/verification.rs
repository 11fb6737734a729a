//! Users are checked before stock is touched, and beside the path of the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use floodgate::decision::{Outcome, Reason};
use floodgate::order::Order;
use floodgate::verification::{Verdict, Verifier, VerifierError};
use floodgate::watch::SaleWatch;
use tokio::sync::Semaphore;

use crate::harness::check::{self, Totals};
use crate::harness::{PATIENCE, Running, Stage, order, orders, sale, sale_id};

/// Denies users whose id begins with `bad`; fails the first check of each run; waits for a permit
/// for each user of sale `slow`.
struct Users {
    calls: AtomicUsize,
    permits: Semaphore,
}

#[async_trait]
impl Verifier for Users {
    async fn verify(&self, order: &Order) -> Result<Verdict, VerifierError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(VerifierError::Unavailable("not today".into()));
        }
        if order.sale_id.as_str() == "slow" {
            self.permits.acquire().await.expect("never closed").forget();
        }
        let denied = order.user_id.as_str().starts_with("bad");
        Ok(if denied { Verdict::Denied } else { Verdict::Allowed })
    }
}

async fn with_users(stage: &Stage) -> (Running, Arc<Users>, Arc<SaleWatch>) {
    let users = Arc::new(Users { calls: AtomicUsize::new(0), permits: Semaphore::new(0) });
    let parts = stage.scratch.app.parts().await.expect("parts");
    let mut worker = stage.scratch.app.worker(&parts);
    worker.verifier = Some(users.clone());
    (Running::start(worker), users, parts.watch)
}

#[tokio::test]
async fn a_denied_user_is_rejected_and_a_failed_check_is_no_denial() {
    let mut stage = Stage::new("denied").await;
    stage.open(sale("s", 10)).await;
    let asked =
        [order("a", "s", "good", 1), order("b", "s", "bad-1", 1), order("c", "s", "fine", 1)];
    stage.post_orders(&asked).await;
    let (worker, ..) = with_users(&stage).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 2, sold_out: 0, rejected: 1 });
    let denied = Outcome::Rejected(Reason::UserDenied);
    assert_eq!(check::outcome(&stage, "b").await, Some(denied));
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_slow_check_holds_up_no_other_sale_and_nobody_is_checked_for_nothing() {
    let mut stage = Stage::new("slow").await;
    stage.open(sale("slow", 5)).await;
    stage.open(sale("s", 100)).await;
    let slow: Vec<Order> = (0..200).map(|n| order(&format!("slow-{n}"), "slow", "u", 1)).collect();
    let quick = orders("s", 50);
    stage.post_orders(&slow[..20]).await;
    stage.post_orders(&quick).await;
    let (worker, users, watch) = with_users(&stage).await;
    for order in &quick {
        until(async || check::outcome(&stage, order.id.as_str()).await.is_some()).await;
    }
    assert_eq!(check::outcome(&stage, "slow-0").await, None, "its check has not come back");

    // Five may buy; then the sale is sold out, and the others are decided without a check.
    users.permits.add_permits(20);
    for order in &slow[..20] {
        until(async || check::outcome(&stage, order.id.as_str()).await.is_some()).await;
    }
    until(async || watch.is_sold_out(&sale_id("slow"))).await;
    let before = users.calls.load(Ordering::Relaxed);
    stage.post_orders(&slow[20..]).await;
    let all: Vec<Order> = slow.into_iter().chain(quick).collect();
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 55, sold_out: 195, rejected: 0 });
    assert_eq!(users.calls.load(Ordering::Relaxed), before);
    worker.stop().await;
    stage.remove().await;
}

/// Waits until something is true.
async fn until(is_true: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_true().await {
        assert!(tokio::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_worker_that_stops_gives_back_what_waits_for_its_check() {
    let mut stage = Stage::new("drain").await;
    stage.open(sale("slow", 100)).await;
    let asked: Vec<Order> =
        (0..100).map(|n| order(&format!("o-{n}"), "slow", &format!("u-{n}"), 1)).collect();
    stage.post_orders(&asked).await;
    let (worker, users, _) = with_users(&stage).await;
    while users.calls.load(Ordering::Relaxed) < 10 {
        tokio::task::yield_now().await;
    }
    users.permits.add_permits(1000);
    worker.stop().await;
    let (worker, users, _) = with_users(&stage).await;
    users.permits.add_permits(1000);
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals.created, 100);
    worker.stop().await;
    stage.remove().await;
}
