//! The laboratory's commands on real servers.

mod bench;
mod chaos;
mod compare;
mod docs;
mod simulate;
mod user_service;

use std::process::{Command, Output, Stdio};

use floodgate::config::{Server, Settings};
use secrecy::ExposeSecret;
use serde_json::Value;

/// The settings of the servers to test with, or a failure that says how to get them.
fn settings() -> Settings {
    let settings = Settings::load(None).expect("settings");
    if let Err(error) = settings.require(&[Server::Amqp, Server::Redis, Server::Database]) {
        panic!(
            "these tests need servers. Run scripts/test, or: scripts/services up && eval \"$(scripts/services env)\"\n{error}"
        );
    }
    settings
}

/// The binary without any settings.
fn bare_lab(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate-lab"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOODGATE_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command on the configured servers to its end. Returns its process id too.
fn lab(command: &str, arguments: &[&str]) -> (u32, Output) {
    let settings = settings();
    let child = bare_lab(&[&[command], arguments].concat())
        .env("FLOODGATE_AMQP_URL", settings.amqp_url.expose_secret())
        .env("FLOODGATE_REDIS_URL", settings.redis_url.expose_secret())
        .env("FLOODGATE_DATABASE_URL", settings.database_url.expose_secret())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("floodgate-lab runs");
    (child.id(), child.wait_with_output().expect("floodgate-lab ends"))
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {error}"))
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["bench", "chaos", "compare", "failover", "simulate", "user-service"] {
        let help = bare_lab(&[command, "--help"]).output().expect("runs");
        let help = String::from_utf8(help.stdout).expect("UTF-8");
        assert!(help.contains("Example"), "{command}");
    }
}
