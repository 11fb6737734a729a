//! A user service in this process, as a test wants it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;
use floodgate::ledger::Ledger;
use floodgate::verification::{Verdict, Verifier, VerifierError};
use tokio::sync::Semaphore;

use super::{Running, Stage, sale, until};

/// Users as a test wants them: denies those whose id begins with `bad`; fails every call for a sale
/// whose id begins with `away` while it is out; waits for a permit for each user of sale `slow`.
pub struct Users {
    pub calls: AtomicUsize,
    pub at_once: AtomicUsize,
    pub most_at_once: AtomicUsize,
    pub by_user: Mutex<HashMap<String, usize>>,
    pub permits: Semaphore,
    pub out: AtomicBool,
    /// Asks for patience so often before it answers.
    pub busy: AtomicUsize,
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
    pub fn new() -> Arc<Self> {
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

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

pub fn checked_sale(id: &str, stock: u32) -> Sale {
    Sale { verification: true, ..sale(id, stock) }
}

pub async fn with_users(stage: &Stage, users: &Arc<Users>) -> Running {
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let mut worker = stage.deployment.app.worker(&adapters);
    worker.verifier = Some(users.clone());
    Running::start(worker)
}

pub async fn until_decided(ledger: &dyn Ledger, orders: &[Order]) {
    let keys: Vec<_> = orders.iter().map(Order::key).collect();
    until(async || {
        let decisions = ledger.decisions(&keys).await.expect("decisions");
        decisions.iter().all(Option::is_some)
    })
    .await;
}
