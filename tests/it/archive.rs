//! Decisions that leave the ledger for a file and come back, whichever process dies meanwhile.

mod older;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::{SubsecRound, TimeDelta, Utc};
use floodgate::broker::topology::Topology;
use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;
use futures_util::StreamExt;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::harness::api::{Served, answer, on_free_port, problem};
use crate::harness::embedded::Embedded;
use crate::harness::process::{WorkerProcess, embedded_floodgate, floodgate};
use crate::harness::{PATIENCE, Stage, channel, database, order, post, sale, tap, until};

/// How many orders there are. ARCHIVE_ORDERS says another number.
fn count() -> u32 {
    std::env::var("ARCHIVE_ORDERS").ok().and_then(|count| count.parse().ok()).unwrap_or(9000)
}

/// The sale `s` with a limit of 2, which closed an hour ago.
fn closed(stock: u32) -> Sale {
    let closes_at = Utc::now().trunc_subsecs(3) - TimeDelta::hours(1);
    Sale { closes_at: Some(closes_at), per_user_limit: Some(2), ..sale("s", stock) }
}

/// Fills the ledger as `count` orders of one unit would, two of each buyer, of which the first `stock` are created.
async fn fill(stage: &Stage, count: u32, stock: u32) {
    stage.open(closed(stock)).await;
    let mut db = database(stage).await;
    for sql in [
        format!(
            "insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold)
             select 's', 'k-' || md5(n::text), 'customer-' || n / 2, 1, case when n < {stock} then 'c' else 's' end::\"char\",
                    5, closes_at - interval '1 hour' + n * interval '1 millisecond', 1, least(n, {stock})
             from sales, generate_series(0, {count} - 1) n order by 2"
        ),
        "insert into buyers select sale_id, user_id, sum(quantity), 2 from decisions where outcome = 'c' group by 1, 2".to_owned(),
        "update sales set sold = stock, sold_out_at = closes_at".to_owned(),
        "analyze".to_owned(),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut db).await.expect("filled");
    }
}

/// Stands for all rows of decisions, buyers and sales: how many, and a sum over them.
async fn sums(stage: &Stage) -> Vec<(i64, String)> {
    let mut db = database(stage).await;
    let mut sums = Vec::new();
    for rows in
        ["decisions", "buyers", "(select sale_id, stock, sold, version, archived from sales)"]
    {
        let sql = format!(
            "select count(*), coalesce(sum(hashtextextended(r::text, 0)), 0)::text from {rows} r"
        );
        let sum = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut db).await.expect("a sum");
        sums.push(sum);
    }
    sums
}

async fn rows(stage: &Stage, table: &str) -> i64 {
    let mut db = database(stage).await;
    let sql = AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(sql).fetch_one(&mut db).await.expect("a count")
}

async fn archived_orders(stage: &Stage) -> i64 {
    let mut db = database(stage).await;
    let sql = "select coalesce(sum(decisions), 0) from archived_orders";
    sqlx::query_scalar(sql).fetch_one(&mut db).await.expect("a sum")
}

/// The order of that number, as [`fill`] has stored it.
async fn stored(stage: &Stage, n: u32) -> Order {
    let mut db = database(stage).await;
    let id: String = sqlx::query_scalar("select 'k-' || md5($1)")
        .bind(n.to_string())
        .fetch_one(&mut db)
        .await
        .expect("md5");
    order(&id, "s", &format!("customer-{}", n / 2), 1)
}

fn archive(stage: &Stage, folder: &Path) -> Command {
    let folder = folder.to_str().expect("UTF-8");
    floodgate(stage, &["sale", "archive", "s", "--json", "--to", folder])
}

fn restore(stage: &Stage) -> Command {
    floodgate(stage, &["sale", "restore", "s", "--json"])
}

/// Runs a command to its end; what it prints.
fn done(mut command: Command) -> Value {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{printed}");
    serde_json::from_slice(&output.stdout).expect(&said)
}

/// Has a command die at a fail point.
fn dies(mut command: Command, fail_points: &str) {
    let output = command.env("FAILPOINTS", fail_points).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), None, "{fail_points}: {said}");
}

/// Kills a command after some time, if it takes that long.
fn killed(mut command: Command, after: Duration) {
    let mut child = command.stdout(std::process::Stdio::null()).spawn().expect("it runs");
    std::thread::sleep(after);
    let _ = child.kill();
    child.wait().expect("it ends");
}

