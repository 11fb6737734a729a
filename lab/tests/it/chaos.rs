//! A short run of faults on private servers.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{bare_lab, json};

/// Stops the servers when dropped.
struct Servers(tempfile::TempDir);

impl Servers {
    fn start() -> Self {
        let servers = Self(tempfile::tempdir().expect("a folder"));
        let up = servers.script("up");
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        servers
    }

    fn script(&self, verb: &str) -> Output {
        let mut command = Command::new(control());
        command.arg(verb).env("SERVICES_DIR", self.0.path()).env_remove("SERVERS");
        command.output().expect("scripts/services runs")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.script("down");
    }
}

fn control() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/services")
}

#[test]
fn every_promise_is_kept_through_half_a_minute_of_faults() {
    let servers = Servers::start();
    let settings = String::from_utf8(servers.script("env").stdout).expect("UTF-8");
    let control = control();
    let control = control.to_str().expect("UTF-8");
    let output = bare_lab(&["chaos", "--minutes", "0.5", "--rate", "100", "--seed", "1", "--json"])
        .args(["--control", control])
        .envs(settings.split_whitespace().filter_map(|word| word.split_once('=')))
        .env("SERVICES_DIR", servers.0.path())
        .output()
        .expect("runs");
    let report = json(&output);
    assert!(output.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
    for broken in ["lost", "doubled", "oversold", "wrongly_refused", "leaked", "discrepancies"] {
        assert_eq!(report[broken], 0, "{broken}");
    }
    assert!(report["faults"].as_u64().is_some_and(|faults| faults > 5), "{report}");
    assert!(report["accepted"].as_u64().is_some_and(|orders| orders > 2000), "{report}");
    assert_eq!(report["accepted"], report["decided"]);
}

#[test]
fn a_plan_is_printed_without_making_it() {
    let plan = |seed: &str| {
        let output = bare_lab(&["chaos", "--plan", "--minutes", "5", "--seed", seed, "--json"]);
        let output = { output }.output().expect("runs");
        json(&output)
    };
    assert_eq!(plan("1"), plan("1"));
    assert_ne!(plan("1"), plan("2"));
    assert!(plan("1").as_array().is_some_and(|episodes| episodes.len() > 50));
}
