//! A span that is recorded. It ends when it is dropped.

use std::fmt;
use std::sync::Arc;

use opentelemetry::trace::{Link, Span as _, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

use super::{Recorder, builder};
use crate::domain::trace::TraceContext;

/// What goes on, if it is recorded.
pub type Traced = Option<Box<Span>>;

/// Something that goes on and is recorded.
pub struct Span {
    pub(super) span: opentelemetry_sdk::trace::Span,
    pub(super) recorder: Arc<Recorder>,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(self.span.span_context()).finish()
    }
}

impl Span {
    /// What the next process is told of it.
    pub fn context(&self) -> Option<TraceContext> {
        let context = self.span.span_context();
        let traceparent = format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        );
        TraceContext::parse(&traceparent, Some(&context.trace_state().header()))
    }

    /// A part of it in this process.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Self {
        self.child(name.into(), SpanKind::Internal, Vec::new())
    }

    /// The sending of intents.
    #[must_use]
    pub fn send_intents(&self, routing_key: &str) -> Self {
        self.send(&self.recorder.places.intents, [(ROUTING_KEY, routing_key.to_owned())])
    }

    /// The sending of events.
    #[must_use]
    pub fn send_events(&self) -> Self {
        self.send(&self.recorder.places.events, [])
    }

    /// The acknowledging of deliveries.
    #[must_use]
    pub fn settle(&self) -> Self {
        let place = &self.recorder.places.intents;
        let attributes = self.recorder.messaging("ack", "settle", place);
        self.child(format!("ack {place}"), SpanKind::Client, attributes)
    }

    /// Notes that something has happened in it.
    pub fn event<const N: usize>(
        &mut self,
        name: &'static str,
        about: [(&'static str, String); N],
    ) {
        let about = about.into_iter().map(|(key, value)| KeyValue::new(key, value));
        self.span.add_event(name, about.collect());
    }

    /// Notes the status of an answer. Those from 500 on are failures.
    pub fn answered(&mut self, status: u16) {
        self.set([KeyValue::new("http.response.status_code", i64::from(status))]);
        if status >= 500 {
            self.failed(&status.to_string());
        }
    }

    /// Notes that it has failed, and the kind of error.
    pub fn failed(&mut self, kind: &str) {
        self.set([KeyValue::new("error.type", kind.to_owned())]);
        self.span.set_status(Status::error(""));
    }

    pub(super) fn set(&mut self, attributes: impl IntoIterator<Item = KeyValue>) {
        self.span.set_attributes(attributes);
    }

    pub(super) fn link(&self) -> Link {
        Link::with_context(self.span.span_context().clone())
    }

    /// Links it to the batch that it is in.
    pub(super) fn is_in(&mut self, batch: &Self) {
        self.span.add_link(batch.span.span_context().clone(), Vec::new());
    }

    fn send<const N: usize>(&self, place: &str, about: [(&'static str, String); N]) -> Self {
        let mut attributes = self.recorder.messaging("send", "send", place);
        attributes.extend(about.into_iter().map(|(key, value)| KeyValue::new(key, value)));
        self.child(format!("send {place}"), SpanKind::Producer, attributes)
    }

    fn child(&self, name: String, kind: SpanKind, attributes: Vec<KeyValue>) -> Self {
        let parent = Context::new().with_remote_span_context(self.span.span_context().clone());
        let builder = builder(name, kind, attributes);
        let span = self.recorder.tracer.build_with_context(builder, &parent);
        Self { span, recorder: self.recorder.clone() }
    }
}

const ROUTING_KEY: &str = "messaging.rabbitmq.destination.routing_key";
