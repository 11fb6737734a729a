//! `floodgate sale`.

pub(in crate::cli) mod archive;
mod export;
mod open;

use std::process::ExitCode;

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand, ValueEnum};

use self::archive::{Archive, Restore};
use self::export::Export;
use self::open::{Open, warn_of_checks};
use super::operator::operator;
use super::output;
use crate::api::SaleView;
use crate::app::App;
use crate::domain::order::{AdjustmentId, Quantity, SaleId};
use crate::domain::sale::{PauseMode, Phase, Restock, SaleState, StockTooLarge};
use crate::ledger::Changed;

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
    /// Pause a sale: refuse its orders, or hold them until it is resumed
    #[command(after_help = "Example:\n  floodgate sale pause bottles --mode hold\n\n\
        refuse  orders that come to their turn are rejected as paused\n\
        hold    they wait, and grow no older meanwhile\n\n\
        What is decided stays. Repeating it changes nothing; another mode takes over.")]
    Pause {
        /// The sale's id
        sale_id: SaleId,
        /// What becomes of its orders meanwhile
        #[arg(long)]
        mode: PauseMode,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Resume a paused sale. Orders that were held are decided within 30 s
    #[command(after_help = "Example:\n  floodgate sale resume bottles")]
    Resume {
        /// The sale's id
        sale_id: SaleId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go on with a sale that is held because its ledger was restored from a backup
    #[command(after_help = "Example:\n  floodgate sale accept-ledger bottles\n\n\
        Units that were sold after the backup are sold once more. Stop and read docs/operations.md\n\
        first: what subscribers were told of is still in their systems.")]
    AcceptLedger {
        /// The sale's id
        sale_id: SaleId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print who bought what, as CSV
    #[command(after_help = "Example:\n  floodgate sale export bottles > bottles.csv")]
    Export(Export),
    /// Move the decisions of a sale that closed long ago into a file. Repeats of its orders still get their answers
    #[command(after_help = "Example:\n  floodgate sale archive bottles --to /srv/archive\n\n\
        Writes SALE-TIME.jsonl.gz and its manifest, reads the file back, and only then moves the decisions. Killed or\n\
        stopped, it goes on when it is run again. Keep the file: the ledger has only its checksum.")]
    Archive(Archive),
    /// Bring the decisions of an archived sale back into the ledger
    #[command(after_help = "Examples:\n  floodgate sale restore bottles\n  \
        floodgate sale restore bottles --from /mnt/bottles-20261129T172508123Z.jsonl.gz\n\n\
        Killed or stopped, it goes on when it is run again.")]
    Restore(Restore),
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
            SaleCommand::Pause { sale_id, mode, json } => {
                pause(app, &sale_id, Some(mode), json).await
            }
            SaleCommand::Resume { sale_id, json } => pause(app, &sale_id, None, json).await,
            SaleCommand::AcceptLedger { sale_id, json } => accept_ledger(app, &sale_id, json).await,
            SaleCommand::Export(export) => export.run(app).await,
            SaleCommand::Archive(archive) => archive.run(app).await.map(|()| ExitCode::SUCCESS),
            SaleCommand::Restore(restore) => restore.run(app).await.map(|()| ExitCode::SUCCESS),
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

async fn pause(
    app: &App,
    sale: &SaleId,
    mode: Option<PauseMode>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let operations = app.operations().await?;
    let changed = operations.pause(&operator(), sale, mode, Utc::now()).await?;
    show_changed(changed, sale, json)
}

async fn accept_ledger(app: &App, sale: &SaleId, json: bool) -> anyhow::Result<ExitCode> {
    let Some(holdings) = app.audited().await?.holdings else {
        bail!(
            "an embedded deployment keeps everything in one file, so no sale of it is held for this"
        );
    };
    let operations = app.operations().await?;
    // First, or a worker would hold the sale again.
    holdings.forget_watermark(sale).await?;
    holdings.forget(sale).await?;
    let changed = operations.accept_ledger(&operator(), sale, Utc::now()).await?;
    show_changed(changed, sale, json)
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
        Changed::NotAccepted => bail!(
            "sale {id} is held because its ledger has lost what it had committed, as after a restore \
             (docs/operations.md); to go on with what the ledger has: floodgate sale accept-ledger {id}"
        ),
        Changed::Conflict(Restock { adjustment_id, sale_id, units, .. }) => bail!(
            "adjustment {adjustment_id} was used before: it has added {} units to sale {sale_id}",
            units.get()
        ),
    }
}

/// What a sale does, and how it is paused, if it is.
fn in_short(state: &SaleState) -> String {
    let phase = state.phase(Utc::now());
    if state.archived {
        return "archived".to_owned();
    }
    match state.paused.filter(|_| phase == Phase::Paused) {
        Some(mode) => format!("{}: {}", phase.name(), mode.name()),
        None => phase.name().to_owned(),
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
                in_short(state),
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
