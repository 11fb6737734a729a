//! `floodgate dead-letters`.

pub(super) mod walk;

use std::collections::BTreeMap;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;

use self::walk::{Step, Walk, without_contents};
use super::operator::operator;
use super::output;
use crate::app::App;
use crate::broker::{Broker, DeathInfo, Delivery, Message, Queue};
use crate::domain::event::order_key_of;
use crate::operator_log::{Action, Entry, Journal};
use crate::worker::dead_letter_reasons;

/// Dead letters sent back in one publish.
pub(super) const CHUNK: usize = 500;
/// Characters of a body shown in a table.
const SHOWN_CHARS: usize = 60;

#[derive(Debug, Args)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// Show dead letters and how many there are for each reason
    #[command(
        after_help = "Example:\n  floodgate dead-letters list --reason unknown_sale --limit 5"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
        /// The most dead letters shown
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters back to the intents exchange, to be decided after all
    #[command(after_help = "Example:\n  floodgate dead-letters redrive --reason unknown_sale")]
    Redrive {
        #[command(flatten)]
        filter: Filter,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete dead letters
    #[command(after_help = "Example:\n  floodgate dead-letters purge --reason bad_json")]
    Purge {
        #[command(flatten)]
        filter: Filter,
        /// Delete them whatever their reason
        #[arg(long, conflicts_with = "reason", required_unless_present = "reason")]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Filter {
    /// Only those with this reason
    #[arg(long, value_parser = PossibleValuesParser::new(reasons()), hide_possible_values = true)]
    reason: Option<String>,
}

/// What a dead letter says when nothing is known of how it died.
const UNKNOWN: &str = "unknown";

/// Every reason there is: floodgate's, and those of RabbitMQ's own dead-lettering (its page on dead letter
/// exchanges).
fn reasons() -> impl Iterator<Item = &'static str> {
    dead_letter_reasons().chain(["delivery_limit", "expired", "rejected", "maxlen", UNKNOWN])
}

/// A dead letter as it is printed.
#[derive(Serialize)]
struct Printed {
    /// By which a repeat can be recognised.
    id: String,
    reason: String,
    detail: String,
    at: String,
    routing_key: String,
    body: String,
}

impl DeadLettersArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let broker = app.broker().await?;
        let broker = broker.as_ref();
        match self.command {
            DeadLettersCommand::List { filter, limit, json } => {
                list(broker, &filter, limit, json).await
            }
            DeadLettersCommand::Redrive { filter, json } => {
                let journal = journal(app).await?;
                let redriven = redrive(broker, &filter).await;
                let became = match &redriven {
                    Ok((0, _)) => None,
                    Ok((sent, cut)) => Some(format!("{sent} sent back, {cut} left")),
                    Err(error) => Some(format!("failed, some may be sent back: {error:#}")),
                };
                record(&journal, Action::Redriven, &filter, became).await;
                let (sent, cut) = redriven?;
                if cut > 0 && !json {
                    eprintln!("{cut} left: only the beginning of their body is kept.");
                }
                report("redriven", sent, json)
            }
            DeadLettersCommand::Purge { filter, all: _, json } => {
                let journal = journal(app).await?;
                // When it fails, nothing is deleted.
                let deleted = purge(broker, &filter).await?;
                let became = (deleted > 0).then(|| format!("{deleted} deleted"));
                record(&journal, Action::Purged, &filter, became).await;
                report("purged", deleted, json)
            }
        }
    }
}

/// Where it is written down what is done to dead letters, which takes no database.
async fn journal(app: &App) -> anyhow::Result<Journal> {
    let journal = app.journal().await?;
    if !journal.is_kept() {
        eprintln!(
            "No database is configured (FLOODGATE_DATABASE_URL), so this is only in the log of this \
             command, not in the operators' log."
        );
    }
    Ok(journal)
}

/// Writes down what became of an act, unless it was nothing.
async fn record(journal: &Journal, action: Action, filter: &Filter, became: Option<String>) {
    let reason = filter.reason.as_deref().unwrap_or("any");
    let detail = became.map(|became| format!("reason {reason}: {became}"));
    let entry = detail.map(|detail| Entry::new(&operator(), action, None, &detail));
    journal.record(entry.as_slice()).await;
}

impl Filter {
    fn matches(&self, letter: &Delivery) -> bool {
        self.reason.as_ref().is_none_or(|wanted| *wanted == death_info(letter).reason)
    }
}

pub(super) fn death_info(letter: &Delivery) -> DeathInfo {
    letter
        .properties
        .dead
        .clone()
        .unwrap_or_else(|| DeathInfo { reason: UNKNOWN.into(), ..DeathInfo::default() })
}

fn report(done: &str, count: usize, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&BTreeMap::from([(done, count)]));
    }
    eprintln!("{count} {done}.");
    Ok(())
}

