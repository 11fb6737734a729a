//! `floodgate contract`.

use anyhow::bail;
use clap::Args;

use super::output;
use crate::app::App;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  floodgate contract asyncapi > asyncapi.json\n\n\
    Without a name all names are printed. They have the names of this deployment's exchanges and queues.")]
pub(super) struct Contract {
    /// Which: openapi, asyncapi, or a kind of message for its JSON Schema
    name: Option<String>,
}

impl Contract {
    pub(super) fn run(self, app: &App) -> anyhow::Result<()> {
        let contracts = app.contracts();
        let mut names = vec!["openapi".to_owned(), "asyncapi".to_owned()];
        names.extend(contracts.schema_names());
        let Some(name) = self.name else {
            return output::text(&(names.join("\n") + "\n"));
        };
        let document = match name.as_str() {
            "openapi" => Some(contracts.openapi()),
            "asyncapi" => Some(contracts.asyncapi()),
            schema => contracts.schema(schema),
        };
        match document {
            Some(document) => output::json(&document),
            None => bail!("there is no contract {name}; accepted: {}", names.join(", ")),
        }
    }
}
