//! What producers and subscribers exchange with floodgate over RabbitMQ: AsyncAPI 3.0, with the AMQP bindings 0.3.0.

use serde_json::{Map, Value, json};

use super::Contracts;
use crate::broker::topology::{DEAD_LETTER_DELIVERY_LIMIT, header};
use crate::broker::{MIXED, Queue};

const JSON: &str = "application/json";
const BATCH: &str = "application/cloudevents-batch+json";
const BINDING_VERSION: &str = "0.3.0";

/// The document.
pub(super) fn document(contracts: &Contracts) -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "floodgate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Order intake for flash sales. Producers publish intents; workers decide each of them, once and for \
                ever, and publish the decisions as CloudEvents, each at least once.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": JSON,
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "The RabbitMQ that the deployment is configured with",
            },
        },
        "channels": channels(contracts),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": contracts.schemas() },
    })
}

fn channels(Contracts { topology, delivery_limit, .. }: &Contracts) -> Value {
    let sale = json!({ "sale_id": { "description": "The sale" } });
    let mut order = sale.clone();
    order["outcome"] =
        json!({ "enum": ["created", "sold_out", "rejected"], "description": "The decision" });
    let mut news = sale.clone();
    news["what"] =
        json!({ "enum": ["sold_out", "restocked"], "description": "What happened to the sale" });
    let intake = json!({
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": topology.dead_exchange(),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    });
    json!({
        "intents": through(
            "Orders to be decided. Publish with confirms, and mandatory",
            ("{sale_id}", &sale), &topology.intents_exchange(), &["IntentMessage"]),
        "orderEvents": through(
            "Decisions, one in a message",
            ("order.{outcome}.{sale_id}", &order), &topology.events_exchange(), &["OrderEvent"]),
        "saleEvents": through(
            "What happens to sales",
            ("sale.{what}.{sale_id}", &news), &topology.events_exchange(), &["SaleSoldOut", "SaleRestocked"]),
        "eventBatches": through(
            &format!("Decisions, many in a message, if events.publish is batch or both. Under {MIXED} those of several sales"),
            ("{sale_id}", &sale), &topology.event_batches_exchange(), &["EventBatch"]),
        "replies": {
            "address": null,
            "description": "The queue that an intent's reply_to names. Replies are best effort; the event is sent in any case",
            "messages": references(&["Reply", "ReplyBatch"]),
        },
        "deadLetters": through(
            "Messages that can't be decided, with the reason. The body is the message's, or an element of its array",
            ("{sale_id}", &json!({ "sale_id": { "description": "The routing key that it came with" } })),
            &topology.dead_exchange(), &["DeadLetter"]),
        "intentsQueue": queue(
            "What workers consume, if the intake is not divided into shards",
            &topology.queue(&Queue::Intents), &intake, &["IntentMessage"]),
        "deadLettersQueue": queue(
            "What `floodgate dead-letters` reads",
            &topology.queue(&Queue::DeadLetters), &json!({
                "x-queue-type": "quorum",
                "x-delivery-limit": DEAD_LETTER_DELIVERY_LIMIT,
                "x-overflow": "reject-publish",
            }), &["DeadLetter"]),
    })
}

/// An exchange, and the routing keys of what goes through it.
fn through(
    description: &str,
    (routing_key, parameters): (&str, &Value),
    exchange: &str,
    messages: &[&str],
) -> Value {
    json!({
        "address": routing_key,
        "description": description,
        "parameters": parameters,
        "messages": references(messages),
        "bindings": { "amqp": {
            "is": "routingKey",
            "exchange": {
                "name": exchange, "type": "topic", "durable": true, "autoDelete": false, "vhost": "/",
            },
            "bindingVersion": BINDING_VERSION,
        } },
    })
}

fn queue(description: &str, name: &str, arguments: &Value, messages: &[&str]) -> Value {
    json!({
        "address": name,
        "description": description,
        "messages": references(messages),
        "bindings": { "amqp": {
            "is": "queue",
            "queue": { "name": name, "durable": true, "exclusive": false, "autoDelete": false, "vhost": "/" },
            "bindingVersion": BINDING_VERSION,
        } },
        "x-queue-arguments": arguments,
    })
}

fn references(messages: &[&str]) -> Map<String, Value> {
    let reference = |name: &&str| {
        ((*name).to_owned(), json!({ "$ref": format!("#/components/messages/{name}") }))
    };
    messages.iter().map(reference).collect()
}

fn operations() -> Value {
    let channel = |name: &str| json!({ "$ref": format!("#/channels/{name}") });
    let send = |name: &str, summary: &str| {
        json!({
            "action": "send", "channel": channel(name), "summary": summary,
            "bindings": { "amqp": {
                "deliveryMode": 2, "mandatory": true, "timestamp": name != "eventBatches",
                "bindingVersion": BINDING_VERSION,
            } },
        })
    };
    json!({
        "decideIntent": {
            "action": "receive", "channel": channel("intents"),
            "summary": "Each intent gets one decision, or becomes a dead letter",
            "bindings": { "amqp": { "ack": true, "bindingVersion": BINDING_VERSION } },
            "reply": {
                "address": { "location": "$message.header#/reply_to", "description": "The property reply_to" },
                "channel": channel("replies"),
            },
        },
        "tellDecision": send("orderEvents", "At least once for each decision, under the same id"),
        "tellDecisions": send("eventBatches", "The same, many in a message"),
        "tellOfSale": send("saleEvents", "At least once"),
        "setAside": send("deadLetters", "At least once"),
    })
}

fn messages() -> Value {
    let payload = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let event = |title: &str, data: &str| {
        json!({
            "title": title, "contentType": JSON, "payload": payload(data), "headers": payload("EventHeaders"),
            "bindings": { "amqp": { "messageType": "the event's type", "bindingVersion": BINDING_VERSION } },
        })
    };
    let batch = |title: &str| json!({ "title": title, "contentType": BATCH, "payload": payload("EventBatch") });
    let correlated = |mut message: Value| {
        message["correlationId"] = json!({
            "location": "$message.header#/correlation_id", "description": "The property correlation_id, as the intent has it",
        });
        message
    };
    let reply_headers = json!({
        "type": "object",
        "properties": {
            "reply_to": { "type": "string", "description": "The property of that name: the queue for the reply" },
            "correlation_id": { "type": "string", "description": "The property of that name: comes back with the reply" },
            header::ACCEPT: {
                "const": BATCH,
                "description": "Replies with the same correlation id may come together in a message",
            },
            header::TRACEPARENT: { "type": "string", "description": "The trace that the orders belong to" },
            header::TRACESTATE: { "type": "string" },
        },
    });
    json!({
        "IntentMessage": {
            "title": "Orders", "contentType": JSON, "payload": payload("IntentMessage"), "headers": reply_headers,
        },
        "OrderEvent": event("A decision", "Decision"),
        "SaleSoldOut": event("No unit is left", "SaleSoldOut"),
        "SaleRestocked": event("More units", "SaleRestocked"),
        "EventBatch": batch("Decisions"),
        "Reply": correlated(event("The decision of an order", "Decision")),
        "ReplyBatch": correlated(batch("Decisions with the same correlation id")),
        "DeadLetter": {
            "title": "What can't be decided", "description": "The bytes as they came; not always JSON",
            "headers": payload("DeadLetterHeaders"), "payload": {},
        },
    })
}
