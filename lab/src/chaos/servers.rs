//! RabbitMQ, Redis and PostgreSQL, and the links to them.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use floodgate::config::Settings;
use floodgate_fault_proxy::FaultProxy;
use secrecy::{ExposeSecret, SecretString};
use tokio::process::Command;

use super::plan::Ground;

/// The servers, as the program that has started them knows them.
pub struct Servers {
    /// Called with a verb, the name of a server, and a number that chooses one of its nodes: `kill`, `start`, `freeze`,
    /// `thaw`, `wipe`, `fill`, `empty` or `cut`.
    pub control: PathBuf,
}

impl Servers {
    /// Has it done, and waits until it is.
    pub async fn act(&self, verb: &str, server: &str, which: u32) -> anyhow::Result<()> {
        let mut command = Command::new(&self.control);
        command.args([verb, server, &which.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
        let done = command.output().await.with_context(|| self.control.display().to_string())?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(
            done.status.success(),
            "{} {verb} {server}: {}",
            self.control.display(),
            said.trim()
        );
        Ok(())
    }
}

/// Fault proxies between the processes of floodgate and the servers: those of workers, of the API, and of everybody
/// else, each with its own.
pub struct Links {
    /// All of them.
    pub proxies: Vec<FaultProxy>,
    /// Settings by which workers reach the servers.
    pub workers: Settings,
    /// Settings by which the API does.
    pub api: Settings,
    /// Settings by which producers and subscribers do.
    pub others: Settings,
}

impl Links {
    /// Puts them before the servers of `settings`. Before clusters, whose nodes tell clients of each other, there are
    /// none.
    pub async fn start(settings: &Settings, ground: Ground) -> anyhow::Result<Self> {
        let mut links = Self {
            proxies: Vec::new(),
            workers: settings.clone(),
            api: settings.clone(),
            others: settings.clone(),
        };
        if ground == Ground::Containers {
            return Ok(links);
        }
        for settings in [&mut links.workers, &mut links.api, &mut links.others] {
            for url in [&mut settings.amqp_url, &mut settings.redis_url, &mut settings.database_url]
            {
                let server = authority(url.expose_secret()).context("a URL without a host")?;
                let proxy = FaultProxy::start(server).await?;
                let through = url.expose_secret().replace(server, &proxy.address().to_string());
                *url = SecretString::from(through);
                links.proxies.push(proxy);
            }
        }
        Ok(links)
    }
}

/// Host and port in a URL.
fn authority(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, address)| address))
}
