//! Processes of tests: the `floodgate` binary, and private Redis servers.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use super::{PATIENCE, Stage};

/// The binary with the settings of `stage`.
pub fn floodgate(stage: &Stage, arguments: &[&str]) -> Command {
    let settings = stage.scratch.app.settings();
    let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate"));
    command
        .args(arguments)
        .env("FLOODGATE_NAMESPACE", &settings.namespace)
        .env("FLOODGATE_DATABASE_URL", settings.database_url.expose_secret())
        .env("FLOODGATE_REDIS_URL", settings.redis_url.expose_secret())
        .env("FLOODGATE_AMQP_URL", settings.amqp_url.expose_secret())
        .stdin(Stdio::null());
    command
}

/// The binary without any settings.
pub fn bare_floodgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOODGATE_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub fn run(stage: &Stage, arguments: &[&str]) -> Output {
    floodgate(stage, arguments).output().expect("floodgate runs")
}

/// A worker in a process of its own; killed when dropped.
pub struct WorkerProcess(Child);

impl WorkerProcess {
    pub fn start(stage: &Stage) -> Self {
        Self::with(stage, &[])
    }

    pub fn with(stage: &Stage, variables: &[(&str, &str)]) -> Self {
        let mut command = floodgate(stage, &["worker"]);
        command.envs(variables.iter().copied()).env("FLOODGATE_LOG__FILTER", "off");
        Self(command.spawn().expect("a worker starts"))
    }

    pub fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    /// As `kill -9`.
    pub fn kill(mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }

    /// Waits for its end; the exit code, or `None` when it was ended by a signal.
    pub fn wait(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("wait") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "a worker does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to the process with that id.
pub fn signal(id: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status();
    assert!(status.expect("kill runs").success(), "kill -{name}");
}

/// A Redis server of one test's own, that can be stopped and killed; killed when dropped.
pub struct PrivateRedis {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl PrivateRedis {
    pub fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port")
            .port();
        let folder = tempfile::tempdir().expect("a folder");
        let child = Self::spawn(port, &folder);
        Self { child, port, folder }
    }

    fn spawn(port: u16, folder: &tempfile::TempDir) -> Child {
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--save", "", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts; scripts/services up installs it");
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// `STOP` and `CONT` make it hang and go on.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Starts it again after [`PrivateRedis::kill`], with what it had written, or with nothing.
    pub fn restart(&mut self, with_data: bool) {
        if !with_data {
            self.folder = tempfile::tempdir().expect("a folder");
        }
        self.child = Self::spawn(self.port, &self.folder);
    }

    pub fn command(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output();
        String::from_utf8(output.expect("redis-cli runs").stdout).expect("UTF-8")
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