/// That the books balance, and the ledger knows each order.
async fn balances(stage: &Stage, count: u32) {
    let balance = stage.retention.books.balance(None).await.expect("balance");
    assert!(balance.discrepancies.is_empty(), "{:?}", balance.discrepancies);
    assert_eq!(balance.decisions, u64::from(count));
}

#[tokio::test]
async fn nothing_is_lost_whenever_archiving_and_restoring_are_killed() {
    let stage = Stage::new("archive").await;
    let count = count();
    fill(&stage, count, count / 3).await;
    let before = sums(&stage).await;
    let folder = tempfile::tempdir().expect("a folder");
    let files = || std::fs::read_dir(folder.path()).expect("a folder").count();
    let seed: u64 = std::env::var("SEED")
        .map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().expect("a number"));
    eprintln!("SEED={seed}");
    let most = 300 + u64::from(count) / 20;
    let ms = |n: u64| {
        let random = seed.wrapping_add(n).wrapping_mul(6_364_136_223_846_793_005) >> 33;
        Duration::from_millis(50 + random % most)
    };

    for fail_point in [
        "archive_written=return",
        "archive_verified=return",
        "archive_moving=return",
        "archive_chunk=return",
        "archive_chunk=1*off->return",
    ] {
        dies(archive(&stage, folder.path()), fail_point);
        balances(&stage, count).await;
    }
    killed(archive(&stage, folder.path()), ms(0));
    killed(archive(&stage, folder.path()), ms(1));
    balances(&stage, count).await;
    // It may have come to its end before.
    if rows(&stage, "archives where stage <> 'done'").await > 0 {
        assert_eq!(done(archive(&stage, folder.path()))["decisions"], count);
    }
    assert_eq!((rows(&stage, "decisions").await, rows(&stage, "buyers").await), (0, 0));
    assert_eq!(archived_orders(&stage).await, i64::from(count));
    assert_eq!(files(), 2, "the file and its manifest");
    balances(&stage, count).await;
    assert!(done(floodgate(&stage, &["audit", "--json"]))["balanced"].as_bool().expect("whether"));

    for fail_point in
        ["restore_begun=return", "restore_chunk=return", "restore_chunk=2*off->return"]
    {
        dies(restore(&stage), fail_point);
        balances(&stage, count).await;
    }
    killed(restore(&stage), ms(2));
    killed(restore(&stage), ms(3));
    if rows(&stage, "archives").await > 0 {
        done(restore(&stage));
    }
    assert_eq!(sums(&stage).await, before);
    assert_eq!(rows(&stage, "archived_orders").await, 0);
    costs(&stage, folder.path(), count).await;
    stage.remove().await;
}

/// Archives and restores once more, without a break, and says what it costs.
async fn costs(stage: &Stage, folder: &Path, count: u32) {
    let before = sums(stage).await;
    let size = async |table: &str| {
        let mut db = database(stage).await;
        sqlx::query(AssertSqlSafe(format!("vacuum full {table}")))
            .execute(&mut db)
            .await
            .expect("vacuum");
        let sql = format!("select pg_table_size('{table}'), pg_indexes_size('{table}')");
        let sizes: (i64, i64) =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut db).await.expect("a size");
        let each = |bytes: i64| bytes as f64 / f64::from(count);
        format!("{table} {:.1} and index {:.1} bytes an order", each(sizes.0), each(sizes.1))
    };
    let decisions = size("decisions").await;
    let begun = Instant::now();
    let archived = done(archive(stage, folder));
    let archiving = begun.elapsed().as_secs_f64();
    let kept = size("archived_orders").await;
    let file = archived["files"][0]["file"].as_str().expect("a file");
    let bytes = std::fs::metadata(file).expect("a file").len();
    let begun = Instant::now();
    done(restore(stage));
    let restoring = begun.elapsed().as_secs_f64();
    assert_eq!(sums(stage).await, before);
    let million = 1e6 / f64::from(count);
    eprintln!(
        "{count} orders: {decisions}; {kept}; file {:.1} bytes an order; archived at {:.1} s a million, restored at {:.1} s",
        bytes as f64 / f64::from(count),
        archiving * million,
        restoring * million
    );
}

