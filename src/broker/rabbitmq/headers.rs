//! Headers of a message: texts, and the trace that it belongs to.

use lapin::types::{AMQPValue, FieldTable};

use crate::broker::topology::header;
use crate::domain::trace::TraceContext;

/// A header that is a text.
pub(super) fn header_text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// The trace that a message belongs to.
pub(super) fn trace(headers: &FieldTable) -> Option<TraceContext> {
    let traceparent = header_text(headers, header::TRACEPARENT)?;
    TraceContext::parse(&traceparent, header_text(headers, header::TRACESTATE).as_deref())
}

/// Says which trace a message belongs to.
pub(super) fn add_trace(headers: &mut FieldTable, trace: &TraceContext) {
    let mut set = |name: &'static str, value: &str| {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    set(header::TRACEPARENT, trace.traceparent());
    if let Some(state) = trace.tracestate() {
        set(header::TRACESTATE, state);
    }
}
