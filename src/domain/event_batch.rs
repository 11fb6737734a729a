//! Events in one message: the JSON batch format of `CloudEvents` 1.0, an array of events in structured mode.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::event::{Event, rfc3339};
use crate::domain::trace::TraceContext;

/// An event in structured mode.
#[derive(Serialize)]
struct Structured<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
    data: &'a RawValue,
}

/// The longest `source`: a slash and a namespace.
const MAX_SOURCE_BYTES: usize = 65;
/// Names, quotes and commas, the attributes of fixed length, and `time`.
const FIXED_BYTES: usize = 160;

/// The names of the trace's attributes, with quotes and commas.
const TRACEPARENT_BYTES: usize = 17;
const TRACESTATE_BYTES: usize = 16;

/// The most bytes that `event` takes in a batch. Of its strings only `tracestate` may need escapes.
pub fn size_in_batch(event: &Event) -> usize {
    let Event { id, kind, subject, data, trace, .. } = event;
    let trace = trace.as_ref().map_or(0, |trace| {
        let state = trace.tracestate().map_or(0, |state| TRACESTATE_BYTES + 2 * state.len());
        TRACEPARENT_BYTES + trace.traceparent().len() + state
    });
    FIXED_BYTES + MAX_SOURCE_BYTES + id.len() + kind.len() + subject.len() + data.len() + trace
}

/// The batch of `events`, each with the same attributes and data that it has alone.
pub fn batch_json(events: &[&Event], source: &str) -> Vec<u8> {
    let mut batch =
        Vec::with_capacity(2 + events.iter().copied().map(size_in_batch).sum::<usize>());
    batch.push(b'[');
    for (number, event) in events.iter().enumerate() {
        if number > 0 {
            batch.push(b',');
        }
        write(event, source, &mut batch);
    }
    batch.push(b']');
    batch
}

/// The event in CloudEvents' structured mode, as batches have it.
pub fn structured_json(event: &Event, source: &str) -> Vec<u8> {
    let mut json = Vec::with_capacity(size_in_batch(event));
    write(event, source, &mut json);
    json
}

fn write(event: &Event, source: &str, to: &mut Vec<u8>) {
    let data = serde_json::from_slice(&event.data)
        .unwrap_or_else(|error| unreachable!("the data is JSON: {error}"));
    let structured = Structured {
        specversion: "1.0",
        id: &event.id,
        source,
        kind: event.kind,
        subject: &event.subject,
        time: rfc3339(event.time),
        datacontenttype: "application/json",
        traceparent: event.trace.as_ref().map(TraceContext::traceparent),
        tracestate: event.trace.as_ref().and_then(TraceContext::tracestate),
        data,
    };
    serde_json::to_writer(to, &structured)
        .unwrap_or_else(|error| unreachable!("strings and JSON: {error}"));
}

/// The data of every event in the body of a message: of a single event the body, of a batch that of each.
///
/// # Errors
///
/// A batch that can't be read.
pub fn data_of(body: &[u8]) -> Result<Vec<&[u8]>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow)]
        data: &'a RawValue,
    }
    if body.first() != Some(&b'[') {
        return Ok(vec![body]);
    }
    let events: Vec<Data<'_>> = serde_json::from_slice(body)?;
    Ok(events.into_iter().map(|event| event.data.get().as_bytes()).collect())
}

/// Every event in the body of a message. `None` if there is something else in it.
pub fn events_of(body: &[u8]) -> Option<Vec<Event>> {
    data_of(body).ok()?.into_iter().map(Event::of_data).collect()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::decision::{Decision, Outcome, Reason};
    use crate::domain::order::{Order, OrderId, Quantity, SaleId, UserId};

    /// With ids of so many characters, and the longest of everything else.
    fn event(length: usize) -> Event {
        let id = "x".repeat(length);
        let time = DateTime::from_timestamp_millis(1_795_680_000_123).unwrap();
        Event::of(&Decision {
            order: Order {
                id: OrderId::parse(id.clone()).unwrap(),
                sale_id: SaleId::parse(id.clone()).unwrap(),
                user_id: UserId::parse(id).unwrap(),
                quantity: Quantity::new(1_000_000).unwrap(),
            },
            outcome: Outcome::Rejected(Reason::PurchaseLimit),
            submitted_at: time,
            decided_at: time,
            version: u32::MAX,
            sold: u32::MAX,
        })
    }

    #[test]
    fn a_batch_has_the_attributes_and_the_data_of_each_event() {
        let (one, two) = (event(1), event(64));
        let batch = batch_json(&[&one, &two], "/shop");
        let read: Vec<serde_json::Value> = serde_json::from_slice(&batch).unwrap();
        let data: serde_json::Value = serde_json::from_slice(&one.data).unwrap();
        let expected = serde_json::json!({
            "specversion": "1.0", "id": "order:x:x", "source": "/shop",
            "type": "dev.floodgate.order.rejected.v1", "subject": "x/x",
            "time": "2026-11-26T08:00:00.123Z", "datacontenttype": "application/json", "data": data,
        });
        assert_eq!(read[0], expected);
        assert_eq!(data_of(&batch).unwrap(), [one.data.as_slice(), &two.data]);
        assert_eq!(data_of(&one.data).unwrap(), [one.data.as_slice()]);
        assert_eq!(batch_json(&[], "/shop"), b"[]");
    }

    #[test]
    fn the_size_in_a_batch_is_never_more_than_expected_and_close_to_it() {
        let source = format!("/{}", "n".repeat(64));
        for length in [1, 36, 64] {
            let event = event(length);
            let (size, expected) = (batch_json(&[&event], &source).len(), size_in_batch(&event));
            assert!((expected - 40..=expected).contains(&size), "{size} of {expected}");
        }
    }

    #[test]
    fn what_is_no_batch_is_an_error() {
        for body in ["[", "[{}]", "[7]", r#"[{"data":{}}"#] {
            assert!(data_of(body.as_bytes()).is_err(), "{body}");
        }
    }
}
