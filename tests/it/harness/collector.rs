//! A collector of traces: takes OTLP over HTTP, and keeps the spans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

type Spans = Arc<Mutex<Vec<Span>>>;

pub struct Collector {
    pub url: String,
    spans: Spans,
}

async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).expect("a request of OTLP");
    for resource in request.resource_spans {
        let about = attributes(&resource.resource.expect("a resource").attributes);
        assert_eq!(about["service.name"], "floodgate");
        let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.lock().expect("a lock").extend(all);
    }
    StatusCode::OK
}

impl Collector {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let spans = Spans::default();
        let routes = axum::Router::new().route("/v1/traces", post(take)).with_state(spans.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, spans }
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("a lock").clone()
    }
}

/// Attributes as text.
pub fn attributes(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |attribute: &KeyValue| match &attribute.value.as_ref()?.value {
        Some(any_value::Value::StringValue(text)) => Some(text.clone()),
        Some(any_value::Value::IntValue(number)) => Some(number.to_string()),
        _ => None,
    };
    let known = attributes.iter().filter_map(|one| Some((one.key.clone(), text(one)?)));
    known.collect()
}

/// An id in hexadecimal digits.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}
