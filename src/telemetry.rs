//! Logs: to standard error, as text or as JSON.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::{broker, ledger};

/// Section `log` of the settings, described in `config/floodgate.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LogSettings {
    pub filter: String,
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// Starts logging for the whole process.
pub fn init(settings: &LogSettings) -> anyhow::Result<()> {
    let filter = format!("{},{},{}", settings.filter, broker::UNLOGGED, ledger::UNLOGGED);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!("settings: log.filter is {:?}: {error}", settings.filter)
    })?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Json => logs.json().flatten_event(true).finish().try_init()?,
        LogFormat::Text => {
            let colour = std::env::var_os("NO_COLOR").is_none()
                && std::io::IsTerminal::is_terminal(&std::io::stderr());
            logs.with_target(false).with_ansi(colour).finish().try_init()?;
        }
    }
    Ok(())
}
