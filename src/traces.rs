//! Traces, as OpenTelemetry has them: what became of an order, span by span, sent to a collector by OTLP. Off unless a
//! collector is set; then nothing is recorded and nothing is allocated.
//!
//! An order is followed through the request, the queue and the worker in one trace, which goes on to subscribers. A batch
//! has a trace for itself, with a link to each of its orders that is recorded. Names and attributes are those of the
//! conventions for messaging (<https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>).

mod exporter;
mod span;

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use serde::Deserialize;

pub use self::span::{Span, Traced};
use crate::domain::order::Order;
use crate::domain::trace::TraceContext;
use crate::http;

/// Spans that may wait for the collector. More are dropped: it is away, or too slow.
const MAX_WAITING: usize = 16_384;
/// How long the collector has for an answer, and what waits has at the stop.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The most orders that a batch's span is linked to: OpenTelemetry's default limit of links.
const MAX_LINKS: usize = 128;

/// Section `traces` of the settings, described in `config/floodgate.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TraceSettings {
    pub otlp_url: String,
    pub sample: f64,
    pub link: String,
}

impl TraceSettings {
    /// Where a person finds the trace of an order, if there is a place.
    pub fn link_of(&self, order: &Order) -> Option<String> {
        let link = self.link.replace("{sale_id}", order.sale_id.as_str());
        Some(link.replace("{order_id}", order.id.as_str())).filter(|link| !link.is_empty())
    }
}

/// What a process calls the places that messages go through.
#[derive(Debug, Clone)]
pub struct Places {
    /// `messaging.system`.
    pub system: &'static str,
    /// The queue of intents, and where they are sent.
    pub intents: String,
    /// Where events are sent.
    pub events: String,
    /// `service.namespace`.
    pub namespace: String,
}

/// Where spans are recorded, or nowhere.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Recorder>>);

struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// Which part of the orders without a sampled parent is recorded, of 2^64.
    threshold: u64,
    places: Places,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Traces {
    /// Records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Records as the settings say.
    ///
    /// # Errors
    ///
    /// The collector's address is not valid.
    pub fn start(settings: &TraceSettings, places: Places) -> Result<Self, ExporterBuildError> {
        if settings.otlp_url.is_empty() {
            return Ok(Self::off());
        }
        http::choose_cryptography();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", settings.otlp_url.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .build()?;
        let waiting = BatchConfigBuilder::default().with_max_queue_size(MAX_WAITING).build();
        let exporter = exporter::Noted::new(exporter);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(waiting).build();
        let resource = Resource::builder()
            .with_service_name("floodgate")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.namespace", places.namespace.clone()),
                KeyValue::new("process.pid", i64::from(std::process::id())),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            // What is not to be recorded gets no span at all.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("floodgate");
        let threshold = threshold(settings.sample);
        Ok(Self(Some(Arc::new(Recorder { provider, tracer, threshold, places }))))
    }

    /// The span of a request that posts `order`, and began at `begun`: in the trace that the client says, if it
    /// records it; otherwise of some orders only, chosen by their ids, so that every process chooses the same.
    pub fn request(
        &self,
        order: &Order,
        parent: Option<&TraceContext>,
        begun: SystemTime,
    ) -> Traced {
        let recorder = self.recording(order, parent)?;
        let route = "/v1/sales/{sale_id}/orders";
        let attributes = [
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("http.route", route),
            KeyValue::new("url.path", format!("/v1/sales/{}/orders", order.sale_id)),
        ];
        let span = builder(format!("POST {route}"), SpanKind::Server, of_order(order))
            .with_start_time(begun);
        let mut span = recorder.start(span, parent);
        span.set(attributes);
        Some(Box::new(span))
    }

    /// The span of an order that a worker has been delivered, from now on.
    pub fn process(
        &self,
        order: &Order,
        parent: Option<&TraceContext>,
        message_id: Option<&str>,
    ) -> Traced {
        let recorder = self.recording(order, parent)?;
        let mut attributes = recorder.messaging("process", "process", &recorder.places.intents);
        attributes.extend(of_order(order));
        attributes
            .extend(message_id.map(|id| KeyValue::new("messaging.message.id", id.to_owned())));
        let name = format!("process {}", recorder.places.intents);
        let span = builder(name, SpanKind::Consumer, attributes);
        Some(Box::new(recorder.start(span, parent)))
    }

    /// The span of a batch of `count` orders, if any of them is recorded, with a link to each that is, and from it.
    pub fn batch<'a>(&self, count: usize, orders: impl Iterator<Item = &'a mut Traced>) -> Traced {
        let recorder = self.0.as_ref()?;
        let mut orders: Vec<&mut Span> =
            orders.filter_map(Option::as_deref_mut).take(MAX_LINKS).collect();
        if orders.is_empty() {
            return None;
        }
        let mut attributes = recorder.messaging("process", "process", &recorder.places.intents);
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        attributes.push(KeyValue::new("messaging.batch.message_count", count));
        let name = format!("process {}", recorder.places.intents);
        let links = orders.iter().map(|order| order.link()).collect();
        let span = builder(name, SpanKind::Consumer, attributes).with_links(links);
        let batch = recorder.start(span, None);
        for order in &mut orders {
            order.is_in(&batch);
        }
        Some(Box::new(batch))
    }

    /// Sends what waits, and ends. To be called once, when nothing is recorded any more.
    pub async fn stop(&self) {
        let Some(recorder) = self.0.clone() else { return };
        // It waits for the collector, and would keep this thread from anything else.
        let stopping =
            tokio::task::spawn_blocking(move || recorder.provider.shutdown_with_timeout(TIMEOUT));
        if let Ok(Err(error)) = stopping.await {
            tracing::debug!(%error, "some spans were not sent");
        }
    }

    /// The recorder, if `order` is to be recorded.
    fn recording(&self, order: &Order, parent: Option<&TraceContext>) -> Option<&Arc<Recorder>> {
        let recorder = self.0.as_ref()?;
        let is_chosen = || recorder.threshold > 0 && hash(order) <= recorder.threshold;
        parent.map_or_else(is_chosen, TraceContext::is_sampled).then_some(recorder)
    }
}

