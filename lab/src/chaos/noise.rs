//! Messages that nobody should send, among the orders.

use std::time::{Duration, Instant};

use floodgate::broker::Queue;
use floodgate::broker::topology::Topology;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

use super::book::Book;
use super::demand::Demand;
use super::plan::{Act, Fault};

/// Messages of one act.
const BURST: u32 = 20;
/// How long it is tried to send a burst.
const SEND_WITHIN: Duration = Duration::from_mins(1);
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Bytes of a header. With the rest it must fit a frame, of 131,072 bytes (RabbitMQ's `frame_max`).
const HEADER_BYTES: std::ops::Range<usize> = 120_000..130_500;
/// Where replies go that nobody should get: what looks like RabbitMQ's direct reply-to, no queue, floodgate's own, and
/// names that are none.
const REPLY_TO: [&str; 6] = [
    "amq.rabbitmq.reply-to",
    "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMjcuMC4wLjE.forged",
    "nobody.listens.here",
    "{intents}",
    "",
    "a b\u{1}\u{2}",
];

/// How the words begin that bodies which are no orders are known by.
pub const WORD: &str = "poison-";

/// Who sends them.
pub struct Noise {
    /// Of RabbitMQ, one for each of its nodes.
    pub urls: Vec<String>,
    pub topology: Topology,
    pub demand: Demand,
}

struct Sent {
    body: Vec<u8>,
    properties: BasicProperties,
    /// What it is known by, if it is no order.
    word: Option<String>,
}

impl Noise {
    /// What a fault asks for: poison, or orders that were sent before in a way that nobody should.
    pub async fn send(&self, act: &Act, book: &Book) {
        let last = book.counts().accepted;
        let messages = match act.fault {
            Fault::ForgedReplyTo => self.forged_reply_tos(last),
            Fault::GiantHeaders => self.giant_headers(last),
            _ => poison(act.which),
        };
        self.send_all(messages, book).await;
    }

    /// Orders which ask for replies where there are none to be had.
    fn forged_reply_tos(&self, number: u32) -> Vec<Sent> {
        let messages = last(number).zip((0..).cycle()).map(|(number, n): (u32, usize)| {
            let to = REPLY_TO[n % REPLY_TO.len()]
                .replace("{intents}", &self.topology.queue(&Queue::Intents));
            let properties = BasicProperties::default()
                .with_reply_to(to.into())
                .with_correlation_id("chaos".into())
                .with_expiration("1000".into())
                .with_priority(9);
            Sent { body: self.demand.body(number, true), properties, word: None }
        });
        messages.collect()
    }

    /// Orders with headers that fill a frame.
    fn giant_headers(&self, number: u32) -> Vec<Sent> {
        let step = HEADER_BYTES.len() / BURST as usize;
        let sizes = HEADER_BYTES.step_by(step);
        let messages = last(number).zip(sizes).map(|(number, size)| {
            let mut headers = FieldTable::default();
            headers.insert("x".into(), AMQPValue::LongString("y".repeat(size).into()));
            let properties = BasicProperties::default().with_headers(headers);
            Sent { body: self.demand.body(number, true), properties, word: None }
        });
        messages.collect()
    }

    /// Sends each until it is confirmed, or gives up.
    async fn send_all(&self, mut messages: Vec<Sent>, book: &Book) {
        let begun = Instant::now();
        for url in self.urls.iter().cycle() {
            if messages.is_empty() || begun.elapsed() > SEND_WITHIN {
                return;
            }
            if let Err(error) = self.try_send(url, &mut messages, book).await {
                tracing::debug!(%error, left = messages.len(), "cannot send noise");
                // A broker may refuse the connection that brings a message, however often it is brought.
                messages.retain(|message| message.word.is_some());
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }

    async fn try_send(
        &self,
        url: &str,
        messages: &mut Vec<Sent>,
        book: &Book,
    ) -> lapin::Result<()> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        while let Some(Sent { body, properties, word }) = messages.last() {
            let properties = properties.clone().with_delivery_mode(2);
            let publishing = channel.basic_publish(
                self.topology.intents_exchange().into(),
                "chaos-00".into(),
                BasicPublishOptions::default(),
                body,
                properties,
            );
            if let Confirmation::Ack(_) = publishing.await?.await?
                && let Some(word) = word
            {
                book.poison(word.clone());
            }
            messages.pop();
        }
        connection.close(200, "done".into()).await
    }
}

/// The last orders up to `number`.
fn last(number: u32) -> std::ops::Range<u32> {
    number.saturating_sub(BURST)..number
}

/// Bodies that are no orders, in many ways.
fn poison(which: u32) -> Vec<Sent> {
    let messages = (0..BURST).map(|n| {
        let word = format!("{WORD}{which}-{n}");
        let order = |fields: &str| {
            format!(r#"{{"order_id":"{word}","sale_id":"chaos-00","user_id":"u",{fields}}}"#)
        };
        let body = match n % 8 {
            0 => word.clone(),
            1 => order(r#""quantity":0"#),
            2 => order(r#""quantity":-1"#),
            3 => order(r#""quantity":"one""#),
            4 => order(r#""quantity":99999999999"#),
            5 => {
                format!(r#"{{"order_id":"{word}","sale_id":"nowhere","user_id":"u","quantity":1}}"#)
            }
            6 => format!("[{}", order(r#""quantity":1"#)),
            _ => format!(r#"{{"order_id":"{word}","text":"{}"}}"#, "x".repeat(100_000)),
        };
        Sent { body: body.into_bytes(), properties: BasicProperties::default(), word: Some(word) }
    });
    messages.collect()
}
