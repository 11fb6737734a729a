//! The operators' log: what operators do by each way is in it, and what is refused is bounded.

mod faults;

use std::process::Output;
use std::sync::Arc;

use chrono::Utc;
use floodgate::broker::Queue;
use floodgate::operator_log::{Entry, Wanted};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::api::tokens::{SECRET, Signer, claims, with_secret};
use crate::harness::api::answer;
use crate::harness::process::{bare_floodgate, floodgate, run};
use crate::harness::{Stage, order, sale_id, until};

const ALL: Wanted = Wanted { limit: 1000, before: None, sale_id: None };

async fn entries(stage: &Stage) -> Vec<Entry> {
    stage.operator_log.entries(&ALL).await.expect("read")
}

/// Actor, action and detail of entries, oldest first.
fn told(entries: &[Entry]) -> Vec<(&str, &str, &str)> {
    entries
        .iter()
        .rev()
        .map(|entry| (entry.actor.as_str(), entry.action.name(), entry.detail.as_str()))
        .collect()
}

fn token(claims: &Value) -> String {
    Signer::Hs256(SECRET).sign(claims)
}

/// Sends a request that must be answered with `status`.
async fn send(request: RequestBuilder, status: u16) {
    let (got, body) = answer(request).await;
    assert_eq!(got, status, "{body}");
}

#[tokio::test]
async fn acts_over_the_api_are_recorded_by_their_token() {
    let (stage, served) = with_secret("acts").await;
    let admin = token(&claims("ops-1", "floodgate:admin"));
    let post = |path: &str, body: &Value| served.post(path, body).header("x-request-id", "req-7");
    let restock = json!({ "adjustment_id": "r", "units": 5 });
    let open = json!({ "sale_id": "t", "stock": 3, "per_user_limit": 2,
                       "opens_at": "2026-01-01T08:00:00Z", "verification": true });
    // Repeats change nothing.
    for status in [201, 200] {
        send(post("/v1/sales", &open).bearer_auth(&admin), status).await;
    }
    for _ in 0..2 {
        send(post("/v1/sales/t/restock", &restock).bearer_auth(&admin), 200).await;
        let off = json!({ "verification": false });
        send(post("/v1/sales/t/verification", &off).bearer_auth(&admin), 200).await;
    }
    let mut nobody = claims("", "floodgate:admin");
    nobody.as_object_mut().expect("claims").remove("sub");
    let close = served.post("/v1/sales/t/close", &Value::Null).bearer_auth(token(&nobody));
    send(close, 200).await;
    // What the ledger refuses, or nobody may know, is not an act.
    let other = json!({ "adjustment_id": "r", "units": 6 });
    send(post("/v1/sales/t/restock", &other).bearer_auth(&admin), 409).await;
    send(post("/v1/sales/never/restock", &other).bearer_auth(&admin), 404).await;
    // Tried without the scope: written down when the API stops, at the latest.
    let buyer = token(&claims("buyer", "floodgate:submit"));
    for _ in 0..3 {
        send(post("/v1/sales/t/restock", &other).bearer_auth(&buyer), 403).await;
    }
    send(served.get("/v1/status/stream").bearer_auth(&buyer), 403).await;
    served.stop().await;

    let (of_streams, entries): (Vec<_>, Vec<_>) =
        entries(&stage).await.into_iter().partition(|entry| entry.detail.contains("stream"));
    let restock =
        "refused, count 3: POST /v1/sales/{sale_id}/restock needs the scope floodgate:admin";
    let stream = "refused, count 1: GET /v1/status/stream needs the scope floodgate:admin";
    let [by_scope] = entries.iter().filter(|e| e.actor.contains(' ')).collect::<Vec<_>>()[..]
    else {
        panic!("{entries:?}")
    };
    assert_eq!(
        told(&entries),
        [
            (
                "ops-1",
                "opened",
                "stock 3, limit 2, opens 2026-01-01T08:00:00.000Z, users are checked"
            ),
            ("ops-1", "restocked", "5 units, adjustment r, stock 8"),
            ("ops-1", "verification_switched", "off"),
            ("scope floodgate:admin without sub", "closed", by_scope.detail.as_str()),
            ("buyer", "forbidden", restock),
        ]
    );
    assert_eq!(told(&of_streams), [("buyer", "forbidden", stream)]);
    assert!(by_scope.detail.starts_with("at 20"), "{by_scope:?}");
    for entry in &entries {
        assert_eq!(entry.sale_id, Some(sale_id("t")));
        assert_eq!(entry.origin, "127.0.0.1");
        let age = Utc::now() - entry.at;
        assert!(age.num_minutes() == 0, "{age}");
        // A request without an id gets one from the server.
        let is_its_own = entry.request_id.as_deref() == Some("req-7");
        assert_eq!(is_its_own, !entry.actor.contains(' '), "{entry:?}");
        assert!(entry.request_id.is_some(), "{entry:?}");
    }
    stage.remove().await;
}