impl Recorder {
    fn start(self: &Arc<Self>, builder: SpanBuilder, parent: Option<&TraceContext>) -> Span {
        let context = match parent.and_then(remote) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        Span { span: self.tracer.build_with_context(builder, &context), recorder: self.clone() }
    }

    fn messaging(&self, name: &'static str, kind: &'static str, place: &str) -> Vec<KeyValue> {
        vec![
            KeyValue::new("messaging.system", self.places.system),
            KeyValue::new("messaging.operation.name", name),
            KeyValue::new("messaging.operation.type", kind),
            KeyValue::new("messaging.destination.name", place.to_owned()),
        ]
    }
}

fn builder(
    name: String,
    kind: SpanKind,
    attributes: impl IntoIterator<Item = KeyValue>,
) -> SpanBuilder {
    SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes)
}

fn of_order(order: &Order) -> [KeyValue; 2] {
    [
        KeyValue::new("floodgate.sale.id", order.sale_id.to_string()),
        KeyValue::new("floodgate.order.id", order.id.to_string()),
    ]
}

/// Which of 2^64 hashes are recorded.
fn threshold(sample: f64) -> u64 {
    // Beyond the ends it is cut off.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let threshold = (sample * u64::MAX as f64) as u64;
    threshold
}

/// The same in every process of this version.
fn hash(order: &Order) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((&order.sale_id, &order.id))
}

/// The span that a context names.
fn remote(context: &TraceContext) -> Option<SpanContext> {
    let mut parts = context.traceparent().split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    let state = context.tracestate().and_then(|state| state.parse::<TraceState>().ok());
    Some(SpanContext::new(trace, span, flags, true, state.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::{OrderId, Quantity, SaleId, UserId};

    fn order(id: usize) -> Order {
        Order {
            id: OrderId::parse(format!("o-{id}")).unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: UserId::parse("u").unwrap(),
            quantity: Quantity::ONE,
        }
    }

    #[test]
    fn a_part_of_the_orders_is_recorded() {
        let count = |sample| (0..10_000).filter(|n| hash(&order(*n)) <= threshold(sample)).count();
        assert_eq!(count(1.0), 10_000);
        assert!((800..1200).contains(&count(0.1)), "{}", count(0.1));
        assert_eq!(threshold(0.0), 0);
    }

    #[test]
    fn a_link_names_the_order() {
        let link = "http://traces.example/{sale_id}?order={order_id}".to_owned();
        let settings = TraceSettings { otlp_url: String::new(), sample: 0.0, link };
        let expected = "http://traces.example/s?order=o-7";
        assert_eq!(settings.link_of(&order(7)).as_deref(), Some(expected));
        let none = TraceSettings { link: String::new(), ..settings };
        assert_eq!(none.link_of(&order(7)), None);
    }
}
