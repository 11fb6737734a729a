//! Statements find rows by their keys, also where the server has never looked at the tables.

use std::ops::Range;

use floodgate::domain::decision::Hint;
use floodgate::domain::sale::Sale;

use super::{decide, hinted};
use crate::harness::{Stage, database, order, sale, until};

/// Orders that are decided before, that are looked up then, and in each batch.
const BEFORE: usize = 20_000;
const LOOKED_UP: usize = 4000;
const BATCH: usize = 500;

/// How often each of the two tables was read as a whole, and how many rows were found by their keys.
#[derive(Debug, PartialEq, Eq)]
struct Scans {
    whole: i64,
    by_key: i64,
    inserted: i64,
}

async fn scans(stage: &Stage) -> Vec<Scans> {
    let rows = sqlx::query_as(
        "select seq_scan, idx_scan, n_tup_ins from pg_stat_user_tables
         where relname in ('buyers', 'decisions') order by relname",
    )
    .fetch_all(&mut database(stage).await)
    .await
    .expect("statistics");
    let scans = |(whole, by_key, inserted)| Scans { whole, by_key, inserted };
    rows.into_iter().map(scans).collect()
}

/// Decides orders by number, each for another buyer, with a ledger that is closed afterwards, so
/// that the server counts what it did.
async fn decide_many(stage: &Stage, numbers: Range<usize>, redelivered: bool) {
    let ledger = stage.deployment.app.ledger().await.expect("another pool");
    let all: Vec<_> =
        numbers.map(|n| order(&format!("o-{n}"), "s", &format!("u-{n}"), 1)).collect();
    for chunk in all.chunks(BATCH) {
        let batch = hinted(chunk, Some(Hint::Granted));
        decide(ledger.as_ref(), &batch, redelivered).await.expect("decided");
    }
}

#[tokio::test]
async fn decisions_and_buyers_are_found_by_their_keys_in_tables_never_analyzed() {
    // One connection, whose counts arrive in their order.
    let stage = Stage::with("plans", |settings| settings.ledger.max_connections = 1).await;
    for table in ["buyers", "decisions", "sales"] {
        let off = format!("alter table {table} set (autovacuum_enabled = off)");
        let mut connection = database(&stage).await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(off)).execute(&mut connection).await.expect("off");
    }
    stage.open(Sale { per_user_limit: Some(2), ..sale("s", 1_000_000) }).await;
    let counted = async |inserted: usize| {
        let inserted = i64::try_from(inserted).expect("few");
        until(async || scans(&stage).await.iter().all(|table| table.inserted >= inserted)).await;
        scans(&stage).await
    };
    decide_many(&stage, 0..BEFORE, false).await;
    let before = counted(BEFORE).await;
    // Orders that were decided before, and then others that are looked up in vain.
    decide_many(&stage, BEFORE - LOOKED_UP / 2..BEFORE + LOOKED_UP / 2, true).await;
    let after = counted(BEFORE + LOOKED_UP / 2).await;
    for (after, before) in after.iter().zip(&before) {
        assert_eq!(after.whole, before.whole, "{after:?}, {before:?}");
        let looked_up = i64::try_from(LOOKED_UP).expect("few");
        assert!(after.by_key >= before.by_key + looked_up, "{after:?}, {before:?}");
    }
    stage.remove().await;
}
