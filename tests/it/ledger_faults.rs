//! Faults around the ledger on PostgreSQL: frozen workers, locks, settings, plans.

#[path = "ledger_faults/checks.rs"]
mod checks;
#[path = "ledger_faults/crossing.rs"]
mod crossing;
#[path = "ledger_faults/plans.rs"]
mod plans;

use std::time::{Duration, Instant};

use chrono::Utc;
use floodgate::domain::decision::{Decision, Hint, Outcome};
use floodgate::domain::order::{AdjustmentId, Candidate, Order, Quantity};
use floodgate::domain::rules::Answer;
use floodgate::domain::sale::Sale;
use floodgate::ledger::{Change, Decided, Ledger, LedgerError, Proposed};
use sqlx::PgConnection;

use crate::harness::check::{self, Totals};
use crate::harness::process::WorkerProcess;
use crate::harness::users::until_decided;
use crate::harness::{Stage, candidate, database, order, orders, sale, sale_id, until};

const MAX_AGE: Duration = Duration::from_hours(24);

/// Decides orders, each with its hint.
async fn decide(
    ledger: &dyn Ledger,
    orders: &[(Candidate, Option<Hint>)],
    redelivered: bool,
) -> Result<Decided, LedgerError> {
    let orders: Vec<_> = orders
        .iter()
        .map(|(candidate, hint)| Proposed { candidate, hint: *hint, redelivered, watermark: None })
        .collect();
    ledger.decide(&orders, MAX_AGE).await
}

fn hinted(orders: &[Order], hint: Option<Hint>) -> Vec<(Candidate, Option<Hint>)> {
    orders.iter().map(|order| (candidate(order.clone()), hint)).collect()
}

fn restock(id: &str, units: i64) -> Change {
    let adjustment_id = AdjustmentId::parse(id).expect("id");
    Change::Restock { adjustment_id, units: Quantity::new(units).expect("units"), at: Utc::now() }
}

async fn decision(stage: &Stage, order: &Order) -> Decision {
    let found = stage.ledger.decisions(&[order.key()]).await.expect("decisions").remove(0);
    found.expect("decided")
}

/// Waits until floodgate stands still within a transaction of that database: with a lock on a sale, or
/// without any.
async fn until_idle_in_transaction(stage: &Stage, with_lock: bool) {
    until(async || {
        let count: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity a
             where datname = current_database() and application_name = 'floodgate'
               and state = 'idle in transaction'
               and state_change < clock_timestamp() - interval '100 ms'
               and $1 = exists (select from pg_locks l where l.pid = a.pid and l.granted
                                and l.relation = 'sales'::regclass and l.mode = 'RowShareLock')",
        )
        .bind(with_lock)
        .fetch_one(&mut database(stage).await)
        .await
        .expect("activity");
        count == 1
    })
    .await;
}

#[tokio::test]
async fn a_worker_frozen_inside_its_transaction_holds_the_sale_for_three_seconds_at_most() {
    let mut stage = Stage::new("frozen-inside").await;
    stage.open(Sale { per_user_limit: Some(1), ..sale("s", 50) }).await;
    let all = orders("s", 100);
    stage.post_orders(&all[..10]).await;
    let variables =
        [("FAILPOINTS", "locked=1*sleep(3000)->off"), ("FLOODGATE_BROKER__PREFETCH", "10")];
    let frozen = WorkerProcess::with(&stage, &variables);
    until_idle_in_transaction(&stage, true).await;
    let begun = Instant::now();
    frozen.signal("STOP");
    let other = stage.worker().await;
    stage.post_orders(&all[10..]).await;
    until_decided(stage.ledger.as_ref(), &all[10..]).await;
    // A second for starting the worker and for looking.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    frozen.signal("CONT");
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 50, sold_out: 50, rejected: 0 });
    check::empty(&stage).await;
    frozen.signal("TERM");
    assert_eq!(frozen.wait(), Some(0));
    other.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_restock_at_the_moment_of_a_refusal_leaves_it_right_for_the_moment_it_names() {
    let mut stage = Stage::new("restock-between").await;
    stage.open(sale("s", 2)).await;
    decide(stage.ledger.as_ref(), &hinted(&orders("s", 2), None), false).await.expect("sold");
    let (refused, next) = (order("r", "s", "r", 1), order("n", "s", "n", 1));
    stage.post_orders(std::slice::from_ref(&refused)).await;
    let worker = WorkerProcess::with(&stage, &[("FAILPOINTS", "read=1*sleep(1000)->off")]);
    until_idle_in_transaction(&stage, false).await;
    stage.ledger.change(&sale_id("s"), &restock("more", 1)).await.expect("restocked");
    stage.post_orders(std::slice::from_ref(&next)).await;
    let event = stage.event().await;
    assert_eq!((&event["order_id"], &event["outcome"]), (&"r".into(), &"sold_out".into()));
    let Decision { version, sold, outcome, .. } = decision(&stage, &refused).await;
    assert_eq!((version, sold, outcome), (1, 2, Outcome::SoldOut));
    assert_eq!(stage.event().await["outcome"], "created");
    let Decision { version, sold, .. } = decision(&stage, &next).await;
    assert_eq!((version, sold), (2, 2));
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
    stage.remove().await;
}

async fn until_waiting_for_a_lock(stage: &Stage) {
    until(async || {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database()
            and application_name = 'floodgate' and wait_event_type = 'Lock'";
        let mut connection = database(stage).await;
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut connection).await.expect("activity")
            == 1
    })
    .await;
}

async fn run(connection: &mut PgConnection, statement: &'static str) {
    sqlx::raw_sql(statement).execute(connection).await.expect(statement);
}

#[tokio::test]
async fn refusals_that_are_right_wait_for_no_lock() {
    let stage = Stage::new("no-lock").await;
    let limited = Sale { per_user_limit: Some(1), ..sale("limited", 9) };
    stage.ledger.open(&[sale("s", 3), limited]).await.expect("open");
    let first = [orders("s", 3), vec![order("a", "limited", "u", 1)]].concat();
    decide(stage.ledger.as_ref(), &hinted(&first, None), false).await.expect("sold");
    let mut holder = database(&stage).await;
    run(&mut holder, "begin; select from sales for update").await;
    let all = [order("x", "s", "x", 1), order("b", "limited", "u", 1), order("y", "s", "y", 7)];
    for (hint, redelivered) in [(Some(Hint::Refused), false), (None, false), (None, true)] {
        let batch = hinted(&all, hint);
        let decided = decide(stage.ledger.as_ref(), &batch, redelivered);
        // A lock would be waited for until the ledger's time limit, which is 10 s.
        let decided = tokio::time::timeout(Duration::from_secs(3), decided).await;
        let decided = decided.expect("without waiting").expect("decided");
        assert!(decided.answers.iter().all(|answer| matches!(answer, Answer::Decided { .. })));
        assert!(!decided.answers.iter().any(Answer::is_granted));
    }
    // One that would be created does wait.
    let (ledger, batch) =
        (stage.ledger.clone(), hinted(&[order("z", "limited", "v", 1)], Some(Hint::Refused)));
    let granted = tokio::spawn(async move { decide(ledger.as_ref(), &batch, false).await });
    until_waiting_for_a_lock(&stage).await;
    run(&mut holder, "rollback").await;
    let decided = granted.await.expect("no panic").expect("decided");
    assert!(decided.answers[0].is_granted());
    stage.remove().await;
}
