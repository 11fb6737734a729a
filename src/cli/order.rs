//! `floodgate order`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output;
use crate::app::App;
use crate::decision::Reason;
use crate::event::{decision_json, rfc3339};
use crate::order::OrderId;

#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    #[command(subcommand)]
    command: OrderCommand,
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Show the decision of an order
    #[command(after_help = "Example:\n  floodgate order show 536365-85123A --json")]
    Show {
        /// The order's id
        order_id: OrderId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl OrderArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let OrderCommand::Show { order_id, json } = self.command;
        let decisions = app.ledger().await?.decisions(std::slice::from_ref(&order_id)).await?;
        let Some(decision) = decisions.into_iter().flatten().next() else {
            eprintln!(
                "Order {order_id} is not decided: it is unknown, still queued, or a dead letter."
            );
            return Ok(ExitCode::FAILURE);
        };
        if json {
            output::json(&serde_json::from_slice::<serde_json::Value>(&decision_json(&decision))?)?;
        } else {
            let order = &decision.order;
            output::table(
                ["order", "sale", "user", "quantity", "outcome", "reason", "decided at"],
                [[
                    order.id.to_string(),
                    order.sale_id.to_string(),
                    order.user_id.to_string(),
                    order.quantity.get().to_string(),
                    decision.outcome.name().to_owned(),
                    decision.outcome.reason().map_or("-", Reason::name).to_owned(),
                    rfc3339(decision.decided_at),
                ]],
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
