//! Messages as the tables hold them.

use chrono::Utc;
use serde::{Deserialize, Serialize};

use crate::broker::{DeadLetter, Obituary, Original, Properties};
use crate::event::{Event, rfc3339};

/// The longest detail of a dead letter that is kept, in bytes; as on RabbitMQ.
const MAX_DETAIL_BYTES: usize = 500;

/// Properties but for the routing key, which has a column of its own.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_from: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead: Option<Dead>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Dead {
    reason: String,
    detail: String,
    at: String,
    #[serde(default)]
    id: String,
}

/// `properties` as the tables hold them: JSON, or nothing when there is nothing in them.
pub(super) fn to_json(properties: &Properties) -> Option<String> {
    let Properties {
        reply_to,
        correlation_id,
        content_encoding,
        timestamp_s,
        message_id,
        cut_from,
        dead,
        routing_key: _,
        original: _,
    } = properties.clone();
    let dead = dead.map(|Obituary { reason, detail, at, id }| Dead { reason, detail, at, id });
    let stored = Stored {
        reply_to,
        correlation_id,
        content_encoding,
        timestamp_s,
        message_id,
        cut_from,
        dead,
    };
    let json = serde_json::to_string(&stored);
    let json = json.unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
    (json != "{}").then_some(json)
}

/// Reads back what [`to_json`] wrote.
pub(super) fn from_json(
    routing_key: String,
    json: Option<&str>,
) -> Result<Properties, serde_json::Error> {
    let stored: Stored = json.map(serde_json::from_str).transpose()?.unwrap_or_default();
    let Stored {
        reply_to,
        correlation_id,
        content_encoding,
        timestamp_s,
        message_id,
        cut_from,
        dead,
    } = stored;
    let dead = dead.map(|Dead { reason, detail, at, id }| Obituary { reason, detail, at, id });
    Ok(Properties {
        routing_key,
        reply_to,
        correlation_id,
        content_encoding,
        timestamp_s,
        message_id,
        cut_from,
        dead,
        original: Original::default(),
    })
}

/// Properties of an intent that is published: those it comes with, but as they were before it died.
pub(super) fn of_intent(routing_key: &str, properties: Option<&Properties>) -> Properties {
    let routing_key = routing_key.to_owned();
    Properties { routing_key, dead: None, ..properties.cloned().unwrap_or_default() }
}

/// Properties of a dead letter: those of the original, and why it died.
pub(super) fn of_dead_letter(letter: &DeadLetter) -> Properties {
    let end = letter.detail.floor_char_boundary(MAX_DETAIL_BYTES);
    let dead = Obituary {
        reason: letter.reason.to_owned(),
        detail: letter.detail[..end].to_owned(),
        at: rfc3339(Utc::now()),
        id: letter.id.clone(),
    };
    Properties { dead: Some(dead), ..letter.properties.clone() }
}

/// Properties of an event, or of a reply with it.
pub(super) fn of_event(
    event: &Event,
    routing_key: &str,
    correlation_id: Option<&str>,
) -> Properties {
    Properties {
        routing_key: routing_key.to_owned(),
        correlation_id: correlation_id.map(str::to_owned),
        timestamp_s: u64::try_from(event.time.timestamp()).ok(),
        ..Properties::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_survive_storing() {
        let properties = Properties {
            routing_key: "s".into(),
            reply_to: Some("q\"\\".into()),
            correlation_id: Some("é".into()),
            content_encoding: Some("gzip".into()),
            timestamp_s: Some(u64::MAX),
            message_id: Some("m".into()),
            cut_from: Some(7),
            dead: Some(Obituary {
                reason: "r".into(),
                detail: "d".into(),
                at: "t".into(),
                id: "i".into(),
            }),
            original: Original::default(),
        };
        let json = to_json(&properties).unwrap();
        let back = from_json("s".into(), Some(&json)).unwrap();
        assert_eq!(format!("{back:?}"), format!("{properties:?}"));
        assert_eq!(to_json(&Properties { routing_key: "s".into(), ..Default::default() }), None);
        let fresh = of_intent("t", Some(&properties));
        assert_eq!((fresh.routing_key.as_str(), fresh.dead.is_none()), ("t", true));
    }
}
