//! Metrics: what is counted is what the ledger holds, and Prometheus takes it.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

use chrono::{TimeDelta, Utc};
use floodgate::broker::{Queue, Reply};
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::event::Event;
use floodgate::domain::order::Order;
use floodgate::domain::sale::{PauseMode, Sale, SoldOut};
use floodgate::ledger::Change;
use floodgate::metrics::Metrics;
use serde_json::json;

use crate::harness::api::Served;
use crate::harness::check;
use crate::harness::users::{Users, checked_sale, with_users};
use crate::harness::{Stage, body, order, sale, sale_id, until};

/// The values of metrics, by their names with labels.
fn values(text: &str) -> HashMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.filter_map(|line| line.rsplit_once(' '));
    parsed.map(|(name, value)| (name, value.parse().expect("a number"))).collect()
}

fn orders_total(outcome: Outcome) -> String {
    let reason = outcome.reason().map_or("", Reason::name);
    format!("floodgate_orders_total{{outcome=\"{}\",reason=\"{reason}\"}}", outcome.name())
}

/// Orders of every outcome, and the sales that they are of.
fn of_every_outcome() -> (Vec<Sale>, Vec<(Order, Outcome)>) {
    let now = Utc::now();
    let sales = vec![
        checked_sale("checked", 5),
        sale("few", 2),
        Sale { per_user_limit: Some(1), ..sale("limited", 9) },
        Sale { opens_at: Some(now + TimeDelta::hours(1)), ..sale("early", 9) },
        Sale { closes_at: Some(now - TimeDelta::hours(1)), ..sale("late", 9) },
        sale("paused", 9),
    ];
    let orders = vec![
        (order("a", "checked", "good", 1), Outcome::Created),
        (order("b", "checked", "bad-1", 1), Outcome::Rejected(Reason::UserDenied)),
        (order("c", "few", "u", 2), Outcome::Created),
        (order("d", "few", "v", 1), Outcome::SoldOut),
        (order("e", "few", "w", 1), Outcome::SoldOut),
        (order("f", "limited", "u", 1), Outcome::Created),
        (order("g", "limited", "u", 1), Outcome::Rejected(Reason::PurchaseLimit)),
        (order("h", "early", "u", 1), Outcome::Rejected(Reason::NotOpen)),
        (order("i", "late", "u", 1), Outcome::Rejected(Reason::Closed)),
        (order("j", "paused", "u", 1), Outcome::Rejected(Reason::Paused)),
    ];
    (sales, orders)
}

