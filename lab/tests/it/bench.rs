//! `floodgate-lab bench`: that it measures, not what.

use super::{bare_lab, json, lab};

#[test]
fn the_bench_measures() {
    let (_, output) = lab("bench", &["--orders", "500", "--rounds", "1", "--batch", "4", "--json"]);
    let report = json(&output);
    assert!(report["ratio"].as_f64().is_some_and(|value| value > 0.0), "{report}");
    for figure in ["bare relay", "worker's peak memory", "Redis, a decision", "ledger, a decision"]
    {
        let median = report["figures"][figure]["median"].as_f64();
        assert!(median.is_some_and(|value| value > 0.0), "{figure}: {report}");
    }
    assert!(String::from_utf8_lossy(&output.stderr).contains("round 1 of 1"));
}

#[test]
fn bad_usage_exits_with_2() {
    let output = bare_lab(&["bench", "--orders", "1"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
}
