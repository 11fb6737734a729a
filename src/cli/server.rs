//! A server in a separate process, so that it can be measured, and killed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::client::ApiClient;
use super::process;
use crate::app::temp_deployment::TempDeployment;

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Here one address has all clients.
fn without_limits_by_address(command: &mut Command) {
    for limited in ["IN_FLIGHT", "CONNECTIONS"] {
        command.env(format!("FLOODGATE_API__MAX_{limited}_PER_ADDRESS"), "1000000");
    }
}

/// A `floodgate up` or `floodgate api`. Killed when dropped.
pub struct Server {
    command: Command,
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts API and worker, which checks users at `users_url`; waits until it takes orders.
    pub async fn up(
        deployment: &TempDeployment,
        config: Option<PathBuf>,
        users_url: &str,
    ) -> anyhow::Result<Self> {
        let mut command = process::floodgate(deployment.app.settings(), config.as_deref())?;
        command.arg("up").env("FLOODGATE_VERIFICATION__URL", users_url);
        without_limits_by_address(&mut command);
        Self::start(command).await
    }

    /// Starts the API alone, and waits until it takes orders.
    pub async fn api(deployment: &TempDeployment, config: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut command = process::floodgate(deployment.app.settings(), config.as_deref())?;
        command.arg("api");
        without_limits_by_address(&mut command);
        Self::start(command).await
    }

    /// Starts the API alone with the limits by address that are configured.
    pub async fn limited_api(
        deployment: &TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let mut command = process::floodgate(deployment.app.settings(), config.as_deref())?;
        command.arg("api");
        Self::start(command).await
    }

    async fn start(mut command: Command) -> anyhow::Result<Self> {
        // A port that was free a moment ago; if it is taken meanwhile, the start fails.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        command
            .env("FLOODGATE_API__LISTEN", address.to_string())
            // Asked by this program alone, whatever is configured for others.
            .env("FLOODGATE_API__JWT_SECRET", "")
            .env("FLOODGATE_API__JWT_PUBLIC_KEY", "")
            .env("FLOODGATE_API__JWT_JWKS", "")
            .stdout(Stdio::null());
        let child = command.spawn().context("could not start a server")?;
        let mut server = Self { command, child, address };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The id of its process.
    pub fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("the server has ended")
    }

    /// As `kill -9`, and then a new process instead.
    pub async fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        self.child = self.command.spawn().context("could not start the server again")?;
        self.wait_until_ready().await
    }

    /// Drains it.
    pub async fn stop(self) -> anyhow::Result<()> {
        process::drain(self.child).await
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let client = ApiClient::new(self.address, START_LIMIT)?;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}");
            }
            if client.get("/readyz").await.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the server was not ready within {START_LIMIT:?}")
    }
}
