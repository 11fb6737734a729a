//! Processes of floodgate that are killed, stopped, and started again as an orchestrator would.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use chrono::{TimeDelta, Utc};
use floodgate::app::App;
use floodgate::cli::process;
use floodgate::config::Settings;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a process that was told to stop may take.
const DRAIN_WITHIN: Duration = Duration::from_mins(1);

/// Who is in the crew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A worker, by its number.
    Worker(u32),
    /// The HTTP API.
    Api,
    /// The service that is asked about users.
    UserService,
}

/// The processes.
pub struct Crew {
    config: Option<PathBuf>,
    workers: Settings,
    api: Settings,
    api_address: SocketAddr,
    users_address: SocketAddr,
    children: Mutex<BTreeMap<Role, Option<Child>>>,
    /// How many have ended although nobody had killed them, and were started again.
    pub restarts: AtomicU32,
    /// The most memory that a worker has had (VmHWM, proc_pid_status(5)), in KiB.
    pub peak_kib: AtomicU32,
}

impl Crew {
    /// Starts as many workers as asked for, an API, and a user service at `users_address`.
    pub async fn start(
        config: Option<PathBuf>,
        workers: Settings,
        api: Settings,
        users_address: SocketAddr,
        count: u32,
    ) -> anyhow::Result<Arc<Self>> {
        let crew = Arc::new(Self {
            config,
            workers,
            api,
            api_address: free_address().await?,
            users_address,
            children: Mutex::default(),
            restarts: AtomicU32::default(),
            peak_kib: AtomicU32::default(),
        });
        crew.begin(Role::UserService)?;
        crew.begin(Role::Api)?;
        for number in 0..count {
            crew.begin(Role::Worker(number))?;
        }
        Ok(crew)
    }

    /// Where the API listens.
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// Starts one.
    pub fn begin(&self, role: Role) -> anyhow::Result<()> {
        let config = self.config.as_deref();
        let settings = if role == Role::Api { &self.api } else { &self.workers };
        let mut command = process::floodgate(settings, config)?;
        match role {
            Role::Worker(_) => {
                let url = &settings.verification.url;
                command.arg("worker").env("FLOODGATE_VERIFICATION__URL", url);
            }
            Role::Api => {
                command
                    .arg("api")
                    .env("FLOODGATE_API__LISTEN", self.api_address.to_string())
                    .env("FLOODGATE_API__MAX_PREDICTED_WAIT_S", "3600");
            }
            Role::UserService => {
                command.arg("user-service").args(["--listen", &self.users_address.to_string()]);
                command.args(["--latency-ms", "5", "--failures", "0.01"]);
            }
        }
        command.stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {role:?}"))?;
        self.children.lock().insert(role, Some(child));
        Ok(())
    }

    /// As `kill -9`.
    pub async fn kill(&self, role: Role) -> anyhow::Result<()> {
        let child = self.children.lock().get_mut(&role).and_then(Option::take);
        if let Some(mut child) = child {
            if matches!(role, Role::Worker(_)) {
                self.measure(&child);
            }
            // It may have ended by itself just now.
            let _ = child.kill().await;
        }
        Ok(())
    }

    /// Sends a signal, by its name.
    pub async fn signal(&self, role: Role, signal: &str) -> anyhow::Result<()> {
        let id = self.children.lock().get(&role).and_then(Option::as_ref).and_then(Child::id);
        if let Some(id) = id {
            Command::new("kill").arg(format!("-{signal}")).arg(id.to_string()).status().await?;
        }
        Ok(())
    }

    /// Starts again those that have ended, until it is cancelled.
    pub async fn supervise(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ended: Vec<Role> = {
                let mut children = self.children.lock();
                let ended = children.iter_mut().filter_map(|(role, child)| {
                    let child = child.as_mut()?;
                    child.try_wait().ok()?.map(|_| *role)
                });
                ended.collect()
            };
            for role in ended {
                self.restarts.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = self.begin(role) {
                    tracing::error!(%error, ?role, "can't be started again");
                }
            }
        }
    }

    fn measure(&self, child: &Child) {
        let status = child.id().map(|id| std::fs::read_to_string(format!("/proc/{id}/status")));
        let Some(Ok(status)) = status else { return };
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        self.peak_kib.fetch_max(kib.unwrap_or(0), Ordering::Relaxed);
    }

    /// Has all finish what they are at. Returns how many did not end well.
    pub async fn drain(&self) -> u32 {
        let children: Vec<(Role, Child)> = {
            let mut children = self.children.lock();
            let left = std::mem::take(&mut *children).into_iter();
            left.filter_map(|(role, child)| Some((role, child?))).collect()
        };
        let mut failed = 0;
        for (role, child) in children {
            if matches!(role, Role::Worker(_)) {
                self.measure(&child);
            }
            let drained = tokio::time::timeout(DRAIN_WITHIN, process::drain(child)).await;
            if !matches!(drained, Ok(Ok(()))) {
                tracing::error!(?role, ?drained, "did not end well");
                failed += 1;
            }
        }
        failed
    }
}

/// An address that was free a moment ago.
pub async fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

/// A worker of this process, whose clock can be set.
pub struct ClockedWorker {
    offset_ms: Arc<AtomicI64>,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl ClockedWorker {
    pub fn start(settings: Settings) -> Self {
        let (offset_ms, stop) = (Arc::new(AtomicI64::new(0)), CancellationToken::new());
        let (offset, stopped) = (offset_ms.clone(), stop.clone());
        let running = tokio::spawn(async move {
            let app = App::new(settings);
            while !stopped.is_cancelled() {
                let adapters = app.adapters().await?;
                let mut worker = app.worker(&adapters);
                let offset = offset.clone();
                worker.clock = Arc::new(move || {
                    Utc::now() + TimeDelta::milliseconds(offset.load(Ordering::Relaxed))
                });
                if let Err(error) = worker.run(stopped.clone()).await {
                    tracing::debug!(%error, "the worker whose clock is stepped starts again");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
            app.close().await;
            Ok(())
        });
        Self { offset_ms, stop, running }
    }

    /// Sets its clock, from what it should be.
    pub fn step(&self, offset: TimeDelta) {
        self.offset_ms.store(offset.num_milliseconds(), Ordering::Relaxed);
    }

    /// Has it finish what it is at.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        tokio::time::timeout(DRAIN_WITHIN, self.running).await???;
        Ok(())
    }
}
