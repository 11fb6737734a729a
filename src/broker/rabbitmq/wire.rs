//! Between floodgate's words and AMQP's: bodies, properties and headers.

use std::sync::Arc;

use chrono::Utc;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::broker::topology::{Topology, header};
use crate::broker::{DeadLetter, Message, Obituary, Original, Properties, Queue};
use crate::event::{Event, rfc3339};

/// Persistent, AMQP 0-9-1 `delivery-mode`.
const PERSISTENT: u8 = 2;
const JSON: &str = "application/json";
/// The longest text put into a header of a dead letter, in bytes.
const MAX_DETAIL_BYTES: usize = 500;

/// A message ready to be published.
pub(super) struct Publication<'a> {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub body: &'a [u8],
    pub properties: BasicProperties,
}

/// What a message came with.
struct Came {
    queue: Queue,
    amqp: BasicProperties,
}

/// Takes a delivery of `queue` apart.
pub(super) fn received(delivery: Delivery, queue: &Queue) -> (Vec<u8>, Properties) {
    let amqp = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let properties = Properties {
        routing_key: delivery.routing_key.to_string(),
        reply_to: text(amqp.reply_to()),
        correlation_id: text(amqp.correlation_id()),
        content_encoding: text(amqp.content_encoding()),
        timestamp_s: *amqp.timestamp(),
        // A delay queue dead-letters too, and what comes back from one is not dead.
        dead: amqp.headers().as_ref().filter(|_| *queue == Queue::DeadLetters).and_then(obituary),
        original: Original(Some(Arc::new(Came {
            queue: queue.clone(),
            amqp: delivery.properties,
        }))),
    };
    (delivery.data, properties)
}

fn header_text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// Why a message is dead: by floodgate's own headers, or by those of RabbitMQ's dead-lettering.
fn obituary(headers: &FieldTable) -> Option<Obituary> {
    if let Some(reason) = header_text(headers, header::REASON) {
        let detail = header_text(headers, header::DETAIL).unwrap_or_default();
        return Some(Obituary {
            reason,
            detail,
            at: header_text(headers, header::AT).unwrap_or_default(),
        });
    }
    let reason = last_death(headers)?;
    let detail = "dead-lettered by RabbitMQ".into();
    Some(Obituary { reason, detail, at: String::new() })
}

/// Why RabbitMQ dead-lettered a message the last time; the time before, its delay may have passed.
/// The first entry of `x-death` is the latest (RabbitMQ's page on dead letter exchanges).
fn last_death(headers: &FieldTable) -> Option<String> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get("x-death")? else { return None };
    let AMQPValue::FieldTable(latest) = deaths.as_slice().first()? else { return None };
    header_text(latest, "reason")
}

fn came(properties: &Properties) -> Option<&Came> {
    properties.original.0.as_ref()?.downcast_ref()
}

/// What a message came with, but for `user_id`: RabbitMQ refuses the name of another than the one
/// who publishes, and closes the channel (its page on validated user-id).
fn original(properties: &Properties) -> BasicProperties {
    let Some(Came { amqp: original, .. }) = came(properties) else {
        return BasicProperties::default();
    };
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($name:ident => $with:ident),*) => {
            $(if let Some(value) = original.$name().clone() {
                kept = kept.$with(value);
            })*
        };
    }
    keep!(
        content_type => with_content_type, content_encoding => with_content_encoding,
        headers => with_headers, delivery_mode => with_delivery_mode, priority => with_priority,
        correlation_id => with_correlation_id, reply_to => with_reply_to,
        expiration => with_expiration, message_id => with_message_id,
        timestamp => with_timestamp, kind => with_type, app_id => with_app_id
    );
    kept
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
            body,
            properties: match properties {
                Some(properties) => intent_properties(properties),
                None => ours(BasicProperties::default()),
            },
        },
        Message::Event(event) => Publication {
            exchange: names.events_exchange().into(),
            routing_key: short(&event.routing_key),
            body: &event.data,
            properties: event_properties(event, names),
        },
        Message::Reply { to, correlation_id, event } => Publication {
            exchange: "".into(),
            routing_key: short(to),
            body: &event.data,
            properties: event_properties(event, names).with_correlation_id(short(correlation_id)),
        },
        Message::DeadLetter(letter) => Publication {
            exchange: names.dead_exchange().into(),
            routing_key: short(&letter.properties.routing_key),
            body: &letter.body,
            properties: dead_letter_properties(letter, names),
        },
    }
}

/// Those it came with, or, for a new message, what they ask for.
fn intent_properties(properties: &Properties) -> BasicProperties {
    if properties.original.0.is_some() {
        return without_obituary(original(properties));
    }
    let mut amqp = ours(BasicProperties::default());
    if let Some(to) = &properties.reply_to {
        amqp = amqp.with_reply_to(short(to));
    }
    if let Some(id) = &properties.correlation_id {
        amqp = amqp.with_correlation_id(short(id));
    }
    amqp
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
    ours(BasicProperties::default())
        .with_headers(headers)
        .with_message_id(short(&event.id))
        .with_type(event.kind.into())
        .with_timestamp(u64::try_from(event.time.timestamp()).unwrap_or(0))
}

/// The original properties with the reason added to their headers.
fn dead_letter_properties(letter: &DeadLetter, names: &Topology) -> BasicProperties {
    let properties = original(&letter.properties);
    let mut headers = properties.headers().clone().unwrap_or_default();
    let mut set = |name: &'static str, value: &str| {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    let end = letter.detail.floor_char_boundary(MAX_DETAIL_BYTES);
    set(header::REASON, letter.reason);
    set(header::DETAIL, &letter.detail[..end]);
    let queue = came(&letter.properties).map_or(&Queue::Intents, |came| &came.queue);
    set(header::QUEUE, &names.queue(queue));
    set(header::AT, &rfc3339(Utc::now()));
    properties.with_headers(headers).with_delivery_mode(PERSISTENT)
}

/// Properties as they were before the message died, so that it starts afresh.
fn without_obituary(properties: BasicProperties) -> BasicProperties {
    let Some(headers) = properties.headers().clone() else { return properties };
    let mut kept = FieldTable::default();
    for (name, value) in &headers {
        let text = name.as_str();
        let of_death = text.starts_with(header::PREFIX)
            || matches!(text, "x-death" | "x-delivery-count")
            || ["x-first-death-", "x-last-death-"].iter().any(|prefix| text.starts_with(prefix));
        if !of_death {
            kept.insert(name.clone(), value.clone());
        }
    }
    properties.with_headers(kept)
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
        let (body, reason, detail) = (Vec::new(), "bad_json", String::new());
        let letter = DeadLetter { body, properties, reason, detail };
        let dead = dead_letter_properties(&letter, &Topology::new("floodgate"));
        assert_eq!(dead.user_id(), &None);
        let headers = dead.headers().clone().unwrap();
        assert_eq!(header_text(&headers, header::QUEUE).as_deref(), Some("floodgate.returned"));
    }
}