#[tokio::test]
async fn repeats_of_archived_orders_get_the_same_event() {
    let stage = Stage::with("archive-repeats", on_free_port).await;
    stage.open(Sale { closes_at: None, ..closed(2) }).await;
    let all: Vec<Order> = [("a", "u", 1), ("b", "u", 2), ("c", "v", 1), ("d", "w", 1)]
        .map(|(id, user, quantity)| order(id, "s", user, quantity))
        .into();
    let channel = channel(&stage).await;
    let names = Topology::new(&stage.deployment.app.settings().namespace);
    let mut events = tap(&channel, &names.events_exchange(), "order.#").await;
    let mut told = async || {
        let event = tokio::time::timeout(PATIENCE, events.next()).await;
        let event = event.expect("in time").expect("an event").expect("a delivery");
        (event.properties.message_id().clone().expect("an id").to_string(), event.data)
    };
    let worker = WorkerProcess::start(&stage);
    let mut first = std::collections::BTreeMap::new();
    stage.post_orders(&all).await;
    while first.len() < all.len() {
        first.extend([told().await]);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let refused = archive(&stage, folder.path()).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("has no end") && said.contains("accepted"), "{said}");
    done(floodgate(&stage, &["sale", "close", "s", "--json"]));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut archiving = archive(&stage, folder.path());
    archiving.env("FLOODGATE_INTENT__MAX_AGE_S", "1");
    let archived = done(archiving);
    assert_eq!(archived["decisions"], 4);

    let mut again = all.clone();
    again.push(order("a", "s", "other", 1));
    again.push(order("late", "s", "u", 1));
    stage.post_orders(&again).await;
    let mut seen = std::collections::BTreeMap::new();
    while seen.len() < all.len() + 1 {
        seen.extend([told().await]);
    }
    let late = seen.remove("order:s:late").expect("decided");
    assert!(String::from_utf8_lossy(&late).contains("\"reason\":\"closed\""));
    assert_eq!(seen, first);
    let dead = stage.dead_letters(1).await;
    assert_eq!(dead[0].0, "order_id_conflict");

    let served = Served::without_worker(&stage.deployment.app).await;
    let (status, body) = answer(served.get("/v1/sales/s/orders/a")).await;
    assert_eq!((status, problem(&body)), (410, "archived"), "{body}");
    assert!(body["detail"].as_str().expect("a detail").contains("created"), "{body}");
    let repeat = serde_json::json!({ "order_id": "a", "user_id": "u", "quantity": 1 });
    let asked = served.post("/v1/sales/s/orders", &repeat).header("prefer", "wait=30");
    let (status, body) = answer(asked).await;
    assert_eq!((status, &body["outcome"]), (200, &"created".into()), "{body}");
    let (status, body) = answer(served.get("/v1/sales/s/orders/never")).await;
    assert_eq!((status, problem(&body)), (404, "unknown-order"));
    let (_, shown) = answer(served.get("/v1/sales/s")).await;
    assert_eq!(shown["archived"], true, "{shown}");
    served.stop().await;
    told_where_the_rest_is(&stage, &archived["files"][0]);
    worker.kill();
    stage.remove().await;
}

