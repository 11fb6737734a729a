//! `floodgate replay`.

mod source;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use super::publish::publish;
use crate::app::App;
use crate::broker::{Broker, Message};
use crate::shutdown;
use source::{Line, Mapping, Source};

/// Messages in one publish.
const CHUNK: usize = 1000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    floodgate replay orders.jsonl.gz --rate 500\n  \
    floodgate replay online_retail.csv.gz --order-id InvoiceNo,StockCode --sale-id StockCode \\\n    \
    --user-id CustomerID --quantity Quantity\n\n\
    Lines are sent as they are, bad ones too: the worker refuses those, and they are found among the \
    dead letters. Returns when RabbitMQ has confirmed every line.")]
pub(super) struct Replay {
    /// CSV with a heading line (.csv) or JSON lines (.jsonl, .ndjson), plain or .gz; - is standard input
    file: PathBuf,
    #[command(flatten)]
    mapping: Mapping,
    /// Lines sent per second; as fast as RabbitMQ confirms if left out
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Intents in one message
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let name = self.file.display().to_string();
        let bar = progress();
        let mut source = Source::open(&self.file, &self.mapping, &bar).context(name.clone())?;
        let broker = app.broker().await?;
        let stop = shutdown::on_signal()?;
        let begun = Instant::now();
        let mut sender = Sender {
            broker: broker.as_ref(),
            per_message: self.batch.into(),
            lines: 0,
            messages: 0,
        };
        loop {
            let taken = source.take(self.lines_at_once());
            let sent = sender.lines;
            let context = || format!("{name}, after {sent} lines, all of them confirmed");
            let Some(lines) = taken.with_context(context)? else { break };
            sender.send(lines).await?;
            bar.set_message(format!("{} lines", sender.lines));
            if stop.is_cancelled() {
                bail!("stopped after {} lines, all of them confirmed", sender.lines);
            }
            self.keep_to_rate(begun, sender.lines).await;
        }
        bar.finish_and_clear();
        let (lines, messages, seconds) =
            (sender.lines, sender.messages, begun.elapsed().as_secs_f64());
        if self.json {
            return output::json(
                &serde_json::json!({ "lines": lines, "messages": messages, "seconds": seconds }),
            );
        }
        eprintln!("{lines} lines in {messages} messages, all confirmed, in {seconds:.1} s.");
        Ok(())
    }

    /// A tenth of a second's worth where a rate is given, so that it is even.
    fn lines_at_once(&self) -> usize {
        let most = CHUNK * usize::from(self.batch);
        self.rate.map_or(most, |rate| (rate as usize / 10).clamp(1, most))
    }

    async fn keep_to_rate(&self, begun: Instant, lines: u64) {
        if let Some(rate) = self.rate {
            let due = begun + Duration::from_secs_f64(lines as f64 / f64::from(rate));
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

/// A bar over the bytes of the file; hidden unless standard error is a terminal.
fn progress() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}  {elapsed} (left {eta})");
    let bar = ProgressBar::new(0);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

struct Sender<'a> {
    broker: &'a dyn Broker,
    per_message: usize,
    lines: u64,
    messages: u64,
}

impl Sender<'_> {
    async fn send(&mut self, lines: Vec<Line>) -> anyhow::Result<()> {
        let count = lines.len();
        let bodies = grouped(lines, self.per_message);
        let messages: Vec<Message<'_>> =
            bodies.iter().map(|line| Message::intent(&line.routing_key, &line.body)).collect();
        for chunk in messages.chunks(CHUNK) {
            let sent = self.lines;
            publish(self.broker, chunk)
                .await
                .with_context(|| format!("{sent} lines were confirmed before"))?;
        }
        self.lines += count as u64;
        self.messages += messages.len() as u64;
        Ok(())
    }
}

/// Puts up to `per_message` lines of a sale into one array each, so that a message belongs to the sale of
/// its routing key. A line that is no JSON would spoil its neighbours, so it goes alone.
fn grouped(lines: Vec<Line>, per_message: usize) -> Vec<Line> {
    if per_message == 1 {
        return lines;
    }
    let (json, mut messages): (Vec<Line>, Vec<Line>) =
        lines.into_iter().partition(|line| line.is_json);
    let mut by_sale: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for Line { routing_key, body, .. } in json {
        by_sale.entry(routing_key).or_default().push(body);
    }
    for (routing_key, bodies) in by_sale {
        messages.extend(bodies.chunks(per_message).map(|group| {
            let body = [b"[", group.join(&b","[..]).as_slice(), b"]"].concat();
            Line { routing_key: routing_key.clone(), body, is_json: true }
        }));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_of_one_sale_each_and_keep_the_order_of_its_lines() {
        let line = |routing_key: &str, body: &str| Line {
            routing_key: routing_key.into(),
            body: body.into(),
            is_json: body != "bad",
        };
        let lines = ["a1", "b1", "bad", "a2", "a3", "b2"].map(|body| line(&body[..1], body)).into();
        let messages = grouped(lines, 2);
        let texts = messages.iter().map(|message| {
            let body = String::from_utf8_lossy(&message.body);
            format!("{}: {body}", message.routing_key)
        });
        let expected = ["b: bad", "a: [a1,a2]", "a: [a3]", "b: [b1,b2]"];
        assert_eq!(texts.collect::<Vec<_>>(), expected);
    }
}
