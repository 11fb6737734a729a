//! `floodgate health`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::client::ApiClient;
use super::output;
use crate::app::App;

/// How long an answer may take. Docker gives a health check 30 s, Kubernetes gives a probe 1 s.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate health api\n  floodgate health worker --live\n\n\
    Asks /readyz (or /livez) at api.listen or worker.listen of the settings in force. Exits with 0 if the answer is 200, \
    and with 1 otherwise, also if there is none.")]
pub(super) struct Health {
    /// Which process
    process: Process,
    /// Whether it is stuck, instead of whether it takes orders
    #[arg(long)]
    live: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Process {
    Api,
    Worker,
}

impl Health {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let settings = app.settings();
        let address = match self.process {
            Process::Api => settings.api.listen,
            Process::Worker => match settings.worker.listen {
                Some(address) => address,
                None => bail!("worker.listen is off, so a worker says nothing of its health"),
            },
        };
        let path = if self.live { "/livez" } else { "/readyz" };
        let address = on_this_machine(address);
        let answer = ApiClient::new(address, LIMIT)?.get(path).await?;
        output::text(&String::from_utf8_lossy(&answer.body))?;
        Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Where a process that listens on every address is reached from here.
fn on_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
