//! `floodgate audit`: books that balance, and each way of tampering with them found and named.

use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;
use floodgate::ledger::Change;
use serde_json::Value;

use crate::harness::check::settled;
use crate::harness::embedded::Embedded;
use crate::harness::process::{bare_floodgate, floodgate};
use crate::harness::{Stage, body, database, order, redis, redis_keys, sale, sale_id, until};

/// Orders of a sale of 5 units, at most 2 for each buyer, in which every outcome is but those of the window.
fn some_orders(sale: &str) -> Vec<Order> {
    let order =
        |n: usize, user: &str, quantity| order(&format!("{sale}-{n}"), sale, user, quantity);
    vec![
        order(1, "ada", 2),
        order(2, "ada", 1),
        order(3, "bob", 1),
        order(4, "cyd", 2),
        order(5, "dan", 1),
        order(6, "eve", 2),
    ]
}

fn limited(id: &str) -> Sale {
    Sale { per_user_limit: Some(2), ..sale(id, 5) }
}

/// What the audit says, and whether it is content.
fn audit(stage: &Stage, arguments: &[&str]) -> (bool, Value) {
    let arguments = [&["audit", "--json"], arguments].concat();
    let output = floodgate(stage, &arguments).output().expect("floodgate runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).expect(&said);
    (output.status.success(), report)
}

fn books(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let mut books: Vec<_> = findings.filter_map(|finding| finding["book"].as_str()).collect();
    books.dedup();
    books
}

/// Sales called `ids`, with all of their orders decided and their units in Redis.
async fn sold(what: &str, ids: &[&str]) -> Stage {
    let mut stage = Stage::new(what).await;
    stage.ledger.open(&ids.iter().map(|id| limited(id)).collect::<Vec<_>>()).await.expect("open");
    let orders: Vec<Order> = ids.iter().flat_map(|id| some_orders(id)).collect();
    stage.post_orders(&orders).await;
    let worker = stage.worker().await;
    settled(&mut stage, &orders).await;
    worker.stop().await;
    stage
}

#[tokio::test]
async fn the_books_of_sales_balance_while_they_go_on() {
    let stage = sold("audit", &["s", "t"]).await;
    let restock = |id: &str| Change::Restock {
        adjustment_id: floodgate::domain::order::AdjustmentId::parse(id).expect("an id"),
        units: floodgate::domain::order::Quantity::new(3).expect("units"),
        at: chrono::Utc::now(),
    };
    for id in ["first", "second"] {
        stage.ledger.change(&sale_id("s"), &restock(id)).await.expect("restock");
    }
    stage
        .post(&[body(&order("late", "s", "fay", 1)), body(&order("none", "nowhere", "fay", 1))])
        .await;
    let worker = stage.worker().await;
    until(async || {
        let key = crate::harness::order_key("s", "late");
        stage.ledger.decisions(&[key]).await.expect("decisions")[0].is_some()
    })
    .await;
    until(async || audit(&stage, &[]).0).await;
    worker.stop().await;
    let (balances, report) = audit(&stage, &[]);
    assert!(balances, "{report:#}");
    assert_eq!((&report["sales"], &report["decisions"]), (&2.into(), &13.into()));
    assert_eq!(report["queues"]["dead_letters"], serde_json::json!({ "unknown_sale": 1 }));
    let (balances, report) = audit(&stage, &["t"]);
    assert!(balances, "{report:#}");
    assert_eq!((&report["sales"], &report["decisions"]), (&1.into(), &6.into()));
    // Redis is not told of a closing, which is no mistake; but it never has more units for that.
    let close = Change::Close { at: chrono::Utc::now() };
    stage.ledger.change(&sale_id("t"), &close).await.expect("closed");
    let (balances, report) = audit(&stage, &["t"]);
    assert!(balances, "{report:#}");
    let mut redis = redis(&stage).await;
    let key = redis_keys(&stage, &sale_id("t"))[0].clone();
    let mut command = redis::cmd("HSET");
    command.arg(key).arg("stock").arg(4).query_async::<()>(&mut redis).await.expect("HSET");
    assert!(!audit(&stage, &["t"]).0);
    let output = floodgate(&stage, &["audit", "elsewhere"]).output().expect("floodgate runs");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no sale elsewhere"));
    stage.remove().await;
}

/// What is done to the ledger of the sale `SALE`, and the book that it shows in.
const LEDGER: [(&str, &str); 13] = [
    ("update sales set sold = sold - 1, sold_out_at = null", "sold"),
    ("update sales set sold_out_at = null", "stock"),
    ("update sales set stock = stock + 4", "sold_out"),
    ("delete from decisions where order_id = 'SALE-3'", "sold"),
    ("update decisions set outcome = 's' where order_id = 'SALE-1'", "sold_out"),
    ("update decisions set outcome = 'c' where order_id = 'SALE-6'", "sold"),
    ("update decisions set sold = 0 where order_id = 'SALE-6'", "sold_out"),
    ("update decisions set sold = 0 where order_id = 'SALE-2'", "purchase_limit"),
    ("update decisions set user_id = 'eve' where order_id = 'SALE-3'", "buyers"),
    ("update decisions set outcome = 'x' where order_id = 'SALE-6'", "window"),
    ("update decisions set version = 7 where order_id = 'SALE-6'", "sold"),
    ("update buyers set units = 1 where user_id = 'ada'", "buyers"),
    ("delete from buyers where user_id = 'bob'", "buyers"),
];

#[tokio::test]
async fn a_ledger_that_was_tampered_with_is_found_in_the_right_book() {
    let ids: Vec<String> = (0..LEDGER.len()).map(|n| format!("s{n}")).collect();
    let stage = sold("tampered-ledger", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for (id, (statement, book)) in ids.iter().zip(LEDGER) {
        assert!(audit(&stage, &[id]).0, "before: {id}");
        let and = if statement.contains(" where ") { "and" } else { "where" };
        let statement = format!("{} {and} sale_id = '{id}'", statement.replace("SALE", id));
        let mut connection = database(&stage).await;
        let done =
            sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&mut connection).await;
        assert_eq!(done.expect("tampered").rows_affected(), 1, "{statement}");
        let (balances, report) = audit(&stage, &[id]);
        assert!(!balances && books(&report).contains(&book), "{statement}: {report:#}");
    }
    let (_, report) = audit(&stage, &[]);
    for id in &ids {
        let findings = report["findings"].as_array().expect("findings");
        assert!(findings.iter().any(|finding| finding["sale_id"] == **id), "{id}: {report:#}");
    }
    // Nothing of the ledger is ever repaired.
    let (balances, fixed) = audit(&stage, &["s0", "--fix"]);
    assert!(!balances && books(&fixed).contains(&"sold"), "{fixed:#}");
    stage.remove().await;
}

/// What is done to Redis: a command on the key of that number of `redis_keys`, and what comes after the key.
const REDIS: [(&str, usize, &[&str]); 10] = [
    ("HSET", 0, &["stock", "3"]),
    ("HSET", 0, &["stock", "-2"]),
    ("HSET", 0, &["sold", "9"]),
    ("HSET", 0, &["version", "4"]),
    ("HSET", 0, &["limit", "7"]),
    ("HSET", 0, &["verification", "1"]),
    ("HSET", 0, &["closes_at", "1000"]),
    ("HSET", 0, &["stock", "many"]),
    ("SADD", 1, &["forged"]),
    ("HSET", 2, &["bob", "2"]),
];

#[tokio::test]
async fn a_redis_that_was_tampered_with_is_found_and_made_right() {
    let ids: Vec<String> = (0..REDIS.len()).map(|n| format!("s{n}")).collect();
    let stage = sold("tampered-redis", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut redis = redis(&stage).await;
    for (id, (name, key, arguments)) in ids.iter().zip(REDIS) {
        assert!(audit(&stage, &[id]).0, "before: {id}");
        let keys = redis_keys(&stage, &sale_id(id));
        let mut command = redis::cmd(name);
        command.arg(&keys[key]).arg(arguments).query_async::<()>(&mut redis).await.expect(name);
        let (balances, report) = audit(&stage, &[id]);
        assert!(!balances && books(&report) == ["hints"], "{arguments:?}: {report:#}");
        let (balances, report) = audit(&stage, &[id, "--fix"]);
        assert!(balances && report["findings"][0]["fixed"] == true, "{report:#}");
        let (balances, report) = audit(&stage, &[id]);
        assert!(balances && books(&report).is_empty(), "{report:#}");
    }
    let entries = floodgate(&stage, &["operator-log", "--json"]).output().expect("floodgate runs");
    let entries: Vec<Value> = serde_json::from_slice(&entries.stdout).expect("entries");
    let fixed = entries.iter().filter(|entry| entry["action"] == "hints_deleted");
    assert!(fixed.count() >= REDIS.len());
    stage.remove().await;
}

#[tokio::test]
async fn events_are_compared_with_the_decisions() {
    let stage = Stage::new("audit-events").await;
    let queue = stage.broker.address(&floodgate::broker::Queue::Subscriber("audited".into()));
    let subscriber = floodgate::broker::Queue::Subscriber("audited".into());
    let deliveries = stage
        .broker
        .subscribe(subscriber, &[floodgate::broker::Topic::Events("order.#")], 1)
        .await
        .expect("subscribe");
    deliveries.stop();
    deliveries.finished().await;
    stage.open(limited("s")).await;
    let orders = some_orders("s");
    stage.post_orders(&orders).await;
    let worker = stage.worker().await;
    let depth = async || {
        let queue = floodgate::broker::Queue::Named(queue.clone());
        stage.broker.depth(queue).await.expect("depth").messages
    };
    until(async || depth().await == 6).await;
    worker.stop().await;
    for _ in 0..2 {
        let (balances, report) = audit(&stage, &["--events", &queue]);
        assert!(balances, "{report:#}");
        assert_eq!(report["books"][9]["seen"], "6 events, 0 repeats");
    }
    for (statement, wrong) in [
        ("delete from decisions where order_id = 's-6'", "no decision"),
        ("update decisions set quantity = 2 where order_id = 's-2'", "another decision"),
    ] {
        let mut connection = database(&stage).await;
        sqlx::query(statement).execute(&mut connection).await.expect("tampered");
        let (balances, report) = audit(&stage, &["--events", &queue]);
        assert!(!balances && report.to_string().contains(wrong), "{report:#}");
    }
    let missing =
        "insert into decisions select now() - interval '1 minute', 0, 1, version, sold, sale_id,
        'unpublished', user_id, 's' from decisions where order_id = 's-5'";
    sqlx::query(missing).execute(&mut database(&stage).await).await.expect("tampered");
    let (_, report) = audit(&stage, &["s", "--events", &queue]);
    assert!(report.to_string().contains("has no event"), "{report:#}");
    stage.remove().await;
}

#[tokio::test]
async fn the_books_in_a_file_are_balanced_too() {
    let embedded = Embedded::new().await;
    embedded.ledger.open(&[limited("s")]).await.expect("open");
    let bodies: Vec<Vec<u8>> = some_orders("s").iter().map(body).collect();
    crate::harness::post(embedded.broker.as_ref(), &bodies).await;
    let worker = crate::harness::Running::start(embedded.worker());
    crate::harness::check::empty_in(embedded.broker.as_ref()).await;
    worker.stop().await;
    let file = embedded.file();
    let balance = || {
        let mut command = bare_floodgate(&["audit", "--json"]);
        command
            .env("FLOODGATE_NAMESPACE", crate::harness::embedded::NAMESPACE)
            .env("FLOODGATE_EMBEDDED__FILE", &file);
        let output = command.output().expect("floodgate runs");
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice::<Value>(&output.stdout).expect(&said)
    };
    let report = balance();
    assert!(report["balanced"] == true && report["decisions"] == 6, "{report:#}");
    for (statement, book) in LEDGER {
        let and = if statement.contains(" where ") { "and" } else { "where" };
        let statement = format!("{} {and} sale_id = 's'", statement.replace("SALE", "s"));
        let name = format!("file:{}", file.display());
        let mut connection =
            <sqlx::SqliteConnection as sqlx::Connection>::connect(&name).await.expect("a file");
        for table in ["sales", "decisions", "buyers"] {
            let copy = format!("create temp table {table}_before as select * from {table}");
            sqlx::query(sqlx::AssertSqlSafe(copy)).execute(&mut connection).await.expect("a copy");
        }
        sqlx::query(sqlx::AssertSqlSafe(statement.clone()))
            .execute(&mut connection)
            .await
            .expect("tampered");
        let report = balance();
        assert!(
            report["balanced"] == false && books(&report).contains(&book),
            "{statement}: {report:#}"
        );
        for table in ["sales", "decisions", "buyers"] {
            let back = format!("insert or replace into {table} select * from {table}_before");
            sqlx::query(sqlx::AssertSqlSafe(back))
                .execute(&mut connection)
                .await
                .expect("put back");
        }
    }
    assert_eq!(balance()["balanced"], true);
}
