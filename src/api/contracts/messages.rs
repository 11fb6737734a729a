//! The messages of producers and subscribers, as JSON Schema 2020-12.

use serde_json::{Map, Value, json};

use super::openapi;
use crate::broker::topology::header;
use crate::domain::intent::Limits;
use crate::domain::order::{MAX_ID_BYTES, Quantity};

/// Where OpenAPI and AsyncAPI documents have their schemas, and where a schema that stands alone has those it names.
const COMPONENTS: &str = "#/components/schemas/";
const DEFINITIONS: &str = "#/$defs/";

/// The schemas of what stands in messages, by their names. They name each other as components of a document.
pub(super) fn schemas(limits: Limits) -> Map<String, Value> {
    let named = |name: &str| json!({ "$ref": format!("{COMPONENTS}{name}") });
    let cloud_event = attributes("");
    let schemas = [
        ("Intent", intent()),
        (
            "IntentMessage",
            json!({
                "description": "One intent, or many, each of which is decided on its own",
                "oneOf": [
                    named("Intent"),
                    { "type": "array", "items": named("Intent"), "minItems": 1, "maxItems": limits.max_intents },
                ],
            }),
        ),
        ("Decision", decision()),
        ("SaleSoldOut", sale_event(&[("sold_out_at", time("When the last unit was sold"))])),
        (
            "SaleRestocked",
            sale_event(&[
                ("adjustment_id", id("Names the restock in its sale", "._:-", "delivery-7")),
                ("units", quantity("Units added")),
                ("restocked_at", time("When they were added")),
            ]),
        ),
        ("CloudEvent", structured(cloud_event, &named("Decision"))),
        (
            "EventBatch",
            json!({
                "description": "Events of orders in the JSON batch format of CloudEvents",
                "type": "array", "minItems": 1, "items": named("CloudEvent"),
            }),
        ),
        ("EventHeaders", headers(attributes("cloudEvents_"))),
        ("DeadLetterHeaders", dead_letter_headers()),
    ];
    schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// Schema `name` of `all`, as a standalone document.
pub(super) fn alone(all: &Map<String, Value>, name: &str) -> Option<Value> {
    let mut schema = all.get(name)?.clone();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(name);
    let mut definitions = Map::new();
    let mut text = schema.to_string();
    // What is named may name others; none names itself.
    while let Some(other) =
        all.keys().find(|other| !definitions.contains_key(*other) && text.contains(&quoted(other)))
    {
        text.push_str(&all[other].to_string());
        definitions.insert(other.clone(), all[other].clone());
    }
    if !definitions.is_empty() {
        schema["$defs"] = definitions.into();
    }
    let text = schema.to_string().replace(COMPONENTS, DEFINITIONS);
    serde_json::from_str(&text).ok()
}

fn quoted(name: &str) -> String {
    format!("\"{COMPONENTS}{name}\"")
}

/// An id: letters, digits and the characters of `extra`, as [`crate::domain::order`] reads it.
fn id(description: &str, extra: &str, example: &str) -> Value {
    let dots = if extra.contains('.') { r"(?!\.{1,2}$)" } else { "" };
    json!({
        "description": description, "type": "string", "examples": [example],
        "pattern": format!("^{dots}[A-Za-z0-9{extra}]{{1,{MAX_ID_BYTES}}}$"),
    })
}

fn sale_id() -> Value {
    id("The sale", "_-", "bottles")
}

fn quantity(description: &str) -> Value {
    json!({ "description": description, "type": "integer", "minimum": 1, "maximum": Quantity::MAX })
}

fn time(description: &str) -> Value {
    json!({ "description": description, "type": "string", "format": "date-time" })
}

fn intent() -> Value {
    let mut submitted_at = time(
        "Counts for the sale's window and for expiry, if it is not later than the ledger's time. Without it the \
         message's timestamp counts, and without that the ledger's time",
    );
    submitted_at["type"] = json!(["string", "null"]);
    json!({
        "description": "A request to buy. Fields that are not named here are ignored",
        "type": "object",
        "required": ["order_id", "sale_id", "user_id", "quantity"],
        "properties": {
            "order_id": id("Names the order in its sale; the same id is the same order", "._:-", "o-536365"),
            "sale_id": sale_id(),
            "user_id": id("The buyer", "._:-", "u-17850"),
            "quantity": quantity("Units wanted"),
            "submitted_at": submitted_at,
        },
    })
}

/// A decision, as HTTP has it too.
fn decision() -> Value {
    let document = serde_json::to_value(openapi()).unwrap_or_default();
    document["components"]["schemas"]["Decision"].clone()
}

/// What all events of sales have, and `more`.
fn sale_event(more: &[(&str, Value)]) -> Value {
    let version = json!({
        "description": "Of two events of a sale, the one with the higher version holds", "type": "integer", "minimum": 1,
    });
    let stock = json!({ "description": "Units on offer, sold ones included", "type": "integer", "minimum": 0 });
    let common = [("sale_id", sale_id()), ("version", version), ("stock", stock)];
    let all: Map<String, Value> = common
        .iter()
        .chain(more)
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    let required: Vec<&String> = all.keys().collect();
    json!({ "type": "object", "required": required, "properties": all })
}

/// The attributes of an event, with `prefix` before their names, and whether each is always there.
fn attributes(prefix: &str) -> Vec<(String, bool, Value)> {
    let text = |description: &str| json!({ "description": description, "type": "string" });
    let mut id = text("The same at every repeat: deduplicate by it");
    id["pattern"] = json!("^(order|sale):");
    let mut kind = text("What it tells");
    kind["pattern"] = json!(r"^dev\.floodgate\.(order|sale)\.[a-z_]+\.v[0-9]+$");
    let trace = || text("The trace that the order belongs to; may differ between repeats");
    let always = [
        ("specversion", json!({ "const": "1.0" })),
        ("id", id),
        ("source", text("A slash and the deployment's namespace")),
        ("type", kind),
        ("subject", text("<sale>/<order>, or the sale")),
        ("time", time("When it was decided, or happened")),
    ];
    let mut all: Vec<_> = always
        .into_iter()
        .map(|(name, schema)| (format!("{prefix}{name}"), true, schema))
        .collect();
    // Of W3C, and never with a prefix.
    all.extend(["traceparent", "tracestate"].map(|name| (name.to_owned(), false, trace())));
    all
}

fn object(attributes: Vec<(String, bool, Value)>) -> Value {
    let required: Vec<String> = attributes
        .iter()
        .filter(|(_, is_required, _)| *is_required)
        .map(|(name, ..)| name.clone())
        .collect();
    let properties: Map<String, Value> =
        attributes.into_iter().map(|(name, _, schema)| (name, schema)).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

fn headers(attributes: Vec<(String, bool, Value)>) -> Value {
    let mut schema = object(attributes);
    schema["description"] = json!("The attributes of an event in binary mode");
    schema
}

/// An event in structured mode.
fn structured(mut attributes: Vec<(String, bool, Value)>, data: &Value) -> Value {
    attributes.push(("datacontenttype".into(), true, json!({ "const": "application/json" })));
    attributes.push(("data".into(), true, data.clone()));
    let mut schema = object(attributes);
    schema["description"] = json!("An event in structured mode");
    schema
}

/// The headers by which floodgate says why; the message's other headers stay, within bounds.
fn dead_letter_headers() -> Value {
    let text = |description: &str| json!({ "description": description, "type": "string" });
    let headers = [
        (header::REASON, text("Why it can't be decided: one word. New ones may come")),
        (header::DETAIL, text("The same for a person to read")),
        (header::QUEUE, text("The queue it came from")),
        (header::AT, time("When it was dead-lettered")),
        (header::ID, text("The same if it is dead-lettered again")),
        (header::PRIORITY, text("The message's priority")),
        (header::EXPIRATION, text("The message's expiration")),
        (header::CUT, text("What is not kept: the length of the body, names of headers")),
    ];
    let mut schema =
        object(headers.into_iter().map(|(name, schema)| (name.into(), false, schema)).collect());
    schema["description"] = json!(
        "Why it is dead. None of them is there if RabbitMQ has dead-lettered it by itself; x-death tells then"
    );
    schema
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::intent::parse;

    const LIMITS: Limits = Limits { max_body_bytes: 4096, max_intents: 3 };

    fn ids() -> impl Strategy<Value = Value> {
        prop_oneof![
            4 => "[A-Za-z0-9_-]{1,64}".prop_map(Value::from),
            2 => "[A-Za-z0-9._:-]{0,66}".prop_map(Value::from),
            1 => prop::sample::select(vec![json!("."), json!(".."), json!("a b"), json!("\u{e9}"), json!(7), Value::Null, json!([])]),
        ]
    }

    fn quantities() -> impl Strategy<Value = Value> {
        let edges = vec![
            json!(0),
            json!(1),
            json!(1.0),
            json!(1.5),
            json!(-1),
            json!(1e3),
            json!(1_000_000),
            json!(1_000_001),
            json!(1e300),
            json!("1"),
            Value::Null,
            json!(true),
        ];
        prop_oneof![(1..=1_000_000_u32).prop_map(Value::from), prop::sample::select(edges)]
    }

    fn times() -> impl Strategy<Value = Value> {
        let edges = vec![
            json!("2026-11-27T08:00:00Z"),
            json!("2026-11-27T08:00:00.123+01:00"),
            json!("yesterday"),
            json!("2026-13-27T08:00:00Z"),
            json!(""),
            json!(1),
            Value::Null,
        ];
        prop::sample::select(edges)
    }

    proptest! {
        /// The schema says of each object what the parser says of it.
        #[test]
        fn an_intent_is_valid_by_its_schema_if_it_is_accepted(
            order_id in prop::option::weighted(0.95, ids()),
            sale_id in prop::option::weighted(0.95, ids()),
            user_id in prop::option::weighted(0.95, ids()),
            quantity in prop::option::weighted(0.95, quantities()),
            submitted_at in prop::option::of(times()),
            other in prop::option::of(ids()),
        ) {
            let named = [
                ("order_id", order_id), ("sale_id", sale_id), ("user_id", user_id), ("quantity", quantity),
                ("submitted_at", submitted_at), ("other", other),
            ];
            let intent: Map<String, Value> =
                named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            let intent = Value::Object(intent);
            let schema = alone(&schemas(LIMITS), "Intent").unwrap();
            let options = jsonschema::draft202012::options().should_validate_formats(true);
            let is_valid = options.build(&schema).unwrap().is_valid(&intent);
            let body = intent.to_string();
            let parsed = parse(body.as_bytes(), LIMITS).remove(0).intent;
            prop_assert_eq!(is_valid, parsed.is_ok(), "{}: {:?}", body, parsed);
        }
    }

    #[test]
    fn each_schema_stands_alone_and_names_what_there_is() {
        let all = schemas(LIMITS);
        for name in all.keys() {
            let schema = alone(&all, name).unwrap();
            jsonschema::draft202012::meta::validate(&schema).unwrap();
            assert!(!schema.to_string().contains(COMPONENTS), "{name}");
            jsonschema::draft202012::new(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(alone(&all, "Nothing").is_none());
    }
}