#[tokio::test]
async fn counters_are_what_the_ledger_holds() {
    let mut stage = Stage::new("metrics").await;
    let (sales, expected) = of_every_outcome();
    stage.ledger.open(&sales).await.expect("open");
    let pause = Change::Pause { mode: Some(PauseMode::Refuse), at: Utc::now() };
    stage.ledger.change(&sale_id("paused"), &pause).await.expect("paused");
    let metrics = stage.deployment.app.metrics().clone();
    let worker = with_users(&stage, &Users::new()).await;
    let mut orders: Vec<Order> = expected.iter().map(|(order, _)| order.clone()).collect();
    stage.post_orders(&orders).await;
    let old = order("old", "few", "x", 1);
    let mut old_intent = serde_json::to_value(&old).expect("JSON");
    old_intent["submitted_at"] = json!("2026-01-01T00:00:00Z");
    stage.post(&[old_intent.to_string()]).await;
    orders.push(old);
    check::settled(&mut stage, &orders).await;
    // Repeats, and what is set aside: unreadable, in conflict, of no sale.
    stage.post_orders(&orders[..3]).await;
    for _ in 0..3 {
        stage.event().await;
    }
    let conflict = order("c", "few", "someone-else", 2);
    stage.post(&[b"{".to_vec(), body(&conflict), body(&order("z", "none", "u", 1))]).await;
    assert_eq!(stage.dead_letters(3).await.len(), 3);
    until(async || metrics.broker.in_flight().0 == 0).await;

    let text = metrics.text();
    let values = values(&text);
    let mut in_ledger: HashMap<Outcome, u32> = HashMap::new();
    for outcome in check::outcomes(&stage, &orders).await {
        *in_ledger.entry(outcome).or_default() += 1;
    }
    let all = [Outcome::Created, Outcome::SoldOut].into_iter();
    for outcome in all.chain(Reason::ALL.map(Outcome::Rejected)) {
        let counted = values[orders_total(outcome).as_str()];
        assert_eq!(counted.to_string(), in_ledger[&outcome].to_string(), "{outcome:?}: {text}");
    }
    for (name, expected) in [
        ("floodgate_duplicates_total", 3.0),
        ("floodgate_dead_letters_total{reason=\"bad_json\"}", 1.0),
        ("floodgate_dead_letters_total{reason=\"order_id_conflict\"}", 1.0),
        ("floodgate_dead_letters_total{reason=\"unknown_sale\"}", 1.0),
        ("floodgate_decision_seconds_count", orders.len() as f64),
        ("floodgate_in_flight", 0.0),
        ("floodgate_units{sale=\"few\",state=\"stock\"}", 2.0),
        ("floodgate_units{sale=\"few\",state=\"sold\"}", 2.0),
        ("floodgate_dependency_up{dependency=\"postgresql\"}", 1.0),
        ("floodgate_dependency_up{dependency=\"user_service\"}", 1.0),
        ("floodgate_unconfirmed_publishes", 0.0),
        ("floodgate_circuit_breaker_state", 0.0),
    ] {
        assert_eq!(values.get(name), Some(&expected), "{name}: {text}");
    }
    for stage in ["propose", "decide", "publish", "verify"] {
        let name = format!("floodgate_stage_seconds_count{{stage=\"{stage}\"}}");
        assert!(values[name.as_str()] > 0.0, "{name}: {text}");
    }
    // Orders of checked users are decided after they were found unchecked.
    assert!(values["floodgate_batch_size_sum"] >= orders.len() as f64, "{text}");
    assert!(values["floodgate_last_progress_timestamp_seconds"] > 1e9, "{text}");
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn what_is_in_flight_is_shown_with_the_age_of_its_oldest_order() {
    let stage = Stage::new("oldest").await;
    stage.open(checked_sale("slow", 1)).await;
    let metrics = stage.deployment.app.metrics().clone();
    // Calls for this sale hang.
    let worker = with_users(&stage, &Users::new()).await;
    let minute_ago = (Utc::now() - TimeDelta::minutes(1)).to_rfc3339();
    let intent = json!({
        "sale_id": "slow", "order_id": "o", "user_id": "u", "quantity": 1, "submitted_at": minute_ago,
    });
    stage.post(&[intent.to_string()]).await;
    until(async || metrics.broker.in_flight().1 > 60.0).await;
    let (count, age) = metrics.broker.in_flight();
    assert!(count == 1 && age < 120.0, "{count} {age}");
    worker.abort().await;
    until(async || metrics.broker.in_flight().0 == 0).await;
    stage.remove().await;
}

#[tokio::test]
async fn replies_that_cannot_be_sent_are_counted() {
    let stage = Stage::new("dropped").await;
    let metrics = stage.deployment.app.metrics();
    let sold_out = SoldOut { sale_id: sale("s", 1).id, version: 1, stock: 1, at: Utc::now() };
    let event = Event::sold_out(&sold_out);
    for queue in [Queue::Intents, Queue::Returned, Queue::DeadLetters] {
        let to = stage.broker.address(&queue);
        let correlation_id = "c".to_owned();
        stage.broker.reply(Reply { to, correlation_id, in_batches: false, event: event.clone() });
    }
    assert_eq!(metrics.broker.dropped_replies.get(), 3);
    stage.remove().await;
}

/// Runs `promtool` on `text`, and returns what it complains of.
fn promtool(arguments: &[&str], text: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is not installed; run scripts/prometheus");
    child.stdin.take().expect("input").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("promtool runs");
    let told = [output.stdout, output.stderr].concat();
    String::from_utf8(told).expect("UTF-8")
}

#[test]
fn promtool_has_no_complaint() {
    let metrics = Metrics::new();
    metrics.worker.dead_lettered("bad_json");
    assert_eq!(promtool(&["check", "metrics"], &metrics.text()), "");
    assert_ne!(promtool(&["check", "metrics"], "a_total{} x"), "", "it does complain");
}

#[tokio::test]
async fn the_api_shows_metrics_on_loopback() {
    let stage = Stage::new("scrape").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let answer = served.get("/metrics").send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4");
    let text = answer.text().await.expect("text");
    assert!(text.contains("floodgate_build_info"), "{text}");
    served.stop().await;
    stage.remove().await;
}
