//! Other floodgate processes, which the bench measures and the demo kills.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;
use tokio::process::{Child, Command};

use crate::config::Settings;

/// A command of floodgate, to be run with `settings` by this program. Killed when dropped.
///
/// It runs under the name `floodgate`, so that another program which is built on this library can tell that it
/// is to act as floodgate.
pub fn floodgate(settings: &Settings, config: Option<&Path>) -> anyhow::Result<Command> {
    let mut command = this_program(settings, config)?;
    command.arg0("floodgate");
    Ok(command)
}

/// This program, to be run with `settings`. Killed when dropped.
pub fn this_program(settings: &Settings, config: Option<&Path>) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command
        .env("FLOODGATE_NAMESPACE", &settings.namespace)
        .env("FLOODGATE_AMQP_URL", settings.amqp_url.expose_secret())
        .env("FLOODGATE_DATABASE_URL", settings.database_url.expose_secret())
        .env("FLOODGATE_REDIS_URL", settings.redis_url.expose_secret())
        .env("FLOODGATE_EMBEDDED__FILE", &settings.embedded.file)
        .env("FLOODGATE_EVENTS__PUBLISH", settings.events.publish.name())
        .env("FLOODGATE_FEED__ENABLED", settings.feed.enabled.to_string())
        // Several run at once, beside others of this machine.
        .env("FLOODGATE_WORKER__LISTEN", "off")
        .env("FLOODGATE_LOG__FILTER", "error")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

/// Has the process finish what is in flight, and waits for its end.
pub async fn drain(mut child: Child) -> anyhow::Result<()> {
    let id = child.id().context("the process has ended")?;
    // The standard library has no other signal than SIGKILL.
    Command::new("kill").arg("-TERM").arg(id.to_string()).status().await?;
    let status = child.wait().await?;
    if !status.success() {
        bail!("a process of floodgate ended with {status}");
    }
    Ok(())
}
