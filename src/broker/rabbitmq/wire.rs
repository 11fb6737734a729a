//! Between floodgate's words and AMQP's: bodies, properties and headers.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::DateTime;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::bounds::{MAX_CUT_BYTES, bounded, priority};
use super::headers::{add_trace, header_text, trace};
use crate::broker::topology::{Topology, WORKER, header};
use crate::broker::{
    DeadLetter, DeathInfo, EventBatch, Message, Original, Properties, Queue, Reply, cut,
};
use crate::domain::event::{Event, rfc3339};
use crate::domain::event_batch::batch_json;

/// Persistent, AMQP 0-9-1 `delivery-mode`.
const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;
const JSON: &str = "application/json";
/// The media type of the JSON batch format of `CloudEvents`.
const BATCH: &str = "application/cloudevents-batch+json";
/// The longest text put into a header of a dead letter, in bytes.
const MAX_DETAIL_BYTES: usize = 500;

/// A message ready to be published.
pub(super) struct Publication<'a> {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub body: Cow<'a, [u8]>,
    pub properties: BasicProperties,
}

/// What a message came with.
struct Came {
    queue: Queue,
    amqp: BasicProperties,
}

/// A message of `queue` in floodgate's terms. Of a body larger than `max_body_bytes` only the beginning is
/// kept.
pub(super) fn received(
    routing_key: String,
    amqp: BasicProperties,
    mut body: Vec<u8>,
    queue: &Queue,
    max_body_bytes: usize,
) -> (Vec<u8>, Properties) {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let mut properties = Properties {
        routing_key,
        reply_to: text(amqp.reply_to()),
        accepts_batches: amqp
            .headers()
            .as_ref()
            .and_then(|headers| header_text(headers, header::ACCEPT))
            .is_some_and(|accepted| accepted == BATCH),
        correlation_id: text(amqp.correlation_id()),
        content_encoding: text(amqp.content_encoding()),
        timestamp_s: *amqp.timestamp(),
        message_id: text(amqp.message_id()),
        trace: amqp.headers().as_ref().and_then(trace),
        is_sharded: queue.is_shard(),
        cut_from: None,
        // A delay queue dead-letters too, and what comes back from one is not dead.
        dead: amqp.headers().as_ref().filter(|_| *queue == Queue::DeadLetters).and_then(death_info),
        original: Original(Some(Arc::new(Came { queue: queue.clone(), amqp }))),
    };
    if *queue == Queue::DeadLetters {
        properties.cut_from = amqp_headers(&properties).and_then(cut_from);
    }
    cut(&mut body, &mut properties, max_body_bytes);
    (body, properties)
}

fn amqp_headers(properties: &Properties) -> Option<&FieldTable> {
    came(properties)?.amqp.headers().as_ref()
}

/// How a header says that only the beginning of a body is kept.
const BODY_CUT: [&str; 2] = ["body of ", " bytes"];

/// The length of a body before it was cut.
fn cut_from(headers: &FieldTable) -> Option<usize> {
    let text = header_text(headers, header::CUT)?;
    text.strip_prefix(BODY_CUT[0])?.split(BODY_CUT[1]).next()?.parse().ok()
}

/// Why a message is dead: by floodgate's own headers, or by those of RabbitMQ's dead-lettering.
fn death_info(headers: &FieldTable) -> Option<DeathInfo> {
    if let Some(reason) = header_text(headers, header::REASON) {
        let text = |name| header_text(headers, name).unwrap_or_default();
        let (detail, at, id) = (text(header::DETAIL), text(header::AT), text(header::ID));
        return Some(DeathInfo { reason, detail, at, id });
    }
    let death = last_death(headers)?;
    let reason = header_text(death, "reason")?;
    let at = match death.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
        _ => None,
    };
    let at = at.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).map(rfc3339);
    let (detail, at) = ("dead-lettered by RabbitMQ".into(), at.unwrap_or_default());
    Some(DeathInfo { reason, detail, at, id: String::new() })
}

