//! `floodgate sale export`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::archive::must_not_be_archived;
use crate::app::App;
use crate::cli::output;
use crate::domain::decision::{Decision, Outcome, Reason};
use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;

/// Decisions read and printed at once.
const PAGE: u32 = 1000;
const HEADING: [&str; 7] =
    ["order_id", "user_id", "quantity", "outcome", "reason", "submitted_at", "decided_at"];

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The sale's id
    sale_id: SaleId,
    /// Refused orders too
    #[arg(long)]
    all: bool,
}

impl Export {
    /// Prints CSV (RFC 4180, with a heading line), by order id.
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let Self { sale_id, all } = &self;
        let audited = app.audited().await?;
        let sales = audited.ledger.sales(Some(std::slice::from_ref(sale_id))).await?;
        let Some(state) = sales.first() else {
            bail!("there is no sale {sale_id}; floodgate sale list has all");
        };
        must_not_be_archived(audited.archive.as_ref(), state).await?;
        output::text(&csv([HEADING.map(str::to_owned)])?)?;
        let mut after = None;
        loop {
            let page = audited.books.decided(sale_id, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(ExitCode::SUCCESS) };
            after = Some(last.order.id.clone());
            let wanted = |decision: &&Decision| *all || decision.outcome == Outcome::Created;
            output::text(&csv(page.iter().filter(wanted).map(row))?)?;
        }
    }
}

fn row(decision: &Decision) -> [String; 7] {
    let Decision { order, outcome, submitted_at, decided_at, .. } = decision;
    [
        order.id.to_string(),
        order.user_id.to_string(),
        order.quantity.get().to_string(),
        outcome.name().to_owned(),
        outcome.reason().map_or("", Reason::name).to_owned(),
        rfc3339(*submitted_at),
        rfc3339(*decided_at),
    ]
}

fn csv(rows: impl IntoIterator<Item = [String; 7]>) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}