#[tokio::test]
async fn a_flood_of_bad_tokens_is_a_handful_of_entries_with_the_right_sum() {
    let (stage, served) = with_secret("flood").await;
    let forged = Signer::Hs256("another secret of tests, 32 bytes or more").sign(&claims("me", ""));
    let expired = token(&json!({ "sub": "me", "exp": 1 }));
    let served = Arc::new(served);
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (served, token) = (served.clone(), if n < 7 { &forged } else { &expired }.clone());
        asking.spawn(async move {
            for _ in 0..100 {
                let request = served.get("/v1/sales/s/orders/o").bearer_auth(&token);
                assert_eq!(request.send().await.expect("an answer").status(), 401);
            }
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.expect("no panic");
    }
    // No token at all is not a refused token.
    send(served.get("/v1/sales/s/orders/o"), 401).await;
    send(served.get("/v1/sales/s/orders/o").header("authorization", "Basic eDp5"), 401).await;
    let Some(served) = Arc::into_inner(served) else { panic!("nobody else has it") };
    served.stop().await;
    let entries = entries(&stage).await;
    assert!((2..=12).contains(&entries.len()), "{} entries", entries.len());
    let count = |reason: &str| -> u32 {
        let counts = entries.iter().filter_map(|entry| {
            assert_eq!((entry.actor.as_str(), entry.action.name()), ("unknown", "token_refused"));
            let (count, why) = entry.detail.strip_prefix("refused, count ")?.split_once(": ")?;
            (why == reason).then(|| count.parse::<u32>().expect("a number"))
        });
        counts.sum()
    };
    assert_eq!(count("the token's signature does not verify"), 700);
    assert_eq!(count("the token has expired"), 300);
    stage.remove().await;
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// What it said on standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Action, sale and detail of what `operator-log --json` prints, oldest first.
fn printed(output: &Output) -> Vec<(String, String, String)> {
    let entries = json_of(output);
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("-").to_owned();
    let rows = entries.as_array().expect("an array").iter().rev().map(|entry| {
        assert!(text(entry, "actor").contains('@'), "{entry}");
        assert_eq!((text(entry, "origin"), &entry["request_id"]), ("cli".into(), &Value::Null));
        (text(entry, "action"), text(entry, "sale_id"), text(entry, "detail"))
    });
    rows.collect()
}

fn row(action: &str, sale: &str, detail: &str) -> (String, String, String) {
    (action.into(), sale.into(), detail.into())
}

/// A stage with two dead letters of orders for the sale `late`, and one that is no JSON.
async fn with_dead_letters(what: &str) -> Stage {
    let stage = Stage::new(what).await;
    let late = [order("o-1", "late", "u", 1), order("o-2", "late", "u", 1)];
    stage.post_orders(&late).await;
    stage.post(&["not json"]).await;
    let worker = stage.worker().await;
    until(async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages == 3)
        .await;
    worker.stop().await;
    stage
}

#[tokio::test]
async fn acts_on_the_command_line_are_recorded_and_read() {
    let stage = with_dead_letters("acts-cli").await;
    let restock = ["sale", "restock", "late", "--units", "2", "--adjustment-id", "r"];
    for arguments in [
        &["sale", "open", "--sale-id", "late", "--stock", "5"][..],
        &["sale", "open", "--sale-id", "late", "--stock", "5"],
        &restock,
        &restock,
        &["sale", "verification", "late", "on"],
        &["sale", "open", "--sale-id", "other", "--stock", "1", "--per-user-limit", "1"],
        &["dead-letters", "redrive", "--reason", "unknown_sale"],
        &["dead-letters", "redrive", "--reason", "unknown_sale"],
        &["dead-letters", "purge", "--all"],
        &["dead-letters", "purge", "--reason", "bad_json"],
        &["sale", "close", "late"],
    ] {
        let output = run(&stage, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    }
    let mut all = printed(&run(&stage, &["operator-log", "--json"]));
    let (_, _, closed) = all.last_mut().expect("entries");
    assert!(closed.starts_with("at 20"), "{closed}");
    closed.truncate(2);
    assert_eq!(
        all,
        [
            row("opened", "late", "stock 5"),
            row("restocked", "late", "2 units, adjustment r, stock 7"),
            row("verification_switched", "late", "on"),
            row("opened", "other", "stock 1, limit 1"),
            row("redriven", "-", "reason unknown_sale: 2 sent back, 0 left"),
            row("purged", "-", "reason any: 1 deleted"),
            row("closed", "late", "at"),
        ]
    );
    let newest = json_of(&run(&stage, &["operator-log", "--json", "--limit", "2"]));
    let [closed, purged] = &newest.as_array().expect("an array")[..] else { panic!("{newest}") };
    assert_eq!([&closed["action"], &purged["action"]], ["closed", "purged"]);
    let (id, at) = (purged["id"].as_str().expect("an id"), purged["at"].as_str().expect("a time"));
    for before in [id, at] {
        let older = printed(&run(&stage, &["operator-log", "--json", "--before", before]));
        assert_eq!(older.last(), Some(&all[4]), "before {before}");
    }
    let of_sale = printed(&run(&stage, &["operator-log", "--json", "--sale-id", "other"]));
    assert_eq!(of_sale, [all[3].clone()]);
    let table = String::from_utf8(run(&stage, &["operator-log"]).stdout).expect("UTF-8");
    assert_eq!(table.lines().count(), 8, "{table}");
    assert!(table.lines().nth(2).is_some_and(|line| line.contains("1 deleted")), "{table}");
    for bad in [["--limit", "0"], ["--limit", "10001"], ["--before", "noon"], ["--sale-id", "a b"]]
    {
        let arguments = [&["operator-log"][..], &bad].concat();
        assert_eq!(run(&stage, &arguments).status.code(), Some(2), "{bad:?}");
    }
    stage.remove().await;
}

#[test]
fn an_embedded_deployment_has_the_log_in_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let mut command = bare_floodgate(arguments);
        command.env("FLOODGATE_EMBEDDED__FILE", folder.path().join("f.db"));
        command.env("FLOODGATE_LOG__FORMAT", "json").output().expect("floodgate runs")
    };
    assert_eq!(said(&run(&["operator-log"])).trim(), "No entries.");
    let file = folder.path().join("sales.csv");
    std::fs::write(&file, "sale_id,stock\na,1\nb,2\n").expect("write");
    let opened = run(&["sale", "open", "--file", file.to_str().expect("UTF-8")]);
    assert!(opened.status.success(), "{}", said(&opened));
    let rows = printed(&run(&["operator-log", "--json"]));
    assert_eq!(rows, [row("opened", "a", "stock 1"), row("opened", "b", "stock 2")]);
    // Each is a line of the log, too.
    let lines: Vec<Value> =
        said(&opened).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.len(), 2, "{}", said(&opened));
    for (line, sale) in lines.iter().zip(["a", "b"]) {
        assert_eq!((&line["level"], &line["action"]), (&"INFO".into(), &"opened".into()));
        assert_eq!(line["target"], "floodgate::operator_log");
        assert_eq!((&line["sale_id"], &line["origin"]), (&sale.into(), &"cli".into()));
        assert!(line["actor"].as_str().is_some_and(|actor| actor.contains('@')), "{line}");
    }
}

