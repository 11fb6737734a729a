//! More Redis servers, for the design that needs three.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// How long a server may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A Redis server that keeps nothing. Killed when dropped, with its folder.
pub(super) struct RedisServer {
    address: String,
    folder: PathBuf,
    _child: Child,
}

impl RedisServer {
    /// Starts `redis-server` from the path. `None` if there is none.
    pub(super) async fn start(name: &str) -> anyhow::Result<Option<Self>> {
        // A port that was free a moment ago; if somebody takes it meanwhile, the start fails.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let spawned = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                std::fs::remove_dir_all(&folder)?;
                return match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(None),
                    _ => Err(error).context("could not start redis-server"),
                };
            }
        };
        let server = Self { address: address.to_string(), folder, _child: child };
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).await.is_err() {
            if Instant::now() > deadline {
                bail!("redis-server did not start within {START_LIMIT:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Some(server))
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
