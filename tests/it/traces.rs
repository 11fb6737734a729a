//! What is recorded of orders, as a collector gets it, and what goes on to subscribers.

use std::collections::HashMap;

use floodgate::broker::{Message, Properties};
use floodgate::config::Settings;
use floodgate::domain::trace::TraceContext;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::harness::api::{Served, answer, on_free_port};
use crate::harness::collector::{Collector, attributes, hex};
use crate::harness::process::run;
use crate::harness::users::{Users, checked_sale, until_decided};
use crate::harness::{PATIENCE, Running, Stage, body, order, orders, sale};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn context(flags: &str) -> TraceContext {
    let traceparent = format!("00-{TRACE}-{PARENT}-{flags}");
    TraceContext::parse(&traceparent, Some("shop=7")).expect("a context")
}

fn to(collector: &Collector, sample: f64) -> impl FnOnce(&mut Settings) {
    let url = collector.url.clone();
    move |settings| {
        settings.traces.otlp_url = url;
        settings.traces.sample = sample;
        on_free_port(settings);
    }
}

/// The trace that the next event belongs to.
async fn trace_of_next(stage: &mut Stage) -> Option<TraceContext> {
    let next = tokio::time::timeout(PATIENCE, stage.events.next()).await;
    let delivery = next.expect("an event in time").expect("an event");
    let trace = delivery.properties.trace.clone();
    delivery.ack();
    trace
}

/// The one span of that kind and name.
fn one<'a>(spans: &'a [Span], kind: SpanKind, name: &str) -> &'a Span {
    let of = |span: &&Span| span.kind == kind as i32 && span.name == name;
    let found: Vec<&Span> = spans.iter().filter(of).collect();
    let names = || spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{name} of {:?}", names());
    found[0]
}

fn about(span: &Span) -> HashMap<String, String> {
    attributes(&span.attributes)
}

/// Posts an order, and waits for its decision.
async fn post(served: &Served, id: &str, trace: Option<&TraceContext>) {
    let wanted = json!({ "order_id": id, "user_id": "u", "quantity": 1 });
    let mut request = served.post("/v1/sales/s/orders", &wanted).header("prefer", "wait=30");
    if let Some(context) = trace {
        request = request.header("traceparent", context.traceparent());
        request = request.header("tracestate", context.tracestate().expect("a state"));
    }
    assert_eq!(answer(request).await.0, 200);
}

#[tokio::test]
async fn an_order_is_followed_from_its_request_to_its_event() {
    let collector = Collector::start().await;
    let mut stage = Stage::with("traces", to(&collector, 0.0)).await;
    stage.open(sale("s", 10)).await;
    let served = Served::up(&stage.deployment.app).await;
    post(&served, "o", Some(&context("01"))).await;
    let trace = trace_of_next(&mut stage).await.expect("a trace");
    // Without a context, and by a client that does not record.
    for (id, traceparent) in [("p", None), ("q", Some(&context("00")))] {
        post(&served, id, traceparent).await;
        assert_eq!(trace_of_next(&mut stage).await, None);
    }
    served.stop().await;
    stage.deployment.app.traces().stop().await;

    let spans = collector.spans();
    let namespace = stage.deployment.app.settings().namespace.clone();
    let (intents, events) = (format!("{namespace}.intents"), format!("{namespace}.events"));
    let posted = one(&spans, SpanKind::Server, "POST /v1/sales/{sale_id}/orders");
    assert_eq!(
        (hex(&posted.trace_id).as_str(), hex(&posted.parent_span_id).as_str()),
        (TRACE, PARENT)
    );
    assert_eq!(posted.trace_state, "shop=7");
    let known = about(posted);
    assert_eq!(known["http.response.status_code"], "200");
    assert_eq!((&*known["floodgate.sale.id"], &*known["floodgate.order.id"]), ("s", "o"));

    let sent = one(&spans, SpanKind::Producer, &format!("send {intents}"));
    assert_eq!((&sent.trace_id, &sent.parent_span_id), (&posted.trace_id, &posted.span_id));
    assert_eq!(about(sent)["messaging.rabbitmq.destination.routing_key"], "s");

    let process = format!("process {intents}");
    let (batches, order): (Vec<Span>, Vec<Span>) = spans
        .iter()
        .filter(|span| span.name == process)
        .cloned()
        .partition(|span| about(span).contains_key("messaging.batch.message_count"));
    let ([batch], [order]) = (&batches[..], &order[..]) else { panic!("{batches:?}, {order:?}") };
    assert_eq!((&order.trace_id, &order.parent_span_id), (&posted.trace_id, &sent.span_id));
    assert!(batch.parent_span_id.is_empty() && batch.trace_id != order.trace_id);
    for (from, to) in [(batch, order), (order, batch)] {
        let [link] = &from.links[..] else { panic!("{:?}", from.links) };
        assert_eq!((&link.trace_id, &link.span_id), (&to.trace_id, &to.span_id));
        assert_eq!(from.kind, SpanKind::Consumer as i32);
        let known = about(from);
        assert_eq!(known["messaging.system"], "rabbitmq");
        assert_eq!(known["messaging.operation.name"], "process");
        assert_eq!(known["messaging.operation.type"], "process");
        assert_eq!(known["messaging.destination.name"], intents);
    }
    let [answered] = &order.events[..] else { panic!("{:?}", order.events) };
    assert_eq!(attributes(&answered.attributes)["answer"], "created");
    let expected = format!("00-{TRACE}-{}-01", hex(&order.span_id));
    assert_eq!((trace.traceparent(), trace.tracestate()), (expected.as_str(), Some("shop=7")));

    for (kind, name) in [
        (SpanKind::Internal, "propose".to_owned()),
        (SpanKind::Internal, "decide".to_owned()),
        (SpanKind::Producer, format!("send {events}")),
        (SpanKind::Client, format!("ack {intents}")),
    ] {
        let part = one(&spans, kind, &name);
        assert_eq!((&part.trace_id, &part.parent_span_id), (&batch.trace_id, &batch.span_id));
    }
    assert_eq!(spans.len(), 8, "nothing else is recorded: {spans:?}");
    stage.remove().await;
}

