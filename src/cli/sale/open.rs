//! `floodgate sale open`: one sale, or a file of them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Deserialize;

use crate::app::App;
use crate::cli::operator::operator;
use crate::cli::output;
use crate::domain::order::SaleId;
use crate::domain::sale::Sale;
use crate::ledger::Opening;
use crate::sales::operations;
use crate::verification::NO_USER_SERVICE;

/// Sales opened in one call of the ledger.
const CHUNK: usize = 1000;
/// The most bad lines of a file that are shown.
const MAX_SHOWN: usize = 10;

#[derive(Debug, Args)]
pub(super) struct Open {
    /// The sale's id: 1 to 64 of A-Z a-z 0-9 _ -
    #[arg(long, required_unless_present = "file", requires = "stock")]
    sale_id: Option<SaleId>,
    /// Units on offer
    #[arg(long, requires = "sale_id")]
    stock: Option<u32>,
    /// The most units one buyer may get; no limit if left out
    #[arg(long, requires = "sale_id")]
    per_user_limit: Option<u32>,
    /// Orders submitted before are rejected; RFC 3339, such as 2026-11-27T08:00:00Z
    #[arg(long, requires = "sale_id")]
    opens_at: Option<DateTime<Utc>>,
    /// Orders submitted at that time or later are rejected; RFC 3339
    #[arg(long, requires = "sale_id")]
    closes_at: Option<DateTime<Utc>>,
    /// Check each user before they may buy, at the user service (verification.url)
    #[arg(long, requires = "sale_id")]
    verification: bool,
    /// A CSV file with one sale a line
    #[arg(long, conflicts_with = "sale_id")]
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of a file of sales.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sale_id: String,
    stock: u32,
    #[serde(default)]
    per_user_limit: Option<u32>,
    #[serde(default)]
    opens_at: Option<DateTime<Utc>>,
    #[serde(default)]
    closes_at: Option<DateTime<Utc>>,
    #[serde(default)]
    verification: Option<bool>,
}

impl Open {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let json = self.json;
        let sales = self.sales()?;
        let (records, by) = (app.records().await?, operator());
        let mut openings = Vec::with_capacity(sales.len());
        for chunk in sales.chunks(CHUNK) {
            let (ledger, journal) = (records.ledger.clone(), records.journal());
            openings.extend(operations::open(ledger, journal, &by, chunk).await?);
        }
        warn_of_checks(app, &sales);
        let count = |wanted: fn(&Opening) -> bool| openings.iter().filter(|o| wanted(o)).count();
        let opened = count(|opening| matches!(opening, Opening::Opened));
        let unchanged = count(|opening| matches!(opening, Opening::Unchanged));
        let mut differing = Vec::new();
        for (sale, opening) in sales.iter().zip(&openings) {
            if let Opening::Differs(state) = opening {
                let (id, stands, wanted) = (&sale.id, in_short(&state.sale), in_short(sale));
                eprintln!(
                    "Sale {id} is open already with another definition, which stands \
                     ({stands}, sold {}; asked for {wanted}).",
                    state.sold
                );
                differing.push(id);
            }
        }
        if json {
            output::json(&serde_json::json!({
                "opened": opened, "unchanged": unchanged, "differing": differing,
            }))?;
        } else {
            eprintln!("{opened} opened, {unchanged} open already, {} differing.", differing.len());
        }
        Ok(if differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn sales(self) -> anyhow::Result<Vec<Sale>> {
        if let Some(file) = &self.file {
            return read(file).with_context(|| file.display().to_string());
        }
        let (Some(id), Some(stock)) = (self.sale_id, self.stock) else {
            bail!("give --sale-id and --stock, or --file");
        };
        let Self { per_user_limit, opens_at, closes_at, verification, .. } = self;
        let sale = Sale { id, stock, per_user_limit, opens_at, closes_at, verification };
        sale.check()?;
        Ok(vec![sale])
    }
}

/// What operators may have changed since a sale was opened, but for its closing.
fn in_short(Sale { stock, verification, .. }: &Sale) -> String {
    format!("stock {stock}, users {}", if *verification { "checked" } else { "not checked" })
}

/// Says so when users of `sales` are to be checked, and by these settings no service does it. Workers may
/// have others, so it is no error.
pub(super) fn warn_of_checks(app: &App, sales: &[Sale]) {
    let checked: Vec<&Sale> = sales.iter().filter(|sale| sale.verification).collect();
    if let [first, others @ ..] = checked.as_slice()
        && app.settings().verification.url.is_empty()
    {
        let whose = match others.len() {
            0 => format!("sale {}", first.id),
            more => format!("sale {} and {more} more", first.id),
        };
        eprintln!("The users of {whose} are to be checked: {NO_USER_SERVICE}.");
    }
}

/// Reads a file of sales, whole or not at all.
fn read(path: &PathBuf) -> anyhow::Result<Vec<Sale>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path)?;
    let (mut sales, mut bad) = (Vec::new(), Vec::new());
    for (index, line) in reader.deserialize::<Line>().enumerate() {
        match line.map_err(anyhow::Error::from).and_then(Line::into_sale) {
            Ok(sale) => sales.push(sale),
            // The heading is line 1.
            Err(error) => bad.push(format!("line {}: {error:#}", index + 2)),
        }
    }
    if !bad.is_empty() {
        let shown = bad.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join("\n");
        bail!("{} lines are no sales, so none is opened:\n{shown}", bad.len());
    }
    Ok(sales)
}

impl Line {
    fn into_sale(self) -> anyhow::Result<Sale> {
        let Self { sale_id, stock, per_user_limit, opens_at, closes_at, verification } = self;
        let (id, verification) = (SaleId::parse(sale_id)?, verification.unwrap_or(false));
        let sale = Sale { id, stock, per_user_limit, opens_at, closes_at, verification };
        sale.check()?;
        Ok(sale)
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::inputs;

    proptest! {
        #[test]
        fn fuzz_sales_csv(bytes in inputs("sales_csv")) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("sales.csv");
            std::fs::write(&path, bytes).unwrap();
            for sale in read(&path).unwrap_or_default() {
                prop_assert!(sale.check().is_ok());
            }
        }
    }
}
