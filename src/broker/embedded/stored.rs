//! Messages as the tables hold them.

use chrono::Utc;

use crate::broker::{DeadLetter, DeathInfo, Properties};
use crate::domain::event::Event;

/// The longest detail of a dead letter that is kept, in bytes; as on RabbitMQ.
const MAX_DETAIL_BYTES: usize = 500;

/// `properties` as the tables hold them: JSON, or nothing when there is nothing in them. The routing key has
/// its own column.
pub(super) fn to_json(properties: &Properties) -> Option<String> {
    let json = serde_json::to_string(properties);
    let json = json.unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
    (json != "{}").then_some(json)
}

/// Reads back what [`to_json`] wrote.
pub(super) fn from_json(
    routing_key: String,
    json: Option<&str>,
) -> Result<Properties, serde_json::Error> {
    let stored: Properties = json.map(serde_json::from_str).transpose()?.unwrap_or_default();
    Ok(Properties { routing_key, ..stored })
}

/// Properties of an intent that is published: those it comes with, but as they were before it died.
pub(super) fn of_intent(routing_key: &str, properties: Option<&Properties>) -> Properties {
    let routing_key = routing_key.to_owned();
    Properties { routing_key, dead: None, ..properties.cloned().unwrap_or_default() }
}

/// Properties of a dead letter: those of the original, and why it died.
pub(super) fn of_dead_letter(letter: &DeadLetter) -> Properties {
    let end = letter.detail.floor_char_boundary(MAX_DETAIL_BYTES);
    let dead = DeathInfo {
        reason: letter.reason.to_string(),
        detail: letter.detail[..end].to_owned(),
        at: letter.died_at(),
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
        correlation_id: correlation_id.map(str::to_owned),
        trace: event.trace.clone(),
        ..published(routing_key)
    }
}

/// Properties of what is published now. The feed goes by this time: what is published again is not old there.
pub(super) fn published(routing_key: &str) -> Properties {
    Properties {
        routing_key: routing_key.to_owned(),
        timestamp_s: u64::try_from(Utc::now().timestamp()).ok(),
        ..Properties::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Original;
    use crate::domain::trace::TraceContext;

    #[test]
    fn properties_survive_storing() {
        let properties = Properties {
            routing_key: "s".into(),
            reply_to: Some("q\"\\".into()),
            accepts_batches: true,
            correlation_id: Some("é".into()),
            content_encoding: Some("gzip".into()),
            timestamp_s: Some(u64::MAX),
            message_id: Some("m".into()),
            trace: TraceContext::parse(
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                Some("a=b"),
            ),
            is_sharded: false,
            cut_from: Some(7),
            dead: Some(DeathInfo {
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
