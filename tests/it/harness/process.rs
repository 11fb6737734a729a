//! Processes of tests: the `floodgate` binary, and private servers.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use super::embedded::{Embedded, NAMESPACE};
use super::{PATIENCE, Stage};

/// The binary with the settings of `stage`.
pub fn floodgate(stage: &Stage, arguments: &[&str]) -> Command {
    let settings = stage.deployment.app.settings();
    let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate"));
    command
        .args(arguments)
        .env("FLOODGATE_NAMESPACE", &settings.namespace)
        .env("FLOODGATE_DATABASE_URL", settings.database_url.expose_secret())
        .env("FLOODGATE_REDIS_URL", settings.redis_url.expose_secret())
        .env("FLOODGATE_AMQP_URL", settings.amqp_url.expose_secret())
        .env("FLOODGATE_WORKER__LISTEN", "off")
        .env("FLOODGATE_EVENTS__PUBLISH", settings.events.publish.name())
        .env("FLOODGATE_FEED__ENABLED", settings.feed.enabled.to_string())
        .env("FLOODGATE_INTENT__DELIVERY_LIMIT", settings.intent.delivery_limit.to_string())
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

/// The binary, on the file of an embedded deployment.
pub fn embedded_floodgate(embedded: &Embedded, arguments: &[&str]) -> Command {
    let mut command = bare_floodgate(arguments);
    command.env("FLOODGATE_NAMESPACE", NAMESPACE).env("FLOODGATE_EMBEDDED__FILE", embedded.file());
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

    /// One on an embedded deployment.
    pub fn embedded(embedded: &Embedded, variables: &[(&str, &str)]) -> Self {
        let mut command = embedded_floodgate(embedded, &["worker"]);
        command
            .env("FLOODGATE_WORKER__LISTEN", "off")
            .env("FLOODGATE_LOG__FILTER", "off")
            .envs(variables.iter().copied());
        Self(command.spawn().expect("a worker starts"))
    }

    pub fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    /// The most memory it has had (`VmHWM`, proc(5)).
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
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

/// A port that nobody listens on just now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    listener.and_then(|listener| listener.local_addr()).expect("a port").port()
}

fn until_it_listens(port: u16) {
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn redis_cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output();
    String::from_utf8(output.expect("redis-cli runs").stdout).expect("UTF-8")
}

/// A Redis server of one test's own, that can be stopped and killed; killed when dropped.
pub struct PrivateRedis {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl PrivateRedis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().expect("a folder");
        let child = Self::spawn(port, &folder, arguments);
        Self { child, port, folder }
    }

    /// Two nodes of a cluster, with half of its slots each.
    pub fn cluster() -> [Self; 2] {
        let nodes = [(); 2].map(|()| {
            let bus = free_port().to_string();
            Self::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
        });
        let [first, second] = &nodes;
        first.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
        second.command(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
        let bus = second.command(&["CONFIG", "GET", "cluster-port"]);
        let bus = bus.split_whitespace().last().expect("a port");
        first.command(&["CLUSTER", "MEET", "127.0.0.1", &second.port.to_string(), bus]);
        let deadline = Instant::now() + PATIENCE;
        while !nodes.iter().all(|node| node.command(&["CLUSTER", "INFO"]).contains("state:ok")) {
            assert!(Instant::now() < deadline, "the nodes do not become a cluster");
            std::thread::sleep(Duration::from_millis(50));
        }
        nodes
    }

    /// A Sentinel that watches `primary` by `name`.
    pub fn sentinel(name: &str, primary: &Self) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("sentinel.conf");
        let watched = primary.port;
        let text =
            format!("port {port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {watched} 1\n");
        std::fs::write(&file, text).expect("a file");
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts; scripts/services up installs it");
        until_it_listens(port);
        Self { child, port, folder }
    }

    fn spawn(port: u16, folder: &tempfile::TempDir, arguments: &[&str]) -> Child {
        let child = Command::new("redis-server")
            .args(arguments)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--save", "", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts; scripts/services up installs it");
        until_it_listens(port);
        // It listens before it has read its file, and answers LOADING meanwhile.
        let deadline = Instant::now() + PATIENCE;
        while redis_cli(port, &["PING"]).trim() != "PONG" {
            assert!(Instant::now() < deadline, "Redis on port {port} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
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
        self.child = Self::spawn(self.port, &self.folder, &[]);
    }

    pub fn command(&self, arguments: &[&str]) -> String {
        redis_cli(self.port, arguments)
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A PostgreSQL server of one test's own; stopped when dropped.
pub struct PrivatePostgres {
    child: Child,
    port: u16,
    options: Vec<String>,
    /// A disk of its own, if it has one.
    disk: Option<SmallDisk>,
    folder: tempfile::TempDir,
}

impl PrivatePostgres {
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_in(folder, None, options)
    }

    /// One with a disk of so many MiB.
    pub fn on_a_disk_of(mib: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = SmallDisk::mount(folder.path(), mib);
        Self::start_in(folder, Some(disk), &["-c", "max_wal_size=8MB", "-c", "min_wal_size=2MB"])
    }

    fn start_in(folder: tempfile::TempDir, disk: Option<SmallDisk>, options: &[&str]) -> Self {
        if is_root() {
            let chown = Command::new("chown").arg("postgres").arg(folder.path()).status();
            assert!(chown.expect("chown runs").success());
        }
        let data = folder.path().join("data");
        let mut initdb = postgres_program("initdb");
        initdb.args(["-U", "floodgate", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        let made = initdb.arg("--wal-segsize=1").arg("-D").arg(&data).output();
        let made = made.expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let port = free_port();
        let child = Self::spawn(port, &data, &options);
        Self { child, port, options, disk, folder }
    }

    fn spawn(port: u16, data: &std::path::Path, options: &[String]) -> Child {
        let child = postgres_program("postgres")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", ""])
            .arg("-D")
            .arg(data)
            .args(options)
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres starts");
        // It listens before it lets anybody in.
        let deadline = Instant::now() + PATIENCE;
        let mut ready = postgres_program("pg_isready");
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        while !ready.status().expect("pg_isready runs").success() {
            assert!(Instant::now() < deadline, "PostgreSQL on port {port} is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        child
    }

    pub fn url(&self) -> String {
        format!("postgres://floodgate@127.0.0.1:{}/postgres", self.port)
    }

    /// Leaves no room on its disk.
    pub fn fill_disk(&self) {
        let file = File::create(self.folder.path().join("filler")).expect("a file");
        while (&file).write_all(&[0; 8192]).is_ok() {}
    }

    /// Makes room again, and starts it if it has ended.
    pub fn empty_disk(&mut self) {
        std::fs::remove_file(self.folder.path().join("filler")).expect("removed");
        if self.child.try_wait().expect("wait").is_some() {
            self.child = Self::spawn(self.port, &self.folder.path().join("data"), &self.options);
        }
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // An immediate shutdown, which leaves no process behind.
        let _ = Command::new("kill").arg("-QUIT").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        self.disk.take();
    }
}

/// A file system in memory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, mib: u32) -> Self {
        let size = format!("size={mib}m");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        let mount = mount.expect("mount runs");
        let said = String::from_utf8_lossy(&mount.stderr);
        assert!(mount.status.success(), "a small disk can be mounted by root only: {said}");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout.trim_ascii() == b"0"
}

/// A program of PostgreSQL, run as a user that it accepts. Debian keeps them in a folder for each
/// version.
pub fn postgres_program(name: &str) -> Command {
    let folders = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = folders.map(|version| version.path().join("bin").join(name));
    let program = versions.filter(|path| path.exists()).max();
    let program = program.unwrap_or_else(|| name.into());
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(program);
    command.current_dir("/");
    command
}
