//! `floodgate-lab compare`, end to end. That a design loses a race is never required, only that those that
//! can't don't.

use std::path::Path;
use std::process::Output;

use secrecy::ExposeSecret;
use serde_json::Value;

use super::{bare_lab, json, lab, settings};

/// The command on the configured servers, and its process id.
fn compare(arguments: &[&str]) -> (u32, Output) {
    lab("compare", arguments)
}

fn run<'a>(report: &'a Value, scenario: &str, design: &str) -> &'a Value {
    let runs = report["results"].as_array().expect("results");
    let found = runs.iter().find(|run| run["scenario"] == scenario && run["design"] == design);
    found.unwrap_or_else(|| panic!("no {scenario} of {design}: {report}"))
}

/// Everything sold, nothing twice, everybody told the truth.
fn assert_right(run: &Value, stock: u32) {
    assert_eq!(run["sold"], stock, "{run}");
    for wrong in ["oversold", "undersold", "told_wrong", "unserved", "second_orders", "lost"] {
        assert_eq!(run[wrong], 0, "{wrong}: {run}");
    }
}

#[tokio::test]
async fn every_design_sells_and_nothing_stays_behind() {
    let (id, output) = compare(&[
        "--scenario",
        "fast",
        "--stock",
        "10",
        "--buyers",
        "30",
        "--at-once",
        "10",
        "--processes",
        "2",
        "--limit-s",
        "60",
        "--json",
    ]);
    let report = json(&output);
    assert_eq!(report["results"].as_array().map(Vec::len), Some(10), "{report}");
    for design in
        ["owner-token-lock", "atomic-decrement", "optimistic-lock", "sharded-stock", "floodgate"]
    {
        assert_right(run(&report, "fast", design), 10);
    }
    for design in ["read-modify-write", "setnx-published", "setnx-as-told", "redlock"] {
        let run = run(&report, "fast", design);
        assert!(run["sold"].as_u64() >= Some(10), "{run}");
        assert_eq!(run["undersold"], 0, "{run}");
    }
    assert!(report["redis_round_trip_ms"].as_f64() > Some(0.8), "twice 0.4 ms: {report}");
    let url = settings().redis_url;
    let client = redis::Client::open(url.expose_secret()).expect("a URL");
    let mut redis = client.get_multiplexed_async_connection().await.expect("Redis");
    let pattern = format!("floodgate-compare-{id}*");
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await.expect("KEYS");
    assert_eq!(keys, Vec::<String>::new());
}

#[test]
fn an_incident_is_saved_shown_and_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    let (saved, chart) = (folder.path().join("saved.json"), folder.path().join("chart.svg"));
    let name = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (_, output) = compare(&[
        "--scenario",
        "incident",
        "--design",
        "setnx-published",
        "--design",
        "atomic-decrement",
        "--design",
        "floodgate",
        "--runs",
        "2",
        "--stock",
        "10",
        "--buyers",
        "40",
        "--at-once",
        "20",
        "--processes",
        "2",
        "--limit-s",
        "60",
        "--json",
        "--chart",
        &name(&chart),
    ]);
    let report = json(&output);
    assert_right(run(&report, "incident", "floodgate"), 10);
    assert_right(run(&report, "incident", "atomic-decrement"), 10);
    let drawn = std::fs::read_to_string(&chart).expect("a chart");
    assert!(drawn.starts_with("<svg") && drawn.contains("floodgate: never in 2 runs"), "{drawn}");

    std::fs::write(&saved, &output.stdout).expect("write");
    let shown = bare_lab(&["compare", "--from", &name(&saved)]).output().expect("runs");
    let table = String::from_utf8(shown.stdout).expect("UTF-8");
    assert!(table.contains("floodgate             0 of 2"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
}

#[test]
fn who_dies_in_the_middle_costs_floodgate_nothing() {
    let (_, output) = compare(&[
        "--scenario",
        "kill",
        "--design",
        "sharded-stock",
        "--design",
        "floodgate",
        "--stock",
        "40",
        "--buyers",
        "120",
        "--at-once",
        "40",
        "--processes",
        "3",
        "--limit-s",
        "60",
        "--json",
    ]);
    let report = json(&output);
    for scenario in ["kill", "kill-api"] {
        let run = run(&report, scenario, "floodgate");
        assert_right(run, 40);
        assert_eq!(run["event_happened"], true, "{run}");
    }
    for scenario in ["kill", "added"] {
        let run = run(&report, scenario, "sharded-stock");
        assert_eq!((&run["oversold"], &run["event_happened"]), (&0.into(), &true.into()), "{run}");
    }
}

#[test]
fn it_says_what_it_needs() {
    let output = bare_lab(&["compare"]).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("scripts/services up") && error.contains("FLOODGATE_REDIS_URL"),
        "{error}"
    );
    let tls = bare_lab(&["compare"])
        .env("FLOODGATE_AMQP_URL", "amqp://127.0.0.1:1/%2f")
        .env("FLOODGATE_DATABASE_URL", "postgres://127.0.0.1:1/none")
        .env("FLOODGATE_REDIS_URL", "rediss://:hush@127.0.0.1:1/")
        .output()
        .expect("runs");
    let error = String::from_utf8_lossy(&tls.stderr);
    assert_eq!(tls.status.code(), Some(1));
    assert!(error.contains("begin with redis://") && !error.contains("hush"), "{error}");
}

#[test]
fn bad_arguments_exit_with_2_and_say_what_is_accepted() {
    for (bad, says) in [
        (&["--design", "mutex"][..], "accepted: read-modify-write, setnx-published"),
        (&["--scale", "0"], "accepted: a number from 0.01 to 1"),
        (&["--stock", "0"], "1..=100000"),
        (&["--scenario", "rain"], "fast, slow, incident, kill, all"),
        (&["--scenario", "kill", "--chart", "c.svg"], "--scenario incident, slow or all"),
        (&["--from", "r.json", "--runs", "2"], "cannot be used with"),
    ] {
        let arguments = [&["compare"], bad].concat();
        let output = bare_lab(&arguments).output().expect("runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {error}");
        assert!(error.contains(says), "{bad:?}: {error}");
    }
    let output = bare_lab(&["compare", "--from", "Cargo.toml"]).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("Cargo.toml is no report of compare --json"), "{error}");
}
