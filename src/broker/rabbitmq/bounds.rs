//! What is kept of the properties of a message that is sent on: enough to decide and to trace it, and so
//! little that no broker refuses it. A message header must fit one frame, 128 KiB on RabbitMQ, with what
//! the broker adds to it at every redelivery.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use super::headers::header_text;
use crate::broker::topology::header;

/// Headers that are kept: those of W3C Trace Context and Baggage, and the form of the reply.
const KEPT: [&str; 4] = [header::TRACEPARENT, header::TRACESTATE, "baggage", header::ACCEPT];
/// And those of `CloudEvents` attributes, in the two forms of its AMQP binding.
const KEPT_PREFIXES: [&str; 2] = ["cloudEvents_", "cloudEvents:"];
/// What a broker adds by itself, and adds again.
const OF_THE_BROKER: &str = "x-";
/// The longest value of a header that is kept, in bytes.
const MAX_VALUE_BYTES: usize = 1024;
/// The most headers that are kept.
const MAX_HEADERS: usize = 32;
/// The longest list of names of what was cut, in bytes.
pub(super) const MAX_CUT_BYTES: usize = 500;

/// `came` within bounds, and what was left out. Without `user_id`: RabbitMQ refuses the name of another
/// than the one who publishes, and closes the channel (its page on validated user-id). Without
/// `expiration`: what was accepted is kept until it is decided. Without `priority`: see [`priority`].
pub(super) fn bounded(came: &BasicProperties) -> (BasicProperties, Vec<String>) {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($name:ident => $with:ident),*) => {
            $(if let Some(value) = came.$name().clone() {
                kept = kept.$with(value);
            })*
        };
    }
    keep!(
        content_type => with_content_type, content_encoding => with_content_encoding,
        delivery_mode => with_delivery_mode, correlation_id => with_correlation_id,
        reply_to => with_reply_to, message_id => with_message_id, timestamp => with_timestamp,
        kind => with_type, app_id => with_app_id
    );
    let (mut headers, mut cut) = (FieldTable::default(), Vec::new());
    for (name, value) in came.headers().iter().flat_map(FieldTable::inner) {
        let text = name.as_str();
        if text.starts_with(OF_THE_BROKER) || text.starts_with(header::PREFIX) {
            continue;
        }
        if headers.inner().len() < MAX_HEADERS && is_kept(text, value) {
            headers.insert(name.clone(), value.clone());
        } else {
            cut.push(text.to_owned());
        }
    }
    if !headers.inner().is_empty() {
        kept = kept.with_headers(headers);
    }
    (kept, cut)
}

fn is_kept(name: &str, value: &AMQPValue) -> bool {
    let is_known =
        KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|begin| name.starts_with(begin));
    let is_short = match value {
        AMQPValue::LongString(text) => text.as_bytes().len() <= MAX_VALUE_BYTES,
        AMQPValue::ShortString(_) => true,
        _ => false,
    };
    is_known && is_short
}

/// The priority of an intent, which is in a header while it is dead.
pub(super) fn priority(came: &BasicProperties) -> Option<u8> {
    let while_dead = || header_text(came.headers().as_ref()?, header::PRIORITY)?.parse().ok();
    came.priority().or_else(while_dead)
}
