//! RabbitMQ, Redis and PostgreSQL, and the links to them.

use std::net::SocketAddr;
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
    /// Settings by which producers and subscribers reach RabbitMQ.
    pub others: Settings,
}

impl Links {
    /// Puts them before the servers of `settings`, and before the user service, which workers are told of. Before
    /// clusters, whose nodes tell clients of each other, there are none.
    pub async fn start(
        settings: &Settings,
        ground: Ground,
        user_service: SocketAddr,
    ) -> anyhow::Result<Self> {
        let mut links = Self {
            proxies: Vec::new(),
            workers: settings.clone(),
            api: settings.clone(),
            others: settings.clone(),
        };
        let Self { proxies, workers, api, others } = &mut links;
        workers.verification.url = format!("http://{user_service}");
        if ground == Ground::Containers {
            return Ok(links);
        }
        let service = FaultProxy::start(user_service.to_string()).await?;
        workers.verification.url = format!("http://{}", service.address());
        proxies.push(service);
        for url in [
            &mut workers.amqp_url,
            &mut workers.redis_url,
            &mut workers.database_url,
            &mut api.amqp_url,
            &mut api.redis_url,
            &mut api.database_url,
            &mut others.amqp_url,
        ] {
            let server = authority(url.expose_secret()).context("a URL without a host")?;
            let proxy = FaultProxy::start(server).await?;
            let through = url.expose_secret().replace(server, &proxy.address().to_string());
            *url = SecretString::from(through);
            proxies.push(proxy);
        }
        Ok(links)
    }
}

/// A URL of one host, for each of those that `url` names.
pub fn each_host(url: &str) -> Vec<String> {
    let Some(hosts) = authority(url) else { return Vec::new() };
    hosts.split(',').map(|host| url.replacen(hosts, host, 1)).collect()
}

/// Hosts and ports in a URL.
fn authority(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, address)| address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_several_hosts_is_one_of_each() {
        let url = "amqp://guest:guest@a:1,b:2/%2f";
        assert_eq!(each_host(url), ["amqp://guest:guest@a:1/%2f", "amqp://guest:guest@b:2/%2f"]);
        assert_eq!(each_host("redis://a:1/0"), ["redis://a:1/0"]);
    }
}