/// What RabbitMQ says of the last time it dead-lettered a message; the time before, its delay may have
/// passed. The first entry of `x-death` is the latest (RabbitMQ's page on dead letter exchanges).
fn last_death(headers: &FieldTable) -> Option<&FieldTable> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(latest) = deaths.as_slice().first()? else { return None };
    Some(latest)
}

/// The queue that a dead letter was in, as far as its headers say.
fn died_in(headers: &FieldTable) -> Option<String> {
    header_text(headers, header::QUEUE).or_else(|| header_text(last_death(headers)?, "queue"))
}

fn came(properties: &Properties) -> Option<&Came> {
    properties.original.0.as_ref()?.downcast_ref()
}

/// What every message of ours has.
fn ours(properties: BasicProperties) -> BasicProperties {
    properties
        .with_delivery_mode(PERSISTENT)
        .with_content_type(JSON.into())
        .with_app_id("floodgate".into())
}

/// `message` in AMQP's terms.
pub(super) fn publication<'a>(message: &Message<'a>, names: &Topology) -> Publication<'a> {
    match message {
        Message::Intent { routing_key, body, properties, delay } => Publication {
            exchange: match delay {
                Some(delay) => names.delay(*delay).into(),
                None => names.intents_exchange().into(),
            },
            routing_key: short(routing_key),
            body: Cow::Borrowed(body),
            properties: match properties {
                Some(properties) => intent_properties(properties),
                None => ours(BasicProperties::default()),
            },
        },
        Message::Event(event) => Publication {
            exchange: names.events_exchange().into(),
            routing_key: short(&event.routing_key),
            body: Cow::Borrowed(&event.data),
            properties: event_properties(event, names),
        },
        Message::EventTo { event, exchange } => {
            let exchange = short(exchange);
            Publication { exchange, ..publication(&Message::Event(event), names) }
        }
        Message::EventBatch(EventBatch { routing_key, events }) => Publication {
            exchange: names.event_batches_exchange().into(),
            routing_key: short(routing_key),
            body: Cow::Owned(batch_json(events, &names.event_source())),
            properties: ours(BasicProperties::default()).with_content_type(BATCH.into()),
        },
        Message::Status(body) => Publication {
            exchange: names.status_exchange().into(),
            routing_key: WORKER.into(),
            body: Cow::Borrowed(body),
            // It is worth nothing after a restart of the broker.
            properties: ours(BasicProperties::default()).with_delivery_mode(TRANSIENT),
        },
        Message::DeadLetter(letter) => Publication {
            exchange: names.dead_exchange().into(),
            routing_key: short(&letter.properties.routing_key),
            body: Cow::Borrowed(&letter.body),
            properties: dead_letter_properties(letter, names),
        },
    }
}

/// Replies with the same address, correlation id and form in AMQP's terms.
pub(super) fn replies<'a>(replies: &[&'a Reply], names: &Topology) -> Option<Publication<'a>> {
    let Reply { to, correlation_id, in_batches, event } = replies.first()?;
    let (body, properties) = if *in_batches {
        let events: Vec<&Event> = replies.iter().map(|reply| &reply.event).collect();
        let body = Cow::Owned(batch_json(&events, &names.event_source()));
        (body, ours(BasicProperties::default()).with_content_type(BATCH.into()))
    } else {
        (Cow::Borrowed(event.data.as_slice()), event_properties(event, names))
    };
    let properties = properties.with_correlation_id(short(correlation_id));
    Some(Publication { exchange: "".into(), routing_key: short(to), body, properties })
}

/// Those it came with, or, for a new message, what they ask for.
fn intent_properties(properties: &Properties) -> BasicProperties {
    if let Some(Came { amqp, .. }) = came(properties) {
        let (kept, _) = bounded(amqp);
        return match priority(amqp) {
            Some(priority) => kept.with_priority(priority),
            None => kept,
        };
    }
    let mut amqp = ours(BasicProperties::default());
    if let Some(to) = &properties.reply_to {
        amqp = amqp.with_reply_to(short(to));
    }
    if let Some(id) = &properties.correlation_id {
        amqp = amqp.with_correlation_id(short(id));
    }
    let mut headers = FieldTable::default();
    if properties.accepts_batches {
        headers.insert(header::ACCEPT.into(), AMQPValue::LongString(BATCH.into()));
    }
    if let Some(trace) = &properties.trace {
        add_trace(&mut headers, trace);
    }
    if headers.inner().is_empty() { amqp } else { amqp.with_headers(headers) }
}

