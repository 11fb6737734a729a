//! RabbitMQ, Redis and PostgreSQL of one test's own.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};

use floodgate::config::Settings;

use super::Stage;

/// All three, started by `scripts/services`; stopped when dropped.
pub struct PrivateServers {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, &'static str)>,
    /// The settings that point floodgate at them.
    pub settings: HashMap<String, String>,
}

impl PrivateServers {
    /// Starts them, with these variables for the script.
    pub fn start(variables: &[(&'static str, &'static str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let variables = variables.to_vec();
        let mut servers = Self { folder, variables, settings: HashMap::new() };
        succeed(servers.script(&["up"]));
        let settings = String::from_utf8(succeed(servers.script(&["env"])).stdout).expect("UTF-8");
        let words = settings.split_whitespace().filter_map(|word| word.split_once('='));
        servers.settings = words.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        servers
    }

    /// Where they keep their data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the script, which must succeed. What runs in this process meanwhile goes on.
    pub async fn run(&self, arguments: &[&str]) {
        let script = self.script(arguments);
        tokio::task::spawn_blocking(|| succeed(script)).await.expect("it has succeeded");
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let mut command = Command::new(script);
        command.args(arguments).env("SERVICES_DIR", self.folder()).env_remove("SERVERS");
        command.envs(self.variables.iter().copied());
        command
    }

    /// A place apart on them.
    pub async fn stage(&self, what: &str, change: impl FnOnce(&mut Settings)) -> Stage {
        let url = |name: &str| self.settings[name].as_str().into();
        Stage::with(what, |settings| {
            settings.amqp_url = url("FLOODGATE_AMQP_URL");
            settings.redis_url = url("FLOODGATE_REDIS_URL");
            settings.database_url = url("FLOODGATE_DATABASE_URL");
            change(settings);
        })
        .await
    }
}

fn succeed(mut script: Command) -> Output {
    let output = script.output().expect("scripts/services runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script:?}: {said}");
    output
}

impl Drop for PrivateServers {
    fn drop(&mut self) {
        let _ = self.script(&["down"]).output();
    }
}
