//! The API's description: OpenAPI 3.1.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, OpenApi as Document};

use super::schemas::DecisionView;
use crate::api::batch::{LineAnswer, OrderLine};
use crate::api::problem::Body;
use crate::api::sales::SaleView;

/// Order intake for flash sales. Posting an order only puts it into a queue; workers decide it, once
/// and for ever.
#[derive(OpenApi)]
#[openapi(
    info(title = "floodgate", license(name = "MIT or Apache 2.0", identifier = "MIT OR Apache-2.0")),
    servers((url = "/")),
    paths(
        crate::api::orders::post, crate::api::orders::show, crate::api::batch::of_sale, crate::api::batch::of_all,
        crate::api::sales::list, crate::api::sales::show, crate::api::stream::sale,
        crate::api::operate::open, crate::api::operate::restock, crate::api::operate::verify, crate::api::operate::pause,
        crate::api::operate::resume, crate::api::operate::close,
        crate::api::stream::status, crate::api::feed::show,
        crate::api::webhooks::register, crate::api::webhooks::list, crate::api::webhooks::show,
        crate::api::webhooks::delete, crate::api::webhooks::enable, crate::api::webhooks::rotate,
        crate::api::webhooks::replays::replay, crate::api::webhooks::deliveries,
        crate::api::health::live, crate::api::health::ready, crate::api::metrics::show,
    ),
    components(schemas(Body, DecisionView, SaleView, OrderLine, LineAnswer)),
    tags(
        (name = "Orders", description = "With a key configured: a bearer token whose `sub` is the buyer, or one with scope `floodgate:submit`"),
        (name = "Sales", description = "For every client"),
        (name = "Events", description = "With a key configured: a bearer token with scope `floodgate:events` or `floodgate:admin`"),
        (name = "Webhooks", description = "With a key configured: a bearer token with scope `floodgate:admin`"),
        (name = "Operators", description = "With a key configured: a bearer token with scope `floodgate:admin`"),
        (name = "Health", description = "For orchestrators"),
    ),
)]
struct Described;

/// The API's description, of a server with a key.
pub fn openapi() -> Document {
    let mut document = Described::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some(
            "HS256, RS256, ES256 or EdDSA, as the configured key is; `sub` is the buyer",
        ))
        .build();
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme("bearerAuth", SecurityScheme::Http(bearer));
    document
}

/// What an `Idempotency-Key` may be where it is always the order id.
const KEY_AS_ORDER_ID: &str =
    r#"^(?!"?\.{1,2}"?$)([A-Za-z0-9._:-]{1,64}|"[A-Za-z0-9._:-]{1,64}")$"#;

/// The description of a server with or without a key: without one there are no tokens, so none is
/// asked for, none can tell who buys, and every client chooses order ids.
pub(in crate::api) fn described(with_key: bool) -> Value {
    let mut document = serde_json::to_value(openapi()).unwrap_or_default();
    document["webhooks"] = json!({ "event": { "post": sent_event() } });
    if !with_key {
        let paths = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
        for operation in paths.filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
            operation.as_object_mut().map(|operation| operation.remove("security"));
        }
        let order = &mut document["components"]["schemas"]["OrderRequest"];
        order["required"] = json!(["user_id", "quantity"]);
        order["properties"]["user_id"]["type"] = json!("string");
        let parameters = &mut document["paths"]["/v1/sales/{sale_id}/orders"]["post"]["parameters"];
        for parameter in parameters.as_array_mut().into_iter().flatten() {
            if parameter["name"] == "Idempotency-Key" {
                parameter["schema"]["pattern"] = json!(KEY_AS_ORDER_ID);
            }
        }
    }
    document
}

/// What a webhook gets; its receiver serves it.
fn sent_event() -> Value {
    let header = |(name, description): (&str, &str)| {
        json!({ "name": name, "in": "header", "required": true, "description": description,
                "schema": { "type": "string" } })
    };
    let text = json!({ "type": "string" });
    let attributes = ["specversion", "id", "source", "type", "subject", "time", "datacontenttype"];
    let mut properties: Map<String, Value> =
        attributes.iter().map(|name| ((*name).to_owned(), text.clone())).collect();
    properties.insert("data".to_owned(), json!({ "type": "object" }));
    let required: Vec<&String> = properties.keys().collect();
    let schema = json!({ "type": "object", "required": required, "properties": properties });
    let headers = [
        ("webhook-id", "Stands for the event's id: the same whenever the event comes"),
        ("webhook-timestamp", "When it was sent, in seconds since 1970"),
        (
            "webhook-signature",
            "`v1,` and base64, for each valid secret, separated by spaces: HMAC-SHA256 over the other two headers and \
             the body, joined by dots",
        ),
    ];
    json!({
        "operationId": "receiveEvent",
        "summary": "Receive an event",
        "description": "As the Standard Webhooks specification has it. Events come at least once: leave repeats out \
            by their id.",
        "tags": ["Webhooks"],
        "parameters": headers.map(header),
        "requestBody": { "required": true, "content": { "application/cloudevents+json": { "schema": schema } } },
        "responses": {
            "2XX": { "description": "It is processed. With any other status it comes again" },
            "410": { "description": "No more events are wanted: unless others are accepted, the webhook is disabled" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::Reason;

    fn all_operations(document: &Value) -> Vec<&Value> {
        let paths = document["paths"].as_object().unwrap();
        paths.values().flat_map(|item| item.as_object().unwrap().values()).collect()
    }

    #[test]
    fn operations_have_names_of_their_own_and_say_what_a_token_is_for() {
        let document = described(true);
        let operations = all_operations(&document);
        let mut names: Vec<_> =
            operations.iter().map(|o| o["operationId"].as_str().unwrap()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), operations.len());
        for operation in operations {
            let refuses = operation["responses"].get("401").is_some();
            assert_eq!(operation.get("security").is_some(), refuses, "{operation}");
        }
        assert_eq!(document["components"]["securitySchemes"]["bearerAuth"]["scheme"], "bearer");
    }

    #[test]
    fn without_a_key_no_token_is_asked_for_and_the_buyer_has_to_be_named() {
        let document = described(false);
        assert!(all_operations(&document).iter().all(|o| o.get("security").is_none()));
        let order = &document["components"]["schemas"]["OrderRequest"];
        assert_eq!(order["required"], json!(["user_id", "quantity"]));
        assert_eq!(order["properties"]["user_id"]["type"], "string");
        assert!(document.to_string().contains(&json!(KEY_AS_ORDER_ID).to_string()));
        let with_key = described(true);
        assert_eq!(
            with_key["components"]["schemas"]["OrderRequest"]["required"],
            json!(["quantity"])
        );
        assert!(!with_key.to_string().contains(&json!(KEY_AS_ORDER_ID).to_string()));
    }

    #[test]
    fn names_in_the_description_are_those_in_answers() {
        let schemas = &described(true)["components"]["schemas"];
        let phases: Vec<_> =
            crate::domain::sale::Phase::ALL.iter().map(|phase| phase.name()).collect();
        assert_eq!(schemas["Sale"]["properties"]["state"]["enum"], json!(phases));
        let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(schemas["Decision"]["properties"]["reason"]["enum"], json!(reasons));
    }
}