/// The AMQP binding of `CloudEvents`, with its application properties as headers.
fn event_properties(event: &Event, names: &Topology) -> BasicProperties {
    let mut headers = FieldTable::default();
    let mut set = |name: &'static str, value: &str| {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    set("cloudEvents_specversion", "1.0");
    set("cloudEvents_id", &event.id);
    set("cloudEvents_source", &names.event_source());
    set("cloudEvents_type", event.kind);
    set("cloudEvents_subject", &event.subject);
    set("cloudEvents_time", &rfc3339(event.time));
    if let Some(trace) = &event.trace {
        add_trace(&mut headers, trace);
    }
    ours(BasicProperties::default())
        .with_headers(headers)
        .with_message_id(short(&event.id))
        .with_type(event.kind.into())
        .with_timestamp(u64::try_from(event.time.timestamp()).unwrap_or(0))
}

/// The original properties within bounds, with the reason added to their headers.
fn dead_letter_properties(letter: &DeadLetter, names: &Topology) -> BasicProperties {
    let (queue, came) = match came(&letter.properties) {
        Some(Came { queue, amqp }) => (queue, amqp.clone()),
        None => (&Queue::Intents, BasicProperties::default()),
    };
    // One that RabbitMQ has dead-lettered may have to be replaced.
    let queue = amqp_headers(&letter.properties)
        .filter(|_| *queue == Queue::DeadLetters)
        .and_then(died_in)
        .unwrap_or_else(|| names.queue(queue));
    let (properties, mut cut) = bounded(&came);
    if let Some(bytes) = letter.properties.cut_from {
        cut.insert(0, format!("{}{bytes}{}", BODY_CUT[0], BODY_CUT[1]));
    }
    let mut headers = properties.headers().clone().unwrap_or_default();
    let mut set = |name: &'static str, value: &str, most: usize| {
        let end = value.floor_char_boundary(most);
        headers.insert(name.into(), AMQPValue::LongString(value[..end].into()));
    };
    set(header::REASON, &letter.reason, MAX_DETAIL_BYTES);
    set(header::DETAIL, &letter.detail, MAX_DETAIL_BYTES);
    set(header::QUEUE, &queue, MAX_DETAIL_BYTES);
    set(header::AT, &letter.died_at(), MAX_DETAIL_BYTES);
    set(header::ID, &letter.id, MAX_DETAIL_BYTES);
    if let Some(expiration) = came.expiration() {
        set(header::EXPIRATION, expiration.as_str(), MAX_DETAIL_BYTES);
    }
    if let Some(priority) = came.priority() {
        set(header::PRIORITY, &priority.to_string(), MAX_DETAIL_BYTES);
    }
    if !cut.is_empty() {
        set(header::CUT, &cut.join(", "), MAX_CUT_BYTES);
    }
    properties.with_headers(headers).with_delivery_mode(PERSISTENT)
}

