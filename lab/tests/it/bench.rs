//! `floodgate-lab bench`: that it measures, not what.

use super::{bare_lab, json, lab};

#[test]
fn the_bench_measures() {
    let (_, output) = lab("bench", &["--orders", "500", "--rounds", "1", "--batch", "4", "--json"]);
    let report = json(&output);
    for figure in
        ["ratio", "worker_peak_bytes", "redis_bytes_per_decision", "ledger_bytes_per_decision"]
    {
        assert!(report[figure].as_f64().is_some_and(|value| value > 0.0), "{figure}: {report}");
    }
    assert!(String::from_utf8_lossy(&output.stderr).contains("round 1 of 1"));
}

#[test]
fn bad_usage_exits_with_2() {
    let output = bare_lab(&["bench", "--orders", "1"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
}