#[tokio::test]
async fn a_message_says_its_trace_and_one_that_is_not_recorded_is_passed_on() {
    let collector = Collector::start().await;
    let mut stage = Stage::with("traces-amqp", to(&collector, 0.0)).await;
    stage.open(sale("s", 10)).await;
    let worker = stage.worker().await;
    let mut post = async |id: &str, trace: TraceContext| {
        let body = body(&order(id, "s", "u", 1));
        let properties = Properties { trace: Some(trace), ..Properties::default() };
        let message = Message::Intent {
            routing_key: "s",
            body: &body,
            properties: Some(&properties),
            delay: None,
        };
        stage.broker.publish(&[message]).await.all().expect("publish");
        trace_of_next(&mut stage).await.expect("a trace")
    };
    let recorded = post("a", context("01")).await;
    assert!(recorded.traceparent().starts_with(&format!("00-{TRACE}-")), "{recorded:?}");
    assert!(!recorded.traceparent().contains(PARENT), "the worker's span");
    assert_eq!(post("b", context("00")).await, context("00"));
    worker.stop().await;
    stage.deployment.app.traces().stop().await;
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| about(span).get("floodgate.order.id") != Some(&"b".into()))
    );
    stage.remove().await;
}

#[tokio::test]
async fn orders_without_a_context_have_new_traces_and_say_what_they_wait_for() {
    let collector = Collector::start().await;
    let stage = Stage::with("traces-new", to(&collector, 1.0)).await;
    stage.open(checked_sale("s", 20)).await;
    let users = Users::new();
    users.out.store(false, std::sync::atomic::Ordering::SeqCst);
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let mut worker = stage.deployment.app.worker(&adapters);
    worker.verifier = Some(users);
    let worker = Running::start(worker);
    let all = orders("s", 10);
    stage.post_orders(&all).await;
    until_decided(stage.ledger.as_ref(), &all).await;
    worker.stop().await;
    stage.deployment.app.traces().stop().await;
    let spans = collector.spans();
    let of_orders: Vec<&Span> =
        spans.iter().filter(|span| about(span).contains_key("floodgate.order.id")).collect();
    assert_eq!(of_orders.len(), 10);
    for span in of_orders {
        assert!(span.parent_span_id.is_empty());
        let names: Vec<&str> = span.events.iter().map(|event| event.name.as_str()).collect();
        assert_eq!(names, ["answered", "verified", "answered"]);
        assert!(span.links.len() >= 2, "it was in two batches");
    }
    stage.remove().await;
}

#[tokio::test]
async fn the_command_links_the_trace_and_a_collector_that_is_away_holds_up_nothing() {
    let mut stage = Stage::with("traces-link", |settings| {
        // Nothing listens on the discard port.
        settings.traces.otlp_url = "http://127.0.0.1:9".into();
        settings.traces.sample = 1.0;
    })
    .await;
    stage.open(sale("s", 10)).await;
    let worker = stage.worker().await;
    let all = orders("s", 100);
    stage.post_orders(&all).await;
    crate::harness::check::settled(&mut stage, &all).await;
    worker.stop().await;
    stage.deployment.app.traces().stop().await;

    let shown =
        crate::harness::process::floodgate(&stage, &["order", "show", "s", "o-0", "--json"])
            .env("FLOODGATE_TRACES__LINK", "http://traces.example/{sale_id}/{order_id}")
            .output()
            .expect("runs");
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["trace"], "http://traces.example/s/o-0");
    let plain = run(&stage, &["order", "show", "s", "o-0"]);
    assert!(!String::from_utf8_lossy(&plain.stdout).contains("trace"));
    stage.remove().await;
}
