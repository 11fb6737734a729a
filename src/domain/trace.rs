//! Trace context as W3C has it (<https://www.w3.org/TR/trace-context/>): which trace something belongs to. It says nothing of an
//! order, and decides nothing.

use serde::{Deserialize, Serialize};

/// Length of a `traceparent` of version 00, in bytes.
const TRACEPARENT_BYTES: usize = 55;
/// The longest `tracestate` that is passed on, in bytes: what W3C asks for at least.
const MAX_TRACESTATE_BYTES: usize = 512;

/// The values of the headers `traceparent` and `tracestate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    tracestate: Option<String>,
}

impl TraceContext {
    /// The context that these headers stand for. A `traceparent` that is none, or of a version other than 00, is as
    /// good as missing; a `tracestate` that is too long, or not ASCII, is left out.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let parts: Vec<&str> = traceparent.split('-').collect();
        let [version, trace, span, flags] = parts.as_slice() else { return None };
        let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_set = |text: &str| is_hex(text) && text.bytes().any(|b| b != b'0');
        let lengths = [version.len(), trace.len(), span.len(), flags.len()];
        if lengths != [2, 32, 16, 2] || *version != "00" {
            return None;
        }
        if !is_set(trace) || !is_set(span) || !is_hex(flags) {
            return None;
        }
        debug_assert_eq!(traceparent.len(), TRACEPARENT_BYTES);
        let fits = |state: &&str| {
            !state.is_empty() && state.len() <= MAX_TRACESTATE_BYTES && state.is_ascii()
        };
        let tracestate = tracestate.filter(fits).map(str::to_owned);
        Some(Self { traceparent: traceparent.to_owned(), tracestate })
    }

    /// The value of the header `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The value of the header `tracestate`, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// Whether its sender records the trace.
    pub fn is_sampled(&self) -> bool {
        let flags = self.traceparent.get(TRACEPARENT_BYTES - 2..);
        flags.and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|f| f & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_what_is_a_context_is_taken() {
        let context = TraceContext::parse(PARENT, Some("a=b")).unwrap();
        assert_eq!((context.traceparent(), context.tracestate()), (PARENT, Some("a=b")));
        assert!(context.is_sampled());
        assert!(!TraceContext::parse(&PARENT.replace("-01", "-02"), None).unwrap().is_sampled());
        for bad in [
            "",
            "00-1-2-03",
            &PARENT[..54],
            &format!("{PARENT}-00"),
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "01", 1),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &PARENT.replace("01", "é"),
        ] {
            assert_eq!(TraceContext::parse(bad, None), None, "{bad}");
        }
        let long = "s".repeat(513);
        for bad in ["", "é", &long] {
            assert_eq!(TraceContext::parse(PARENT, Some(bad)).unwrap().tracestate(), None);
        }
    }
}
