//! `floodgate order`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::output;
use super::sale::archive::FileView;
use crate::app::App;
use crate::domain::decision::{Decision, Outcome, Reason};
use crate::domain::erasure::ArchivedOrder;
use crate::domain::event::{Event, decision_json, rfc3339};
use crate::domain::order::{OrderId, OrderKey, SaleId};
use crate::traces::TraceSettings;

#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    #[command(subcommand)]
    command: OrderCommand,
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Show what happened to an order: its decision, and why and when it was made
    #[command(after_help = "Example:\n  floodgate order show 85123A 536365 --json\n\n\
        An order id means something only within its sale: the same id in another sale is another order. \
        Exits with 1 if there is no decision.")]
    Show {
        /// The sale's id
        #[arg(value_name = "SALE")]
        sale_id: SaleId,
        /// The order's id in this sale
        #[arg(value_name = "ORDER")]
        order_id: OrderId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl OrderArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let OrderCommand::Show { sale_id, order_id, json } = self.command;
        let key = OrderKey { sale_id, order_id };
        let decisions = app.ledger().await?.decisions(std::slice::from_ref(&key)).await?;
        let Some(decision) = decisions.into_iter().flatten().next() else {
            if let Some(archived) = KeptOfOrder::find(app, &key).await? {
                archived.print(json)?;
                return Ok(ExitCode::SUCCESS);
            }
            eprintln!("Order {key} is not decided: it is unknown, still queued, or a dead letter.");
            return Ok(ExitCode::FAILURE);
        };
        let history = History::of(&decision, &app.settings().traces);
        if json {
            output::json(&history)?;
        } else {
            output::table(["order", ""], history.rows())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What happened to an order, as it is stored.
#[derive(Serialize)]
struct History {
    #[serde(flatten)]
    decision: Value,
    /// The order's time.
    submitted_at: String,
    /// From then to the decision.
    waited_s: f64,
    /// The sale's version as the decision saw it.
    version: u32,
    /// Units that the sale had sold before.
    sold: u32,
    /// Of its event.
    event_id: String,
    why: &'static str,
    /// Where its trace is found, as far as it was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
}

impl History {
    fn of(decision: &Decision, traces: &TraceSettings) -> Self {
        let waited = decision.decided_at.signed_duration_since(decision.submitted_at);
        Self {
            decision: serde_json::from_slice(&decision_json(decision))
                .unwrap_or_else(|error| unreachable!("just written: {error}")),
            submitted_at: rfc3339(decision.submitted_at),
            waited_s: waited.as_seconds_f64(),
            version: decision.version,
            sold: decision.sold,
            event_id: Event::of(decision).id,
            why: why(decision),
            trace: traces.link_of(&decision.order),
        }
    }

    fn rows(&self) -> Vec<[String; 2]> {
        let text = |name: &str| match &self.decision[name] {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        let decided = format!("{}, {} s later", text("decided_at"), self.waited_s);
        let seen = format!("version {}, {} units sold before", self.version, self.sold);
        let trace = self.trace.clone().map(|link| ["trace".to_owned(), link]);
        let rows = [
            ("sale", text("sale_id")),
            ("order", text("order_id")),
            ("user", text("user_id")),
            ("quantity", text("quantity")),
            ("outcome", text("outcome")),
            ("reason", text("reason")),
            ("why", self.why.to_owned()),
            ("submitted", self.submitted_at.clone()),
            ("decided", decided),
            ("the sale then", seen),
            ("event", self.event_id.clone()),
        ]
        .map(|(name, value)| [name.to_owned(), value]);
        rows.into_iter().chain(trace).collect()
    }
}

/// What is kept of an order whose decision is in a file.
#[derive(Serialize)]
struct KeptOfOrder {
    order_id: String,
    sale_id: String,
    quantity: u32,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    decided_at: String,
    archived: bool,
    /// The files of the sale, one of which has the rest.
    archives: Vec<FileView>,
}

impl KeptOfOrder {
    async fn find(app: &App, key: &OrderKey) -> anyhow::Result<Option<Self>> {
        let audited = app.audited().await?;
        let found = audited.ledger.archived(std::slice::from_ref(key)).await?.pop().flatten();
        let Some(ArchivedOrder { key, quantity, outcome, decided_at, .. }) = found else {
            return Ok(None);
        };
        let records = audited.archive.archives(Some(&key.sale_id)).await?;
        Ok(Some(Self {
            order_id: key.order_id.to_string(),
            sale_id: key.sale_id.to_string(),
            quantity: quantity.get(),
            outcome: outcome.name(),
            reason: outcome.reason().map(Reason::name),
            decided_at: rfc3339(decided_at),
            archived: true,
            archives: records.iter().map(FileView::of).collect(),
        }))
    }

    fn print(self, json: bool) -> anyhow::Result<()> {
        if json {
            return output::json(&self);
        }
        let rows = [
            ("sale", self.sale_id),
            ("order", self.order_id),
            ("quantity", self.quantity.to_string()),
            ("outcome", self.outcome.to_owned()),
            ("reason", self.reason.unwrap_or("-").to_owned()),
            ("decided", self.decided_at),
        ];
        let files = self.archives.into_iter().flat_map(|FileView { file, sha256, .. }| {
            [("the rest is in", file), ("its SHA-256", sha256)]
        });
        let rows = rows.into_iter().chain(files).map(|(name, value)| [name.to_owned(), value]);
        output::table(["order", ""], rows)
    }
}

/// Why an order was decided like this, in words.
fn why(decision: &Decision) -> &'static str {
    match decision.outcome {
        Outcome::Created => "enough units were left",
        Outcome::SoldOut => "fewer units than it asked for were left when its turn came",
        Outcome::Rejected(Reason::UserDenied) => "the user service denied the user",
        Outcome::Rejected(Reason::PurchaseLimit) => {
            "the buyer would have had more than the limit for one"
        }
        Outcome::Rejected(Reason::NotOpen) => "it was submitted before the sale opened",
        Outcome::Rejected(Reason::Closed) => "it was submitted after the sale closed",
        Outcome::Rejected(Reason::Paused) => "the sale was paused when its turn came",
        Outcome::Rejected(Reason::Expired) => {
            "it waited for longer than intent.max_age_s, or until its sale was archived"
        }
    }
}