/// AMQP's short string holds 255 bytes. Everything put into one is an id or was one before, so
/// nothing is cut in practice; a routing key made of a longer id would still be delivered.
fn short(text: &str) -> ShortString {
    text[..text.floor_char_boundary(255)].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_on_is_as_it_came_but_for_who_published_it() {
        let came = BasicProperties::default()
            .with_content_type(JSON.into())
            .with_correlation_id("c".into())
            .with_message_id("m".into())
            .with_timestamp(7)
            .with_type("t".into());
        let signed = came.clone().with_user_id("somebody".into());
        let original = Original(Some(Arc::new(Came { queue: Queue::Returned, amqp: signed })));
        let properties = Properties { original, ..Properties::default() };
        assert_eq!(intent_properties(&properties), came);
        let dead = dead_letter_properties(&letter(properties), &Topology::new("floodgate"));
        assert_eq!(dead.user_id(), &None);
        let headers = dead.headers().clone().unwrap();
        assert_eq!(header_text(&headers, header::QUEUE).as_deref(), Some("floodgate.returned"));
        assert_eq!(header_text(&headers, header::CUT), None);
    }

    fn letter(properties: Properties) -> DeadLetter {
        let (body, reason, detail) = (Vec::new(), "bad_json", String::new());
        DeadLetter { body, properties, reason: reason.into(), detail, id: "i".into() }
    }

    #[test]
    fn a_dead_letter_is_small_does_not_vanish_and_says_what_is_not_kept() {
        let mut headers = FieldTable::default();
        let text = |value: String| AMQPValue::LongString(value.into());
        headers.insert("traceparent".into(), text("00-1-2-03".into()));
        headers.insert("tracestate".into(), text("s".repeat(2000)));
        headers.insert("x-death".into(), AMQPValue::Boolean(true));
        for n in 0..1000 {
            headers.insert(format!("own-{n:03}").into(), text("v".repeat(100)));
        }
        let amqp = BasicProperties::default()
            .with_headers(headers)
            .with_expiration("1000".into())
            .with_priority(7);
        let original = Original(Some(Arc::new(Came { queue: Queue::Intents, amqp })));
        let properties = Properties { original, cut_from: Some(9), ..Properties::default() };
        let dead = dead_letter_properties(&letter(properties), &Topology::new("floodgate"));
        assert_eq!((dead.expiration(), dead.priority()), (&None, &None));
        let headers = dead.headers().clone().unwrap();
        let value = |name| header_text(&headers, name);
        assert_eq!(value("traceparent").as_deref(), Some("00-1-2-03"));
        assert_eq!(value(header::EXPIRATION).as_deref(), Some("1000"));
        assert_eq!(value(header::PRIORITY).as_deref(), Some("7"));
        assert_eq!(value(header::ID).as_deref(), Some("i"));
        let cut = value(header::CUT).unwrap();
        assert!(cut.starts_with("body of 9 bytes, own-000, own-001"), "{cut}");
        assert_eq!(cut_from(&headers), Some(9));
        assert!(!cut.contains("x-death") && cut.len() <= MAX_CUT_BYTES, "{cut}");
        let bytes: usize = headers.inner().keys().map(|name| name.as_str().len()).sum();
        assert!(bytes < 200, "{bytes} bytes of names");
        // Redriven, it has its priority again, and does not vanish either.
        let came = Came { queue: Queue::DeadLetters, amqp: dead };
        let properties =
            Properties { original: Original(Some(Arc::new(came))), ..Properties::default() };
        let again = intent_properties(&properties);
        assert_eq!((again.expiration(), again.priority()), (&None, &Some(7)));
        let headers = again.headers().clone().unwrap();
        assert_eq!(headers.inner().len(), 1, "{headers:?}");
    }
}

#[cfg(test)]
mod fuzz {
    use lapin::types::parsing::parse_field_table;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::inputs;

    proptest! {
        #[test]
        fn fuzz_headers(bytes in inputs("headers"), body in inputs("intents"), most in 0..100_usize) {
            let Ok((_, headers)) = parse_field_table(bytes.as_slice()) else { return Ok(()) };
            let amqp = BasicProperties::default().with_headers(headers);
            for queue in [Queue::Intents, Queue::Returned, Queue::DeadLetters] {
                let (kept, properties) =
                    received("s".to_owned(), amqp.clone(), body.clone(), &queue, most);
                prop_assert!(body.starts_with(&kept));
                prop_assert!(queue == Queue::DeadLetters || properties.dead.is_none());
                // It can be sent on as it came.
                let message = Message::Intent { routing_key: "s", body: &kept, properties: Some(&properties), delay: None };
                publication(&message, &Topology::new("test"));
                let letter = DeadLetter {
                    body: kept.clone(),
                    id: DeadLetter::id_of(&properties, 0, &kept),
                    properties,
                    reason: "bad_json".into(),
                    detail: String::new(),
                };
                publication(&Message::DeadLetter(&letter), &Topology::new("test"));
            }
        }
    }
}