#[tokio::test]
async fn dead_letters_are_redriven_and_purged_without_a_database() {
    let stage = with_dead_letters("no-database").await;
    for (arguments, done) in [
        (&["dead-letters", "redrive", "--reason", "unknown_sale", "--json"][..], "redriven"),
        (&["dead-letters", "purge", "--all", "--json"], "purged"),
    ] {
        let mut command = floodgate(&stage, arguments);
        command.env("FLOODGATE_DATABASE_URL", "").env("FLOODGATE_LOG__FILTER", "info");
        let output = command.output().expect("floodgate runs");
        let expected = if done == "redriven" { 2 } else { 1 };
        assert_eq!(json_of(&output)[done], expected, "{}", said(&output));
        let said = said(&output);
        assert!(said.contains("No database is configured"), "{said}");
        assert!(said.contains(&format!("action=\"{done}\"")), "{said}");
    }
    assert_eq!(entries(&stage).await, []);
    // One that is configured and away hinders nothing either.
    stage.post_orders(&[order("o-3", "never", "u", 1)]).await;
    let worker = stage.worker().await;
    until(async || stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages == 3)
        .await;
    worker.stop().await;
    let mut command = floodgate(&stage, &["dead-letters", "purge", "--all", "--json"]);
    let away = "postgres://nobody@127.0.0.1:1/nothing";
    let output =
        command.env("FLOODGATE_DATABASE_URL", away).env("FLOODGATE_LEDGER__TIMEOUT_MS", "500");
    let output = output.output().expect("floodgate runs");
    assert_eq!(json_of(&output)["purged"], 3);
    assert!(said(&output).contains("ERROR"), "{}", said(&output));
    stage.remove().await;
}
