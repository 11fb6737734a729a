//! `floodgate check`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{explain, output};
use crate::app::{App, Finding};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  floodgate check && floodgate worker\n\n\
    Makes exchanges and queues that are missing, as a worker does. Exits with 1 if anything is wrong.")]
pub(super) struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let findings = Box::pin(app.check()).await;
        let is_good = findings.iter().all(|finding| finding.found.is_ok());
        if self.json {
            let findings =
                findings.into_iter().map(|Finding { what, found, remedy }| match found {
                    Ok(found) => json!({ "what": what, "result": "ok", "found": found }),
                    Err(error) => {
                        let found = explain(&error);
                        json!({ "what": what, "result": "failed", "found": found, "to_do": remedy })
                    }
                });
            output::json(&findings.collect::<Vec<_>>())?;
        } else {
            let row = |what: &str, result: &str, found| [what.to_owned(), result.to_owned(), found];
            let rows =
                findings.into_iter().flat_map(|Finding { what, found, remedy }| match found {
                    Ok(found) => vec![row(what, "ok", found)],
                    Err(error) => {
                        vec![row(what, "failed", explain(&error)), row("", "to do", remedy)]
                    }
                });
            output::table(["what", "result", "found"], rows)?;
        }
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
