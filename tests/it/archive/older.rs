//! Workers and transactions that do not know of archived orders. Of workers only those of 0.3.0 and later can be
//! noticed: one of 0.2.0 does not register, and does not read `ledger_schema`.

use std::time::Duration;

use super::{archive, fill, rows};
use crate::harness::{Stage, database, until};

#[tokio::test]
async fn nothing_moves_while_a_worker_may_not_know() {
    let stage = Stage::new("archive-older").await;
    fill(&stage, 20, 10).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut db = database(&stage).await;
    let version = async |db: &mut sqlx::PgConnection| -> i32 {
        let usable_from = sqlx::query_scalar("select usable_from from ledger_schema");
        usable_from.fetch_one(db).await.expect("a version")
    };
    assert_eq!(version(&mut db).await, 2, "an upgrade may be rolling");
    let older = "insert into workers (worker_id, seen_at) values (gen_random_uuid(), now() + interval '1 hour')";
    sqlx::query(older).execute(&mut db).await.expect("a worker");
    let refused = archive(&stage, folder.path()).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("of an older version"), "{said}");
    assert_eq!(version(&mut db).await, 6, "none that reads it starts from now on");
    sqlx::query("delete from workers").execute(&mut db).await.expect("gone");

    let mut other = sqlx::Connection::begin(&mut db).await.expect("a transaction");
    sqlx::query("select * from sales").execute(&mut *other).await.expect("a look");
    let mut archiving = archive(&stage, folder.path());
    let mut archiving = archiving.stdout(std::process::Stdio::null()).spawn().expect("it runs");
    until(async || rows(&stage, "sales where archived").await == 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rows(&stage, "decisions").await, 20);
    assert!(archiving.try_wait().expect("it runs").is_none());
    other.rollback().await.expect("its end");
    assert!(archiving.wait().expect("it ends").success());
    assert_eq!(rows(&stage, "decisions").await, 0);
    stage.remove().await;
}