/// How many dead letters there are for each reason.
pub(super) async fn by_reason(broker: &dyn Broker) -> anyhow::Result<BTreeMap<String, usize>> {
    Ok(look_through(broker, &Filter { reason: None }, 0).await?.0)
}

async fn list(
    broker: &dyn Broker,
    filter: &Filter,
    limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    let (reasons, shown) = look_through(broker, filter, limit).await?;
    if json {
        return output::json(&serde_json::json!({ "reasons": reasons, "dead_letters": shown }));
    }
    if reasons.is_empty() {
        eprintln!("No dead letters.");
        return Ok(());
    }
    let rows = reasons.into_iter().map(|(reason, count)| [reason, count.to_string()]);
    output::table(["reason", "count"], rows)?;
    output::text("\n")?;
    let cut = |text: &str| {
        let mut short: String =
            text.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if text.chars().nth(SHOWN_CHARS).is_some() {
            short.push('…');
        }
        short
    };
    let rows = shown.iter().map(|letter| {
        let order = order_key_of(letter.body.as_bytes());
        let order = order.map_or_else(|| "-".to_owned(), |order| order.to_string());
        [letter.reason.clone(), order, cut(&letter.body), cut(&letter.detail)]
    });
    output::table(["reason", "order", "body", "detail"], rows)
}

/// How many dead letters that match there are for each reason, and the first `limit` of them.
async fn look_through(
    broker: &dyn Broker,
    filter: &Filter,
    limit: usize,
) -> anyhow::Result<(BTreeMap<String, usize>, Vec<Printed>)> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut shown: Vec<Printed> = Vec::new();
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    loop {
        let letter = match walk.next().await? {
            Step::Letter(letter) => *letter,
            Step::Restart => {
                reasons.clear();
                shown.clear();
                continue;
            }
            Step::End => break,
        };
        if filter.matches(&letter) {
            let DeathInfo { reason, detail, at, id } = death_info(&letter);
            *reasons.entry(reason.clone()).or_default() += 1;
            if shown.len() < limit {
                let body = String::from_utf8_lossy(&letter.body).into_owned();
                let routing_key = letter.properties.routing_key.clone();
                shown.push(Printed { id, reason, detail, at, routing_key, body });
            }
        }
        walk.keep(letter);
    }
    walk.end().await;
    Ok((reasons, shown))
}

async fn purge(broker: &dyn Broker, filter: &Filter) -> anyhow::Result<usize> {
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    // Acknowledged at the end, so that none comes again when the broker is lost meanwhile.
    let mut found: Vec<Delivery> = Vec::new();
    loop {
        match walk.next().await? {
            Step::Letter(letter) if filter.matches(&letter) => {
                found.push(without_contents(*letter));
            }
            Step::Letter(letter) => walk.keep(*letter),
            Step::Restart => found.clear(),
            Step::End => break,
        }
    }
    let deleted = found.len();
    for letter in found {
        walk.done(letter);
    }
    walk.end().await;
    Ok(deleted)
}

/// Sends letters back, each acknowledged only once its copy is confirmed. Returns how many, and how many are
/// left because their body is cut: they could only come back.
async fn redrive(broker: &dyn Broker, filter: &Filter) -> anyhow::Result<(usize, usize)> {
    let mut walk = Walk::begin(broker, Queue::DeadLetters).await?;
    let mut waiting: Vec<Delivery> = Vec::new();
    let (mut sent, mut cut) = (0, 0);
    loop {
        match walk.next().await? {
            Step::Letter(letter) if !filter.matches(&letter) => walk.keep(*letter),
            Step::Letter(letter) if letter.properties.cut_from.is_some() => {
                cut += 1;
                walk.keep(*letter);
            }
            Step::Letter(letter) => waiting.push(*letter),
            Step::Restart => {
                waiting.clear();
                cut = 0;
            }
            Step::End => break,
        }
        if waiting.len() == CHUNK {
            sent += send_back(broker, &mut walk, &mut waiting).await?;
        }
    }
    sent += send_back(broker, &mut walk, &mut waiting).await?;
    walk.end().await;
    Ok((sent, cut))
}

async fn send_back(
    broker: &dyn Broker,
    walk: &mut Walk<'_>,
    waiting: &mut Vec<Delivery>,
) -> anyhow::Result<usize> {
    let messages: Vec<Message<'_>> = waiting
        .iter()
        .map(|letter| Message::Intent {
            routing_key: &letter.properties.routing_key,
            body: &letter.body,
            properties: Some(&letter.properties),
            delay: None,
        })
        .collect();
    broker.publish(&messages).await.all()?;
    let count = waiting.len();
    waiting.drain(..).for_each(|letter| walk.done(letter));
    Ok(count)
}
