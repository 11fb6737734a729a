//! Users are checked before they get anything, and beside the path of the others.

#[path = "verification/crashes.rs"]
mod crashes;
#[path = "verification/http.rs"]
mod http;
#[path = "verification/outage.rs"]
mod outage;
#[path = "verification/switch.rs"]
mod switch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use floodgate::config::Settings;
use floodgate::decision::{Outcome, Reason};
use floodgate::order::Order;
use floodgate::sale::Sale;
use floodgate::verification::{Verdict, Verifier, VerifierError};
use tokio::sync::Semaphore;

use crate::harness::check::{self, Totals};
use crate::harness::{PATIENCE, Running, Stage, order, orders, sale};

/// Users as a test wants them: denies those whose id begins with `bad`; fails every call for a sale
/// whose id begins with `away` while it is out; waits for a permit for each user of sale `slow`.
struct Users {
    calls: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    by_user: Mutex<HashMap<String, usize>>,
    permits: Semaphore,
    out: AtomicBool,
    /// Asks for patience so often before it answers.
    busy: AtomicUsize,
}

#[async_trait]
impl Verifier for Users {
    async fn verify(&self, order: &Order) -> Result<Verdict, VerifierError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        *self.by_user.lock().expect("a lock").entry(order.user_id.to_string()).or_default() += 1;
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        if order.sale_id.as_str() == "slow" {
            self.permits.acquire().await.expect("never closed").forget();
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        if self.out.load(Ordering::SeqCst) && order.sale_id.as_str().starts_with("away") {
            return Err(VerifierError::Unavailable("not today".into()));
        }
        let busy = self.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if busy.is_ok() {
            return Err(VerifierError::Busy { retry_after: Some(Duration::from_millis(10)) });
        }
        let denied = order.user_id.as_str().starts_with("bad");
        Ok(if denied { Verdict::Denied } else { Verdict::Allowed })
    }
}

