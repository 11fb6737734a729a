//! `floodgate config`.

use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output;
use crate::config::{Shown, Sources};

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every setting with its value and where that comes from, secrets hidden
    #[command(after_help = "Example:\n  floodgate --config floodgate.toml config show")]
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl ConfigArgs {
    pub(super) fn run(self, file: Option<&Path>) -> anyhow::Result<()> {
        let ConfigCommand::Show { json } = self.command;
        let shown = Sources::read(file)?.shown();
        if json {
            let settings = shown.into_iter().map(|Shown { name, value, origin }| {
                (name, json!({ "value": value, "origin": origin.to_string() }))
            });
            return output::json(&settings.collect::<serde_json::Map<_, _>>());
        }
        let rows = shown
            .into_iter()
            .map(|Shown { name, value, origin }| [name, value, origin.to_string()]);
        output::table(["setting", "value", "from"], rows)
    }
}