/// Commands that need decisions which are in a file say where that is.
fn told_where_the_rest_is(stage: &Stage, archived: &Value) {
    let file = archived["file"].as_str().expect("a file");
    let shown = done(floodgate(stage, &["order", "show", "s", "b", "--json"]));
    assert_eq!(shown["reason"], "purchase_limit", "{shown}");
    assert_eq!(shown["archives"][0]["sha256"], archived["sha256"]);
    let table = floodgate(stage, &["order", "show", "s", "b"]).output().expect("it runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains(file) && table.contains("purchase_limit"), "{table}");
    for arguments in [&["sale", "export", "s"][..], &["events", "replay", "s"]] {
        let refused = floodgate(stage, arguments).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{said}");
        assert!(said.contains(file) && said.contains("floodgate sale restore s"), "{said}");
    }
    let list = floodgate(stage, &["sale", "list"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&list.stdout).contains("archived"));
    let log = done(floodgate(stage, &["operator-log", "--json"])).to_string();
    assert!(log.contains("\"archived\"") && log.contains(file), "{log}");
}

#[tokio::test]
async fn a_file_that_was_changed_or_moved_is_not_restored_from_unless_it_is_given() {
    let stage = Stage::new("archive-file").await;
    fill(&stage, 100, 30).await;
    let before = sums(&stage).await;
    let folder = tempfile::tempdir().expect("a folder");
    let archived = done(archive(&stage, folder.path()));
    let file = Path::new(archived["files"][0]["file"].as_str().expect("a file"));
    let manifest = file.to_str().expect("UTF-8").replace(".jsonl.gz", ".manifest.json");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(manifest).expect("a manifest")).expect("JSON");
    assert_eq!((&manifest["decisions"], &manifest["units"]), (&100.into(), &30.into()));
    assert_eq!(manifest["sha256"], archived["files"][0]["sha256"]);
    assert_eq!(manifest["sale"]["per_user_limit"], 2);
    let nothing = done(archive(&stage, folder.path()));
    assert_eq!((&nothing["decisions"], &nothing["files"]), (&0.into(), &serde_json::json!([])));
    let mut other = restore(&stage);
    other.args(["--from", "Cargo.toml"]);
    assert_eq!(other.output().expect("it runs").status.code(), Some(1));

    let whole = std::fs::read(file).expect("a file");
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    std::fs::write(file, &changed).expect("written");
    assert_eq!(restore(&stage).output().expect("it runs").status.code(), Some(1));
    let moved = folder.path().join("moved");
    std::fs::remove_file(file).expect("removed");
    std::fs::write(&moved, &whole).expect("written");
    assert_eq!(restore(&stage).output().expect("it runs").status.code(), Some(1));
    assert_eq!(rows(&stage, "decisions").await, 0);
    let mut restoring = restore(&stage);
    restoring.args(["--from", moved.to_str().expect("UTF-8")]);
    assert_eq!(done(restoring)["decisions"], 100);
    assert_eq!(sums(&stage).await, before);
    stage.remove().await;
}

#[tokio::test]
async fn what_is_decided_after_an_archive_can_follow_in_another() {
    let stage = Stage::new("archive-twice").await;
    fill(&stage, 20, 10).await;
    let folder = tempfile::tempdir().expect("a folder");
    done(archive(&stage, folder.path()));
    let worker = stage.worker().await;
    stage.post_orders(&[order("late-1", "s", "u", 1), order("late-2", "s", "u", 1)]).await;
    let count = async || rows(&stage, "decisions").await;
    until(async || count().await == 2).await;
    assert_eq!(done(archive(&stage, folder.path()))["decisions"], 2);
    let known = stored(&stage, 7).await;
    stage.post_orders(&[known, order("late-1", "s", "u", 1), order("late-3", "s", "u", 1)]).await;
    until(async || count().await == 1).await;
    assert_eq!(archived_orders(&stage).await, 22);
    assert_eq!(done(restore(&stage))["decisions"], 22);
    worker.stop().await;
    balances(&stage, 23).await;
    stage.remove().await;
}

#[tokio::test]
async fn an_embedded_deployment_archives_too() {
    let embedded = Embedded::new().await;
    embedded.ledger.open(&[Sale { closes_at: None, ..closed(3) }]).await.expect("open");
    let folder = tempfile::tempdir().expect("a folder");
    let command = |arguments: &[&str]| {
        let mut command = embedded_floodgate(&embedded, arguments);
        command.env("FLOODGATE_INTENT__MAX_AGE_S", "1");
        command
    };
    let all = crate::harness::orders("s", 3000);
    let bodies: Vec<Vec<u8>> = all.iter().map(crate::harness::body).collect();
    post(embedded.broker.as_ref(), &bodies).await;
    let worker = crate::harness::Running::start(embedded.worker());
    let decided = async || {
        let sale = crate::harness::sale_id("s");
        embedded.retention.books.decided(&sale, None, 9999).await.expect("decisions")
    };
    until(async || decided().await.len() == 3000).await;
    worker.stop().await;
    let before = decided().await;
    done(command(&["sale", "close", "s", "--json"]));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let to = folder.path().to_str().expect("UTF-8").to_owned();
    let archiving = || command(&["sale", "archive", "s", "--json", "--to", &to]);
    dies(archiving(), "archive_chunk=return");
    assert_eq!(done(archiving())["decisions"], 3000);
    assert_eq!(decided().await, []);
    assert!(done(command(&["audit", "--json"]))["balanced"].as_bool().expect("whether"));
    let restoring = || command(&["sale", "restore", "s", "--json"]);
    dies(restoring(), "restore_chunk=return");
    done(restoring());
    assert_eq!(decided().await, before);
}
