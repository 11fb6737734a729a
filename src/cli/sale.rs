//! `floodgate sale`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

use super::operator::operator;
use super::output;
use crate::api::SaleView;
use crate::app::App;
use crate::domain::order::{AdjustmentId, Quantity, SaleId};
use crate::domain::sale::{Restock, Sale, SaleState, StockTooLarge};
use crate::ledger::{Changed, Opening};
use crate::sales::operations;
use crate::verification::NO_USER_SERVICE;

/// Sales opened in one call of the ledger.
const CHUNK: usize = 1000;
/// The most bad lines of a file that are shown.
const MAX_SHOWN: usize = 10;

#[derive(Debug, Args)]
pub(super) struct SaleArgs {
    #[command(subcommand)]
    command: SaleCommand,
}

#[derive(Debug, Subcommand)]
enum SaleCommand {
    /// Open a sale, or all sales of a file. Opening a sale again never resets its stock
    #[command(after_help = "Examples:\n  \
        floodgate sale open --sale-id bottles --stock 100 --per-user-limit 1\n  \
        floodgate sale open --file sales.csv\n\n\
        The file is CSV with a heading line: sale_id,stock and, if wanted, per_user_limit, opens_at, closes_at,\n\
        verification (true or false).")]
    Open(Open),
    /// Show one sale
    #[command(after_help = "Example:\n  floodgate sale show bottles")]
    Show {
        /// The sale's id
        sale_id: SaleId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put more units on offer, once for each adjustment id
    #[command(
        after_help = "Example:\n  floodgate sale restock bottles --units 20 --adjustment-id delivery-7\n\n\
        Without an answer, repeat it with the same adjustment id: it adds nothing twice."
    )]
    Restock {
        /// The sale's id
        sale_id: SaleId,
        /// Units to add: 1 to 1,000,000
        #[arg(long, value_parser = units)]
        units: Quantity,
        /// Names this restock: 1 to 64 of A-Z a-z 0-9 . _ : -
        #[arg(long)]
        adjustment_id: AdjustmentId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a sale. Orders that were submitted before are still decided
    #[command(after_help = "Example:\n  floodgate sale close bottles")]
    Close {
        /// The sale's id
        sale_id: SaleId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have the users of a sale checked from now on, or sell without checks
    #[command(after_help = "Example:\n  floodgate sale verification bottles off\n\n\
        Switched off, orders that wait for the user service are sold when they are next taken up, within 30 s.\n\
        Repeating it changes nothing.")]
    Verification {
        /// The sale's id
        sale_id: SaleId,
        /// Whether its users are checked before they may buy
        check: Switch,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List all sales
    #[command(after_help = "Example:\n  floodgate sale list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Args)]
struct Open {
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

impl SaleArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        match self.command {
            SaleCommand::Open(open) => open.run(app).await,
            SaleCommand::Show { sale_id, json } => {
                let states =
                    app.ledger().await?.sales(Some(std::slice::from_ref(&sale_id))).await?;
                show(&states, &sale_id, json)
            }
            SaleCommand::Restock { sale_id, units, adjustment_id, json } => {
                let (operations, by) = (app.operations().await?, operator());
                let changed =
                    operations.restock(&by, &sale_id, adjustment_id, units, Utc::now()).await?;
                show_changed(changed, &sale_id, json)
            }
            SaleCommand::Close { sale_id, json } => {
                let (operations, by) = (app.operations().await?, operator());
                let changed = operations.close(&by, &sale_id, Utc::now()).await?;
                show_changed(changed, &sale_id, json)
            }
            SaleCommand::Verification { sale_id, check, json } => {
                let (operations, by) = (app.operations().await?, operator());
                let changed = operations.verify(&by, &sale_id, check == Switch::On).await?;
                if let Changed::Done { state, .. } = &changed {
                    warn_of_checks(app, std::slice::from_ref(&state.sale));
                }
                show_changed(changed, &sale_id, json)
            }
            SaleCommand::List { json } => {
                let states = app.ledger().await?.sales(None).await?;
                if json {
                    let now = Utc::now();
                    let all: Vec<_> = states.iter().map(|state| SaleView::of(state, now)).collect();
                    output::json(&all)?;
                } else {
                    print_table(&states)?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Open {
    async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
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
fn warn_of_checks(app: &App, sales: &[Sale]) {
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

/// Prints the one sale of `states`, if it is there.
fn show(states: &[SaleState], id: &SaleId, json: bool) -> anyhow::Result<ExitCode> {
    let Some(state) = states.first() else {
        eprintln!("There is no sale {id}. Open it: floodgate sale open --sale-id {id} --stock N");
        return Ok(ExitCode::FAILURE);
    };
    if json {
        output::json(&SaleView::of(state, Utc::now()))?;
    } else {
        print_table(states)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_changed(changed: Changed, id: &SaleId, json: bool) -> anyhow::Result<ExitCode> {
    match changed {
        Changed::Done { state, .. } => show(&[state], id, json),
        Changed::UnknownSale => show(&[], id, json),
        Changed::StockTooLarge => Err(StockTooLarge.into()),
        Changed::Conflict(Restock { adjustment_id, sale_id, units, .. }) => bail!(
            "adjustment {adjustment_id} was used before: it has added {} units to sale {sale_id}",
            units.get()
        ),
    }
}

fn units(text: &str) -> Result<Quantity, String> {
    let units = text.parse().ok().and_then(Quantity::new);
    units.ok_or_else(|| format!("accepted: a whole number from 1 to {}", Quantity::MAX))
}

fn print_table(states: &[SaleState]) -> anyhow::Result<()> {
    // Fractions of a second only where there are some: a line has room for 80 characters.
    let shortly = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let time = |time: Option<DateTime<Utc>>| time.map_or("-".to_owned(), shortly);
    output::table(
        ["sale", "state", "stock", "sold", "left", "limit", "check", "opens", "closes"],
        states.iter().map(|state| {
            let sale = &state.sale;
            [
                sale.id.to_string(),
                state.phase(Utc::now()).name().to_owned(),
                sale.stock.to_string(),
                state.sold.to_string(),
                state.remaining().to_string(),
                sale.per_user_limit.map_or("-".to_owned(), |limit| limit.to_string()),
                if sale.verification { "yes" } else { "no" }.to_owned(),
                time(sale.opens_at),
                time(sale.closes_at),
            ]
        }),
    )
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
