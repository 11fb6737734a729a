//! Batches that touch the same sales in opposite orders.

use std::sync::Arc;

use floodgate::domain::decision::{Hint, Outcome};
use floodgate::domain::order::Candidate;
use floodgate::domain::sale::Sale;
use floodgate::ledger::Ledger;

use super::{decide, restock};
use crate::harness::{Stage, candidate, database, order, order_key, sale, sale_id, until};

const SALES: [&str; 4] = ["a", "b", "c", "d"];
const STOCK: u32 = 1200;
const LIMIT: u32 = 2000;
const BATCHES: usize = 1000;
const RESTOCKS: usize = 50;
const RESTOCKED: u32 = 10;

/// Two orders for each sale: one of this side alone, and one that the other side decides too.
fn batch(side: usize, number: usize) -> Vec<(Candidate, Option<Hint>)> {
    let hints = [None, Some(Hint::Granted), Some(Hint::Refused), Some(Hint::Refused)];
    let mut batch: Vec<_> = SALES
        .iter()
        .enumerate()
        .flat_map(|(place, sale)| {
            let hint = hints[(number / 2 + place + 2 * side) % hints.len()];
            let own = order(&format!("{side}-{number}"), sale, &format!("u-{side}"), 1);
            let shared = order(&format!("both-{number}"), sale, "u-both", 1);
            [(candidate(own), hint), (candidate(shared), hint)]
        })
        .collect();
    if side == 1 {
        batch.reverse();
    }
    batch
}

async fn count(stage: &Stage, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(&mut database(stage).await).await.expect(query)
}

/// Stock, buyers and decisions agree, and every refusal was right by what it names.
async fn are_right(stage: &Stage) {
    for state in stage.ledger.sales(None).await.expect("sales") {
        let id = state.sale.id.as_str();
        assert_eq!(state.sold, state.sale.stock, "three times the demand for {id}");
        let ids =
            (0..BATCHES).flat_map(|n| [format!("0-{n}"), format!("1-{n}"), format!("both-{n}")]);
        let keys: Vec<_> = ids.map(|order| order_key(id, &order)).collect();
        let decisions = stage.ledger.decisions(&keys).await.expect("decisions");
        let decisions: Vec<_> =
            decisions.into_iter().map(|found| found.expect("decided")).collect();
        let created = decisions.iter().filter(|decision| decision.outcome == Outcome::Created);
        assert_eq!(created.count(), state.sold as usize, "{id}");
        for decision in decisions.iter().filter(|decision| decision.outcome == Outcome::SoldOut) {
            // Each version after the first one is a restock.
            let stock = STOCK + RESTOCKED * (decision.version - 1);
            assert_eq!(decision.sold, stock, "{id}: {decision:?}");
        }
    }
    let units = count(stage, "select coalesce(sum(units), 0)::bigint from buyers").await;
    let sold = count(stage, "select sum(sold) from sales where per_user_limit is not null").await;
    assert_eq!(units, sold);
}

#[tokio::test]
async fn batches_that_cross_each_other_wait_and_never_both_ways() {
    let stage = Stage::new("crossing").await;
    let sales: Vec<Sale> = SALES
        .iter()
        .enumerate()
        .map(|(place, id)| Sale {
            per_user_limit: (place % 2 == 0).then_some(LIMIT),
            ..sale(id, STOCK)
        })
        .collect();
    stage.ledger.open(&sales).await.expect("open");
    let mut sides = tokio::task::JoinSet::new();
    for side in 0..2 {
        let ledger: Arc<dyn Ledger> = stage.deployment.app.ledger().await.expect("another pool");
        sides.spawn(async move {
            for number in 0..BATCHES {
                let redelivered = number % 7 == 0;
                let decided = decide(ledger.as_ref(), &batch(side, number), redelivered).await;
                assert_eq!(decided.expect("no error").answers.len(), 2 * SALES.len());
            }
        });
    }
    let ledger = stage.ledger.clone();
    sides.spawn(async move {
        for number in 0..RESTOCKS {
            let sale = sale_id(SALES[number % SALES.len()]);
            let change = restock(&format!("r-{number}"), RESTOCKED.into());
            ledger.change(&sale, &change).await.expect("no error");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    sides.join_all().await;

    are_right(&stage).await;
    // Statistics arrive a moment later.
    let commits = "select xact_commit from pg_stat_database where datname = current_database()";
    until(async || count(&stage, commits).await >= 2 * i64::try_from(BATCHES).expect("few")).await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(count(&stage, deadlocks).await, 0);
    stage.remove().await;
}
