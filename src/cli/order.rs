//! `floodgate order`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output;
use crate::app::App;
use crate::domain::decision::Reason;
use crate::domain::event::{decision_json, rfc3339};
use crate::domain::order::{OrderId, OrderKey, SaleId};

#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    #[command(subcommand)]
    command: OrderCommand,
}

#[derive(Debug, Subcommand)]
enum OrderCommand {
    /// Show the decision of an order
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
            eprintln!("Order {key} is not decided: it is unknown, still queued, or a dead letter.");
            return Ok(ExitCode::FAILURE);
        };
        if json {
            output::json(&serde_json::from_slice::<serde_json::Value>(&decision_json(&decision))?)?;
        } else {
            let order = &decision.order;
            output::table(
                ["sale", "order", "user", "quantity", "outcome", "reason", "decided at"],
                [[
                    order.sale_id.to_string(),
                    order.id.to_string(),
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
