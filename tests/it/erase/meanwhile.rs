//! What others do while a user is erased.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use floodgate::broker::topology::Topology;
use floodgate::broker::{DeadLetter, Message, Properties, Queue};
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;

use super::{USER, done, files_with_user, limited, places};
use crate::harness::check::settled;
use crate::harness::process::floodgate;
use crate::harness::{Stage, ask, body, channel, database, order, until};

const OTHER: &str = "other-17851";

/// A stage whose sale `old` has closed, with orders of the user and of another, which are decided.
async fn closed(name: &str) -> Stage {
    let mut stage = Stage::new(name).await;
    stage.open(limited("old")).await;
    let orders = [order("a", "old", USER, 1), order("b", "old", OTHER, 1)];
    stage.post_orders(&orders).await;
    let worker = stage.worker().await;
    settled(&mut stage, &orders).await;
    worker.stop().await;
    done(floodgate(&stage, &["sale", "close", "old", "--json"]));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage
}

fn archive(stage: &Stage, folder: &Path) -> Command {
    let to = folder.to_str().expect("UTF-8");
    let mut command = floodgate(stage, &["sale", "archive", "old", "--json", "--to", to]);
    command.env("FLOODGATE_INTENT__MAX_AGE_S", "1");
    command
}

fn erase(stage: &Stage, user: &str) -> Command {
    let mut command = floodgate(stage, &["user", "erase", user, "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ended(child: Child) -> (bool, String) {
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

async fn count(stage: &Stage, sql: &'static str) -> i64 {
    let mut db = database(stage).await;
    sqlx::query_scalar(sql).fetch_one(&mut db).await.expect("a count")
}

#[tokio::test]
async fn a_sale_that_is_archived_meanwhile_is_found_again() {
    let stage = closed("erase-archive").await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut db = database(&stage).await;
    let mut lock = sqlx::Connection::begin(&mut db).await.expect("a transaction");
    let whole = "lock table archives in access exclusive mode";
    sqlx::query(whole).execute(&mut *lock).await.expect("a lock");
    let mut erasing = erase(&stage, USER);
    let erasing = erasing.env("FAILPOINTS", "erase_found=1*sleep(8000)").spawn().expect("it runs");
    // It knows by then that the ledger has the decision.
    let looks = "select count(*) from pg_stat_activity where datname = current_database()
         and wait_event_type = 'Lock' and query like '%from archives%'";
    until(async || count(&stage, looks).await > 0).await;
    lock.rollback().await.expect("its end");
    done(archive(&stage, folder.path()));
    assert_eq!(files_with_user(folder.path()), 1);
    let (is_done, said) = ended(erasing);
    assert!(is_done, "{said}");
    assert_eq!(files_with_user(folder.path()), 0);
    assert_eq!(places(&stage).await, Vec::<String>::new());
    stage.remove().await;
}

#[tokio::test]
async fn two_users_are_erased_at_once() {
    let stage = closed("erase-two").await;
    let folder = tempfile::tempdir().expect("a folder");
    done(archive(&stage, folder.path()));
    let lock = std::fs::File::create(folder.path().join(".floodgate.lock")).expect("a file");
    lock.lock().expect("locked");
    let erasing = [USER, OTHER].map(|user| erase(&stage, user).spawn().expect("it runs"));
    let begun = "select count(*) from erased_buyers";
    until(async || count(&stage, begun).await == 2).await;
    drop(lock);
    for erasing in erasing {
        let (is_done, said) = ended(erasing);
        assert!(is_done, "{said}");
    }
    assert_eq!(files_with_user(folder.path()), 0);
    assert_eq!(done(erase(&stage, OTHER))["archived_decisions"], 0);
    let archived = done(floodgate(&stage, &["sale", "restore", "old", "--json"]));
    assert_eq!(archived["decisions"], 2);
    stage.remove().await;
}

#[tokio::test]
async fn letters_that_others_hold_are_not_taken_as_replaced() {
    let stage = Stage::new("erase-held").await;
    dead(&stage, body(&order("x", "never", USER, 1))).await;
    let letters = async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages;
    until(async || letters().await == 1).await;
    let holding = channel(&stage).await;
    let names = Topology::new(&stage.deployment.app.settings().namespace);
    let queue = names.queue(&Queue::DeadLetters);
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let held = holding.basic_consume(queue.into(), "".into(), options, arguments).await;
    let held = held.expect("a consumer");
    until(async || letters().await == 0).await;
    let refused = erase(&stage, USER).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("others hold dead letters") && said.contains("repeat"), "{said}");
    drop(held);
    holding.close(200, "".into()).await.expect("closed");
    until(async || letters().await == 1).await;
    assert_eq!(done(erase(&stage, USER))["dead_letters"], 1);
    assert_eq!(places(&stage).await, Vec::<String>::new());
    stage.remove().await;
}

async fn dead(stage: &Stage, body: Vec<u8>) {
    let letter = DeadLetter {
        body,
        properties: Properties { routing_key: "new".into(), ..Properties::default() },
        reason: "undecidable".into(),
        detail: "for a test".into(),
        id: "a test's".into(),
    };
    stage.broker.publish(&[Message::DeadLetter(&letter)]).await.all().expect("published");
}

#[tokio::test]
async fn orders_in_an_array_are_the_tokens_and_a_number_is_none() {
    let mut stage = Stage::new("erase-array").await;
    stage.open(limited("new")).await;
    let first = order("a", "new", USER, 2);
    stage.post_orders(std::slice::from_ref(&first)).await;
    let worker = stage.worker().await;
    settled(&mut stage, std::slice::from_ref(&first)).await;
    let number = br#"{"order_id":"n","sale_id":"new","user_id":17852,"quantity":1}"#;
    stage.post(&[number.as_slice()]).await;
    let letters = async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages;
    until(async || letters().await == 1).await;
    let more = order("b", "new", USER, 1);
    dead(
        &stage,
        [b"[".to_vec(), body(&first), b", ".to_vec(), body(&more), b"]".to_vec()].concat(),
    )
    .await;
    until(async || letters().await == 2).await;
    for user in [USER, "17852"] {
        assert_eq!(done(erase(&stage, user))["dead_letters"], 1, "{user}");
    }
    let listed = done(floodgate(&stage, &["dead-letters", "list", "--json"])).to_string();
    assert!(!listed.contains(USER) && !listed.contains("17852"), "{listed}");
    assert_eq!(done(floodgate(&stage, &["dead-letters", "redrive", "--json"]))["redriven"], 2);
    let died = stage.dead_letters(1).await;
    assert_eq!(died[0].0, "missing_field", "{}", String::from_utf8_lossy(&died[0].1));
    let repeated = [ask(&stage, &first).await, ask(&stage, &more).await];
    assert_eq!(repeated[0]["outcome"], "created", "{}", repeated[0]);
    assert_eq!(repeated[1]["reason"], "purchase_limit", "{}", repeated[1]);
    assert_eq!(letters().await, 0);
    worker.stop().await;
    stage.remove().await;
}
