//! `floodgate-lab simulate`.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::bare_lab;

fn simulate(arguments: &[&str]) -> Output {
    bare_lab(&[&["simulate"], arguments].concat()).output().expect("floodgate-lab runs")
}

fn report(arguments: &[&str]) -> Value {
    let output = simulate(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).expect(&said);
    assert!(output.status.success(), "{report:#}");
    report
}

#[test]
fn the_promises_hold_in_2000_simulated_worlds() {
    let report = report(&["--seeds", "2000", "--json"]);
    assert_eq!((&report["seeds"], &report["failed"]), (&2000.into(), &Value::Array(Vec::new())));
    assert!(report["decided"].as_u64().is_some_and(|decided| decided > 20_000), "{report:#}");
}

#[test]
fn the_same_seed_gives_the_same_trace_in_every_process() {
    for seed in ["3", "17", "350", "1234"] {
        let [first, second] = [(); 2].map(|()| report(&["--seed", seed, "--json"]));
        assert!(first["same_trace"] == true && first["events"].as_u64() > Some(20), "{first:#}");
        assert_eq!(first["trace"], second["trace"]);
    }
}

#[test]
fn steps_and_faults_can_be_left_out() {
    let whole = report(&["--seed", "17", "--json"]);
    let part = report(&["--seed", "17", "--steps", "0,1", "--faults", "ledger", "--json"]);
    assert!(whole["steps"].as_u64() > Some(2) && part["steps"] == 2, "{whole:#} {part:#}");
    assert!(part["faults"].as_array().is_some_and(|faults| faults.len() <= 1), "{part:#}");
    let output = simulate(&["--seed", "17", "--trace"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("worker 0 starts"));
    let output = simulate(&["--seed", "17", "--faults", "rain"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("slow-broker"));
}

/// `scripts/mutants` builds each of them.
#[test]
fn every_mutant_can_be_made_of_this_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let patches = std::fs::read_dir(root.join("lab/mutants")).expect("patches");
    let mut count = 0;
    for patch in patches {
        let path = patch.expect("a patch").path();
        let text = std::fs::read_to_string(&path).expect("a patch");
        let how = text.lines().find_map(|line| line.strip_prefix("Caught by: "));
        assert!(how.is_some_and(|how| how == "simulation" || how.starts_with("test ")), "{text}");
        let mut check = Command::new("patch");
        check.args(["--dry-run", "-s", "-p1", "-d"]).arg(root).arg("-i").arg(&path);
        let output = check.output().expect("patch runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        count += 1;
    }
    assert!(count >= 10, "{count}");
}
