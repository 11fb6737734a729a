//! An older backup of the ledger, restored under a running sale.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use floodgate::domain::decision::Outcome;
use floodgate::domain::order::{Candidate, Order, SaleId};
use floodgate::domain::sale::{PauseMode, Sale, SaleState, Watermark};
use floodgate::inventory::{Amendment, Inventory, InventoryError, Proposal};
use parking_lot::Mutex;
use secrecy::ExposeSecret;

use crate::harness::check;
use crate::harness::process::{postgres_program, run};
use crate::harness::users::until_decided;
use crate::harness::{Running, Stage, orders, sale, sale_id, until};

/// The database as one text.
fn back_up(stage: &Stage) -> Vec<u8> {
    let url = stage.deployment.app.settings().database_url.expose_secret();
    let dump = postgres_program("pg_dump").args(["--clean", "--if-exists", "-d", url]).output();
    let dump = dump.expect("pg_dump runs");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    dump.stdout
}

/// Puts what [`back_up`] gave in the place of what is there.
fn restore(stage: &Stage, backup: &[u8]) {
    let url = stage.deployment.app.settings().database_url.expose_secret();
    let mut psql = postgres_program("psql");
    psql.args(["-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", url]).stdin(Stdio::piped());
    let mut psql = psql.stdout(Stdio::null()).spawn().expect("psql runs");
    std::io::Write::write_all(&mut psql.stdin.take().expect("a pipe"), backup).expect("written");
    assert!(psql.wait().expect("psql ends").success());
}

async fn is_held(stage: &Stage) -> bool {
    let states = stage.ledger.sales(Some(&[sale_id("s")])).await.expect("sales");
    states.first().is_some_and(|state| state.paused == Some(PauseMode::Restored))
}

/// A stage whose workers wait for Redis however slow it is: without it nothing is noticed.
async fn stage(what: &str) -> Stage {
    Stage::with(what, |settings| settings.inventory.timeout = Duration::from_secs(30)).await
}

/// Waits until it is remembered that `sold` units of the sale are committed, which comes a little later.
async fn until_remembered(stage: &Stage, sold: u32) {
    until(async || {
        let known = stage.inventory.watermark(&sale_id("s")).await.expect("a watermark");
        known.is_some_and(|known| known.sold == sold)
    })
    .await;
}

async fn sell(stage: &Stage, orders: &[Order]) {
    stage.post_orders(orders).await;
    until_decided(stage.ledger.as_ref(), orders).await;
}

#[tokio::test]
async fn units_sold_after_the_backup_are_not_sold_again_before_an_operator_says_so() {
    let stage = stage("restored").await;
    stage.open(Sale { per_user_limit: Some(5), ..sale("s", 100) }).await;
    stage.open(sale("other", 10)).await;
    let worker = stage.worker().await;
    let all = orders("s", 160);
    sell(&stage, &all[..40]).await;
    let backup = back_up(&stage);
    sell(&stage, &all[40..70]).await;
    until_remembered(&stage, 70).await;
    restore(&stage, &backup);

    // Those in flight before are lost with the ledger; these come to one that knows 40 units sold, of 70.
    stage.post_orders(&all[70..]).await;
    until(async || is_held(&stage).await).await;
    until(async || stage.broker.deferred().await.expect("deferred") == 90).await;
    let now = stage.ledger.sales(Some(&[sale_id("s")])).await.expect("sales").remove(0);
    assert_eq!(now.sold, 40, "nothing is sold meanwhile");
    let others = orders("other", 10);
    sell(&stage, &others).await;

    for act in [&["sale", "resume", "s"][..], &["sale", "pause", "s", "--mode", "refuse"]] {
        let refused = run(&stage, act);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{act:?}: {told}");
        assert!(told.contains("floodgate sale accept-ledger s"), "{told}");
    }
    let shown = run(&stage, &["sale", "show", "s"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("paused: restored"));
    let audited = run(&stage, &["audit"]);
    let found = String::from_utf8_lossy(&audited.stdout).into_owned();
    assert_eq!(audited.status.code(), Some(1), "{found}");
    assert!(found.contains("and 70 units sold were committed"), "{found}");
    // Mending hints does not make it forget.
    run(&stage, &["audit", "--fix"]);
    assert!(is_held(&stage).await);

    let accepted = run(&stage, &["sale", "accept-ledger", "s"]);
    assert_eq!(accepted.status.code(), Some(0), "{}", String::from_utf8_lossy(&accepted.stderr));
    until_decided(stage.ledger.as_ref(), &all[70..]).await;
    let now = stage.ledger.sales(Some(&[sale_id("s")])).await.expect("sales").remove(0);
    assert_eq!((now.sold, now.paused), (100, None));
    let log = run(&stage, &["operator-log", "--sale-id", "s"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("ledger_accepted"));
    check::empty(&stage).await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_sale_that_the_backup_does_not_have_waits_until_it_is_there() {
    let stage = stage("restored-all").await;
    let backup = back_up(&stage);
    stage.open(sale("s", 10)).await;
    let worker = stage.worker().await;
    let all = orders("s", 10);
    sell(&stage, &all[..4]).await;
    until_remembered(&stage, 4).await;
    restore(&stage, &backup);
    stage.post_orders(&all[4..]).await;
    until(async || stage.broker.deferred().await.expect("deferred") == 6).await;
    stage.open(sale("s", 10)).await;
    until(async || is_held(&stage).await).await;
    let accepted = run(&stage, &["sale", "accept-ledger", "s"]);
    assert_eq!(accepted.status.code(), Some(0), "{}", String::from_utf8_lossy(&accepted.stderr));
    until_decided(stage.ledger.as_ref(), &all[4..]).await;
    let outcomes = check::outcomes_in(stage.ledger.as_ref(), &all[4..]).await;
    assert_eq!(outcomes, [Outcome::Created; 6]);
    worker.stop().await;
    stage.remove().await;
}

/// An inventory that has answered the first batch before an operator accepted the ledger.
struct Late {
    inventory: Arc<dyn Inventory>,
    before: Mutex<Option<Watermark>>,
}

#[async_trait]
impl Inventory for Late {
    async fn propose(
        &self,
        orders: &[&Candidate],
        max_age: Duration,
    ) -> Result<Proposal, InventoryError> {
        let mut proposal = self.inventory.propose(orders, max_age).await?;
        if let Some(before) = self.before.lock().take() {
            proposal.watermarks.insert(orders[0].order.sale_id.clone(), before);
        }
        Ok(proposal)
    }

    async fn committed(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        self.inventory.committed(sales).await
    }

    async fn watermark(&self, sale: &SaleId) -> Result<Option<Watermark>, InventoryError> {
        self.inventory.watermark(sale).await
    }

    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError> {
        self.inventory.amend(amendments).await
    }

    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        self.inventory.prime(sales).await
    }
}

#[tokio::test]
async fn a_batch_in_flight_while_the_ledger_is_accepted_does_not_hold_the_sale_again() {
    let stage = stage("restored-late").await;
    stage.open(sale("s", 10)).await;
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let mut worker = stage.deployment.app.worker(&adapters);
    let before = Mutex::new(Some(Watermark { version: 3, sold: 9 }));
    worker.inventory = Some(Arc::new(Late { inventory: stage.inventory.clone(), before }));
    let worker = Running::start(worker);
    sell(&stage, &orders("s", 3)).await;
    let now = stage.ledger.sales(Some(&[sale_id("s")])).await.expect("sales").remove(0);
    assert_eq!((now.paused, now.version), (None, 1));
    worker.stop().await;
    stage.remove().await;
}
