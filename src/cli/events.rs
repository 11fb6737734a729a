//! `floodgate events`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;

use super::output;
use super::publish::publish;
use super::sale::archive::must_not_be_archived;
use crate::app::App;
use crate::broker::{Broker, Message, Receipt};
use crate::domain::decision::Decision;
use crate::domain::event::Event;
use crate::domain::order::SaleId;
use crate::shutdown;
use crate::worker::Outgoing;

/// Decisions read and published at once.
const PAGE: u32 = 1000;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(subcommand)]
    command: EventsCommand,
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// Publish the decisions of a sale again, from the ledger, under the ids they had
    #[command(
        after_help = "Examples:\n  floodgate events replay bottles\n  floodgate events replay bottles --to shop.catching-up\n\n\
        Every subscriber gets them again, and leaves out what it has by the events' ids. With --to only those get them who\n\
        have a queue bound to that exchange, a topic exchange that you have made."
    )]
    Replay(Replay),
}

#[derive(Debug, Args)]
struct Replay {
    /// The sale's id
    #[arg(value_name = "SALE")]
    sale_id: SaleId,
    /// Publish to this exchange, and to no other
    #[arg(long, value_name = "EXCHANGE")]
    to: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl EventsArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let EventsCommand::Replay(replay) = self.command;
        replay.run(app).await
    }
}

impl Replay {
    async fn run(self, app: &App) -> anyhow::Result<()> {
        let Self { sale_id, to, json } = &self;
        if to.is_some() && app.settings().is_embedded() {
            bail!("--to: an embedded deployment has no other exchanges");
        }
        let audited = app.audited().await?;
        let sales = audited.ledger.sales(Some(std::slice::from_ref(sale_id))).await?;
        let Some(state) = sales.first() else {
            bail!("there is no sale {sale_id}; floodgate sale list has all");
        };
        must_not_be_archived(audited.archive.as_ref(), state).await?;
        let broker = app.broker().await?;
        let stop = shutdown::on_signal()?;
        let (mut replayed, mut unheard, mut after) = (0, 0, None);
        loop {
            let page = audited.books.decided(sale_id, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            if stop.is_cancelled() {
                bail!("stopped after {replayed} decisions; start it again, repeats do no harm");
            }
            after = Some(last.order.id.clone());
            replayed += page.len();
            unheard += self.publish(app, broker.as_ref(), &page).await?;
        }
        if *json {
            return output::json(&json!({ "replayed": replayed, "without_subscriber": unheard }));
        }
        eprintln!("{replayed} decisions of sale {sale_id} are published again.");
        if unheard > 0 {
            eprintln!("{unheard} messages with them found no queue.");
        }
        Ok(())
    }

    /// Publishes the decisions of a page, and says how many messages nobody got.
    async fn publish(
        &self,
        app: &App,
        broker: &dyn Broker,
        page: &[Decision],
    ) -> anyhow::Result<usize> {
        let events: Vec<Event> = page.iter().map(Event::of).collect();
        let receipts = if let Some(exchange) = &self.to {
            let messages: Vec<Message<'_>> =
                events.iter().map(|event| Message::EventTo { event, exchange }).collect();
            publish(broker, &messages).await?
        } else {
            let sales = vec![&self.sale_id; events.len()];
            let outgoing = Outgoing::of(&events, &sales, app.settings().events);
            publish(broker, &outgoing.messages()).await?
        };
        Ok(receipts.iter().filter(|receipt| **receipt == Receipt::NoSubscriber).count())
    }
}
