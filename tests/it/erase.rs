//! `floodgate user erase`: nothing that is kept has the user's id, and everything goes on.

mod meanwhile;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use floodgate::broker::Queue;
use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::harness::api::{Served, answer, on_free_port};
use crate::harness::check::settled;
use crate::harness::embedded::Embedded;
use crate::harness::process::{embedded_floodgate, floodgate};
use crate::harness::{
    Running, Stage, ask, body, database, order, post, redis, sale, sale_id, until,
};

/// The user who is to be forgotten: no other text has it in it.
const USER: &str = "needle-17850";

fn limited(id: &str) -> Sale {
    Sale { per_user_limit: Some(2), ..sale(id, 50) }
}

/// Orders of three sales, some of them the user's.
fn some_orders() -> Vec<Order> {
    let mut orders = Vec::new();
    for sale in ["old", "new"] {
        orders.push(order("a", sale, USER, 1));
        orders.push(order("b", sale, USER, 2));
        orders.extend((0..20).map(|n| order(&format!("o-{n}"), sale, &format!("u-{n}"), 1)));
    }
    orders.push(order("a", "other", "u-1", 1));
    orders
}

/// Dead letters of the user and of others.
fn dead() -> [Vec<u8>; 5] {
    [
        body(&order("o-1", "new", USER, 1)),
        body(&order("x", "never", USER, 1)),
        format!("{{\"user_id\":\"{USER}\",\"sale_id\":\"new\"").into_bytes(),
        body(&order("x", "never", "u-1", 1)),
        b"no JSON".to_vec(),
    ]
}

fn done(mut command: Command) -> Value {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{printed}");
    serde_json::from_slice(&output.stdout).expect(&said)
}

fn files_with_user(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file"));
    let has_user = |path: &Path| {
        let bytes = std::fs::read(path).expect("a file");
        let mut text = String::new();
        let mut decoder = flate2::bufread::MultiGzDecoder::new(bytes.as_slice());
        let is_compressed = std::io::Read::read_to_string(&mut decoder, &mut text).is_ok();
        let text = if is_compressed { text } else { String::from_utf8_lossy(&bytes).into_owned() };
        text.contains(USER)
    };
    entries.filter(|entry| has_user(&entry.path())).count()
}

/// Every place on the servers that has the user's id.
async fn places(stage: &Stage) -> Vec<String> {
    let mut db = database(stage).await;
    let mut places = Vec::new();
    let tables: Vec<String> =
        sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'public'")
            .fetch_all(&mut db)
            .await
            .expect("tables");
    assert!(tables.len() > 9, "{tables:?}");
    for table in tables {
        let sql = format!("select count(*) from {table} t where t::text like '%{USER}%'");
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await.expect("a count");
        if count > 0 {
            places.push(table);
        }
    }
    let mut redis = redis(stage).await;
    let namespace = &stage.deployment.app.settings().namespace;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{namespace}:*"))
        .query_async(&mut redis)
        .await
        .expect("KEYS");
    for key in keys {
        let dump: Vec<u8> =
            redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.expect("DUMP");
        if String::from_utf8_lossy(&dump).contains("needle") {
            places.push(key);
        }
    }
    let listed = done(floodgate(stage, &["dead-letters", "list", "--limit", "99", "--json"]));
    if listed.to_string().contains(USER) {
        places.push("dead letters".to_owned());
    }
    places
}

