//! The API's description: OpenAPI 3.1 at `/openapi.json`, and the same for people at `/docs`.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::Json;
use axum::response::Html;
use utoipa::openapi::{Content, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, OpenApi, ToSchema};

use super::problem::{Body, Kind};

/// Ids in paths.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct SaleIdParam(String);

#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9._:-]{1,64}$", example = "o-536365")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct OrderIdParam(String);

/// What a sale is doing.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum PhaseName {
    NotOpen,
    Open,
    SoldOut,
    Closed,
}

/// The final answer to an order.
#[derive(ToSchema)]
#[schema(as = Decision)]
#[allow(dead_code, reason = "only its schema is used; decisions are written by crate::event")]
pub(super) struct DecisionView {
    order_id: String,
    sale_id: String,
    user_id: String,
    quantity: u32,
    /// created, sold_out or rejected
    outcome: String,
    /// Why it was rejected: user_denied, purchase_limit, not_open, closed or expired
    reason: Option<String>,
    /// RFC 3339
    decided_at: String,
}

/// What an operation may answer instead: sets of problems.
macro_rules! problems {
    ($($name:ident: $($kind:ident)*;)*) => {$(
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                responses(&[$(Kind::$kind,)*])
            }
        }
    )*};
}

problems! {
    OrderProblems: BadJson BadHeader Unauthorized Forbidden UnknownSale NotOpen Closed SoldOut TooLarge
        UnsupportedMediaType Invalid IdempotencyMismatch RateLimited BrokerUnavailable LedgerUnavailable;
    OrderShowProblems: BadHeader Unauthorized NotDecided Invalid LedgerUnavailable;
    SaleListProblems: Invalid LedgerUnavailable;
    SaleProblems: UnknownSale Invalid LedgerUnavailable;
    DecisionStreamProblems: BadHeader Unauthorized Forbidden;
    OpenProblems: BadJson BadHeader Unauthorized Forbidden SaleDiffers TooLarge UnsupportedMediaType
        Invalid LedgerUnavailable;
    RestockProblems: BadJson BadHeader Unauthorized Forbidden UnknownSale AdjustmentConflict TooLarge
        UnsupportedMediaType Invalid LedgerUnavailable NotTold;
    CloseProblems: BadHeader Unauthorized Forbidden UnknownSale Invalid LedgerUnavailable;
}

/// What any operation may answer.
const EVERYWHERE: [Kind; 3] = [Kind::Timeout, Kind::Misdirected, Kind::Overloaded];

fn responses(kinds: &[Kind]) -> BTreeMap<String, RefOr<Response>> {
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kind in kinds.iter().chain(&EVERYWHERE) {
        texts.entry(kind.status().as_str().to_owned()).or_default().push(kind.slug());
    }
    let response = |slugs: Vec<&str>| {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        let description = format!("Problem: {}", slugs.join(", "));
        let response = ResponseBuilder::new().description(description);
        response.content("application/problem+json", content).build()
    };
    texts.into_iter().map(|(status, slugs)| (status, response(slugs).into())).collect()
}

/// Order intake for flash sales. Posting an order only puts it into a queue; workers decide it, once
/// and for ever.
#[derive(OpenApi)]
#[openapi(
    info(title = "floodgate", license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")),
    servers((url = "/")),
    paths(
        super::orders::post, super::orders::show,
        super::sales::list, super::sales::show, super::stream::sale,
        super::sales::open, super::sales::restock, super::sales::close, super::stream::decisions,
        super::health::live, super::health::ready,
    ),
    components(schemas(Body, DecisionView, super::sales::SaleView)),
    tags(
        (name = "Orders", description = "With a key configured: a bearer token whose `sub` is the buyer, or one with scope `floodgate:submit`"),
        (name = "Sales", description = "For everybody"),
        (name = "Operators", description = "With a key configured: a bearer token with scope `floodgate:admin`"),
        (name = "Health", description = "For orchestrators"),
    ),
)]
struct Described;

/// The API's description.
pub fn openapi() -> Document {
    let mut document = Described::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    document
}

pub(super) async fn json() -> Json<Document> {
    Json(openapi())
}

/// The description as a page, without a script.
pub(super) async fn page() -> Html<String> {
    let document = serde_json::to_value(openapi()).unwrap_or_default();
    Html(include_str!("page/docs.html").replace("{{operations}}", &operations(&document)).replace(
        "{{problems}}",
        &Kind::ALL.iter().fold(String::new(), |mut text, kind| {
            let (slug, title, meaning) = (kind.slug(), kind.title(), escaped(kind.meaning()));
            let status = kind.status().as_u16();
            let _ = write!(
                text,
                "<dt id=\"{slug}\"><code>{slug}</code> {status}: {title}</dt><dd>{meaning}</dd>"
            );
            text
        }),
    ))
}

fn operations(document: &serde_json::Value) -> String {
    let mut text = String::new();
    let paths = document["paths"].as_object().into_iter().flatten();
    for (path, method, operation) in paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, operation)| (path, method, operation))
    }) {
        let line = |key: &str| escaped(operation[key].as_str().unwrap_or_default());
        let (path, method) = (escaped(path), method.to_uppercase());
        let _ = write!(
            text,
            "<section><h3>{}</h3><p><code>{method} {path}</code></p><p>{}</p><table><caption>Answers</caption>",
            line("summary"),
            line("description")
        );
        for (status, response) in operation["responses"].as_object().into_iter().flatten() {
            let description = escaped(response["description"].as_str().unwrap_or_default());
            let _ = write!(text, "<tr><th scope=\"row\">{status}</th><td>{description}</td></tr>");
        }
        text.push_str("</table></section>");
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_described_is_on_the_page() {
        let document = serde_json::to_value(openapi()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        assert!(!document.to_string().contains("nullable"));
        let Html(page) = page().await;
        for path in document["paths"].as_object().unwrap().keys() {
            assert!(page.contains(&escaped(path)), "{path}");
        }
        for kind in Kind::ALL {
            assert!(page.contains(&format!("id=\"{}\"", kind.slug())));
        }
    }
}