impl Users {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            by_user: Mutex::default(),
            permits: Semaphore::new(0),
            out: AtomicBool::new(true),
            busy: AtomicUsize::new(0),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn checked_sale(id: &str, stock: u32) -> Sale {
    Sale { verification: true, ..sale(id, stock) }
}

async fn with_users(stage: &Stage, users: &Arc<Users>) -> Running {
    let parts = stage.scratch.app.parts().await.expect("parts");
    let mut worker = stage.scratch.app.worker(&parts);
    worker.verifier = Some(users.clone());
    Running::start(worker)
}

/// Waits until something is true.
async fn until(is_true: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_true().await {
        assert!(tokio::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_decided(stage: &Stage, orders: &[Order]) {
    let keys: Vec<_> = orders.iter().map(Order::key).collect();
    until(async || {
        let decisions = stage.ledger.decisions(&keys).await.expect("decisions");
        decisions.iter().all(Option::is_some)
    })
    .await;
}

#[tokio::test]
async fn a_denied_user_is_rejected_and_a_busy_service_is_no_denial() {
    let mut stage = Stage::new("denied").await;
    stage.open(checked_sale("s", 10)).await;
    let asked =
        [order("a", "s", "good", 1), order("b", "s", "bad-1", 1), order("c", "s", "fine", 1)];
    stage.post_orders(&asked).await;
    let users = Users::new();
    users.busy.store(2, Ordering::SeqCst);
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 2, sold_out: 0, rejected: 1 });
    let denied = Outcome::Rejected(Reason::UserDenied);
    assert_eq!(check::outcome(&stage, "s", "b").await, Some(denied));
    assert_eq!(users.calls(), 5);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn only_sales_that_want_it_have_their_users_checked() {
    let mut stage = Stage::new("unchecked").await;
    stage.open(sale("s", 10)).await;
    let asked = [order("a", "s", "bad-1", 1)];
    stage.post_orders(&asked).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 1, sold_out: 0, rejected: 0 });
    assert_eq!(users.calls(), 0);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_slow_check_holds_up_no_other_sale() {
    // The other sale's orders are behind more slow ones than a worker may hold.
    let mut stage = Stage::with("slow", |settings| settings.broker.prefetch = 20).await;
    stage.open(checked_sale("slow", 5)).await;
    stage.open(sale("s", 100)).await;
    let slow: Vec<Order> =
        (0..60).map(|n| order(&format!("slow-{n}"), "slow", &format!("u-{n}"), 1)).collect();
    let quick = orders("s", 50);
    stage.post_orders(&slow).await;
    stage.post_orders(&quick).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until_decided(&stage, &quick).await;
    assert_eq!(check::outcome(&stage, "slow", "slow-0").await, None, "its check has not come back");
    users.permits.add_permits(60);
    let all: Vec<Order> = slow.into_iter().chain(quick).collect();
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 55, sold_out: 55, rejected: 0 });
    assert_eq!(users.calls(), 5, "one check for each unit, and none for those that got none");
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn not_many_more_users_are_checked_than_units_can_be_sold_to() {
    let mut stage = Stage::new("stock-aware").await;
    stage.open(checked_sale("slow", 7)).await;
    let asked: Vec<Order> = (0..300)
        .map(|n| {
            let user = if n % 3 == 0 { format!("bad-{n}") } else { format!("u-{n}") };
            order(&format!("o-{n}"), "slow", &user, 1)
        })
        .collect();
    stage.post_orders(&asked).await;
    let users = Users::new();
    users.permits.add_permits(300);
    let (first, second) = (with_users(&stage, &users).await, with_users(&stage, &users).await);
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals.created, 7);
    let denied = totals.rejected;
    assert!(users.calls() <= 2 * 7 + denied, "{} calls, {denied} denied", users.calls());
    first.stop().await;
    second.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_user_is_checked_once_for_many_orders_and_never_for_a_decided_one() {
    let mut stage = Stage::new("once").await;
    stage.open(checked_sale("slow", 100)).await;
    let asked: Vec<Order> =
        (0..40).map(|n| order(&format!("o-{n}"), "slow", &format!("u-{}", n % 2), 1)).collect();
    stage.post_orders(&asked[..20]).await;
    let users = Users::new();
    users.permits.add_permits(2);
    let worker = with_users(&stage, &users).await;
    until_decided(&stage, &asked[..20]).await;
    assert_eq!(users.calls(), 2, "one for each user");
    // The verdict is remembered; and what is decided needs none, even in another worker.
    stage.post_orders(&asked[20..]).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 40, sold_out: 0, rejected: 0 });
    worker.stop().await;
    let worker = with_users(&stage, &users).await;
    stage.post_orders(&asked).await;
    for _ in &asked {
        stage.event().await;
    }
    assert_eq!(users.calls(), 2);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn without_an_inventory_nobody_gets_a_unit_unchecked() {
    let change = |settings: &mut Settings| {
        settings.redis_url = "redis://127.0.0.1:1/".into();
    };
    let settings = crate::harness::settings();
    let mut stage = Stage::new("ledger-alone").await;
    stage.open(checked_sale("s", 2)).await;
    let asked = [
        order("a", "s", "good", 1),
        order("b", "s", "bad-1", 1),
        order("c", "s", "fine", 1),
        order("d", "s", "late", 1),
    ];
    let users = Users::new();
    let parts = stage.scratch.app.parts().await.expect("parts");
    let mut worker = stage.scratch.app.worker(&parts);
    let mut away = settings;
    change(&mut away);
    let app = floodgate::app::App::new(away);
    worker.inventory = app.inventory().expect("an inventory that is away");
    worker.verifier = Some(users.clone());
    let worker = Running::start(worker);
    for one in &asked[..3] {
        stage.post_orders(std::slice::from_ref(one)).await;
        until_decided(&stage, std::slice::from_ref(one)).await;
    }
    // Sold out; and the first one again: neither is asked about.
    stage.post_orders(&asked[3..]).await;
    stage.post_orders(&asked[..1]).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals, Totals { created: 2, sold_out: 1, rejected: 1 });
    stage.event().await;
    assert_eq!(users.calls(), 3);
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_that_stops_gives_back_what_waits_for_its_check() {
    let mut stage = Stage::new("drain").await;
    stage.open(checked_sale("slow", 100)).await;
    let asked: Vec<Order> =
        (0..100).map(|n| order(&format!("o-{n}"), "slow", &format!("u-{n}"), 1)).collect();
    stage.post_orders(&asked).await;
    let users = Users::new();
    let worker = with_users(&stage, &users).await;
    until(async || users.calls() >= 10).await;
    users.permits.add_permits(1000);
    worker.stop().await;
    let worker = with_users(&stage, &users).await;
    let totals = check::settled(&mut stage, &asked).await;
    assert_eq!(totals.created, 100);
    worker.stop().await;
    stage.remove().await;
}