#[tokio::test]
async fn nothing_that_is_kept_has_the_id_and_everything_goes_on() {
    let mut stage = Stage::new("erase").await;
    stage.ledger.open(&["old", "new", "other"].map(limited)).await.expect("open");
    let orders = some_orders();
    stage.post_orders(&orders).await;
    let worker = stage.worker().await;
    settled(&mut stage, &orders).await;
    let first = ask(&stage, &orders[0]).await;
    stage.post(&dead()).await;
    let letters = async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages;
    until(async || letters().await == 5).await;
    let listed = || done(floodgate(&stage, &["dead-letters", "list", "--limit", "9", "--json"]));
    let before = listed();
    done(floodgate(&stage, &["sale", "close", "old", "--json"]));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().to_str().expect("UTF-8");
    let mut archiving = floodgate(&stage, &["sale", "archive", "old", "--json", "--to", to]);
    archiving.env("FLOODGATE_INTENT__MAX_AGE_S", "1");
    done(archiving);
    assert_eq!(files_with_user(folder.path()), 1);
    let places_before = places(&stage).await;
    for place in ["decisions", "buyers", "dead letters"] {
        assert!(places_before.iter().any(|found| found == place), "{places_before:?}");
    }
    assert!(places_before.iter().any(|found| found.contains("{new}")), "{places_before:?}");

    let erasing = || floodgate(&stage, &["user", "erase", USER, "--json"]);
    for fail_point in ["erase_begun", "erase_replaced", "erase_written", "erase_switched"] {
        let died = erasing().env("FAILPOINTS", format!("{fail_point}=return")).output();
        assert_eq!(died.expect("it runs").status.code(), None, "{fail_point}");
        let again = ask(&stage, &order("a", "new", USER, 1)).await;
        assert_eq!(again["outcome"], "created", "{fail_point}: {again}");
    }
    let erased = done(erasing());
    assert_eq!(erased["dead_letters"], 3, "{erased}");
    assert_eq!(places(&stage).await, Vec::<String>::new());
    assert_eq!(files_with_user(folder.path()), 0);
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("a file").file_name().into_string().expect("UTF-8"))
        .filter(|name| name != ".floodgate.lock")
        .collect();
    names.sort();
    assert_eq!(names.len(), 2, "one file and its manifest: {names:?}");

    assert_eq!(ask(&stage, &orders[0]).await, first, "a repeat of an archived order");
    for (id, quantity, outcome) in
        [("a", 1, "created"), ("b", 2, "rejected"), ("c", 1, "created"), ("d", 1, "rejected")]
    {
        let answer = ask(&stage, &order(id, "new", USER, quantity)).await;
        assert_eq!(
            (answer["outcome"].as_str(), answer["user_id"].as_str()),
            (Some(outcome), Some(USER)),
            "{id}"
        );
    }
    letters_are_as_they_were(&before, &listed());
    let audit = done(floodgate(&stage, &["audit", "--json"]));
    assert_eq!(audit["balanced"], true, "{audit}");
    let log = done(floodgate(&stage, &["operator-log", "--json"])).to_string();
    assert!(log.contains("user_erased") && !log.contains(USER), "{log}");
    restored_too(&stage).await;
    worker.stop().await;
    stage.remove().await;
}

/// All but the user's id.
fn letters_are_as_they_were(before: &Value, now: &Value) {
    assert_eq!(before["reasons"], now["reasons"]);
    let all = |list: &Value| {
        let letters = list["dead_letters"].as_array().expect("letters").iter();
        let mut letters: Vec<_> = letters
            .map(|one| {
                [&one["id"], &one["at"], &one["detail"], &one["routing_key"]].map(Value::to_string)
            })
            .collect();
        letters.sort();
        letters
    };
    assert_eq!(all(before), all(now));
    assert!(now.to_string().contains("erased-"));
}

/// What comes back from the file has the token.
async fn restored_too(stage: &Stage) {
    done(floodgate(stage, &["sale", "restore", "old", "--json"]));
    let places = places(stage).await;
    assert!(!places.iter().any(|place| place == "decisions" || place == "buyers"), "{places:?}");
    let again = ask(stage, &order("a", "old", USER, 1)).await;
    assert_eq!(again["outcome"], "created", "{again}");
    let audit = done(floodgate(stage, &["audit", "--json"]));
    assert_eq!(audit["balanced"], true, "{audit}");
}

