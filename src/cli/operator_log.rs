//! `floodgate operator-log`.

use chrono::{DateTime, Utc};
use clap::Args;

use super::output;
use crate::app::App;
use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;
use crate::operator_log::{Entry, EntryId, Wanted};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate operator-log --sale-id bottles\n  \
    floodgate operator-log --before 2026-11-27T08:00:00Z --limit 20\n\n\
    Refused requests are counted, and written down every 10 s.")]
pub(super) struct OperatorLogArgs {
    /// The most entries shown: 1 to 10,000
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Only what was before a time (RFC 3339), or before the entry with this id, which --json prints
    #[arg(long, value_name = "TIME|ID", value_parser = before)]
    before: Option<EntryId>,
    /// Only what is about this sale
    #[arg(long)]
    sale_id: Option<SaleId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl OperatorLogArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let Self { limit, before, sale_id, json } = self;
        let log = app.records().await?.operator_log;
        let entries = log.entries(&Wanted { limit, before, sale_id }).await?;
        if json {
            return output::json(&entries);
        }
        if entries.is_empty() {
            eprintln!("No entries.");
            return Ok(());
        }
        let cells = |entry: Entry| {
            let Entry { at, actor, action, sale_id, detail, origin, .. } = entry;
            let sale = sale_id.map_or("-".to_owned(), |id| id.to_string());
            [rfc3339(at), actor, action.name().to_owned(), sale, origin, detail]
        };
        output::table(
            ["time", "who", "what", "sale", "from", "detail"],
            entries.into_iter().map(cells),
        )
    }
}

fn before(text: &str) -> Result<EntryId, String> {
    let time = || text.parse::<DateTime<Utc>>().map(EntryId::first_at);
    text.parse().or_else(|_| time()).map_err(|_| {
        "accepted: a time such as 2026-11-27T08:00:00Z, or the id of an entry".to_owned()
    })
}