#[tokio::test]
async fn a_redriven_letter_of_a_replaced_user_is_the_same_order() {
    let mut stage = Stage::with("erase-redrive", on_free_port).await;
    stage.open(limited("new")).await;
    let first = order("a", "new", USER, 1);
    stage.post_orders(std::slice::from_ref(&first)).await;
    let worker = stage.worker().await;
    settled(&mut stage, std::slice::from_ref(&first)).await;
    let conflict = order("a", "new", USER, 2);
    stage.post_orders(std::slice::from_ref(&conflict)).await;
    let letters = async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages;
    until(async || letters().await == 1).await;
    assert_eq!(done(floodgate(&stage, &["user", "erase", USER, "--json"]))["dead_letters"], 1);
    let served = Served::without_worker(&stage.deployment.app).await;
    let repeat = serde_json::json!({ "order_id": "a", "user_id": USER, "quantity": 1 });
    let asked = served.post("/v1/sales/new/orders", &repeat).header("prefer", "wait=30");
    let (status, body) = answer(asked).await;
    assert_eq!((status, &body["user_id"]), (200, &USER.into()), "{body}");
    served.stop().await;
    assert_eq!(done(floodgate(&stage, &["dead-letters", "redrive", "--json"]))["redriven"], 1);
    let dead = stage.dead_letters(1).await;
    assert_eq!(dead[0].0, "order_id_conflict");
    assert!(!String::from_utf8_lossy(&dead[0].1).contains(USER));
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_user_of_an_embedded_deployment_is_erased_too() {
    let embedded = Embedded::new().await;
    embedded.ledger.open(&["old", "new", "other"].map(limited)).await.expect("open");
    let orders = some_orders();
    let bodies: Vec<Vec<u8>> = orders.iter().map(body).chain(dead()).collect();
    post(embedded.broker.as_ref(), &bodies).await;
    let worker = Running::start(embedded.worker());
    let decided = async |sale: &str| {
        let sale = sale_id(sale);
        embedded.retention.books.decided(&sale, None, 999).await.expect("decisions")
    };
    let depth = async |queue| embedded.broker.depth(queue).await.expect("depth").messages;
    until(async || decided("other").await.len() == 1 && depth(Queue::DeadLetters).await == 5).await;
    until(async || depth(Queue::Intents).await == 0).await;
    worker.stop().await;
    let folder = tempfile::tempdir().expect("a folder");
    let command = |arguments: &[&str]| {
        let mut command = embedded_floodgate(&embedded, arguments);
        command.env("FLOODGATE_INTENT__MAX_AGE_S", "1");
        command
    };
    done(command(&["sale", "close", "old", "--json"]));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let to = folder.path().to_str().expect("UTF-8");
    done(command(&["sale", "archive", "old", "--json", "--to", to]));
    assert_eq!(
        (files_with_user(folder.path()), in_file(&embedded).await),
        (1, vec!["buyers".to_owned(), "decisions".to_owned(), "messages".to_owned()])
    );
    let erased = done(command(&["user", "erase", USER, "--json"]));
    let counts = ["sales", "decisions", "archive_files", "archived_decisions", "dead_letters"];
    assert_eq!(counts.map(|count| erased[count].as_u64()), [2, 2, 1, 2, 3].map(Some), "{erased}");
    assert_eq!((files_with_user(folder.path()), in_file(&embedded).await), (0, Vec::new()));
    assert_eq!(done(command(&["audit", "--json"]))["balanced"], true);
}

/// The tables that have the user's id.
async fn in_file(embedded: &Embedded) -> Vec<String> {
    let url = format!("sqlite://{}", embedded.file().display());
    let mut db = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url).await.expect("a file");
    let tables: Vec<String> =
        sqlx::query_scalar("select name from sqlite_schema where type = 'table' order by name")
            .fetch_all(&mut db)
            .await
            .expect("tables");
    let mut found = Vec::new();
    for table in tables {
        let columns: Vec<String> = sqlx::query_scalar("select name from pragma_table_info($1)")
            .bind(&table)
            .fetch_all(&mut db)
            .await
            .expect("columns");
        let all: Vec<String> =
            columns.iter().map(|column| format!("coalesce(cast({column} as text), '')")).collect();
        let sql = format!(
            "select count(*) from {table} where {} like '%{USER}%'",
            all.join(" || ' ' || ")
        );
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await.expect("a count");
        if count > 0 {
            found.push(table);
        }
    }
    found
}
