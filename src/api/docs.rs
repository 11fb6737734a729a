//! The API's description: OpenAPI 3.1 at `/openapi.json`, and the same for people at `/docs`.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::Html;
use serde_json::{Map, Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, Content, HeaderBuilder, ObjectBuilder, OpenApi as Document, Ref, RefOr, Response,
    ResponseBuilder, Type,
};
use utoipa::{IntoResponses, OpenApi, ToSchema};

use super::Shared;
use super::problem::{Body, Problem, ProblemType};

/// Ids in paths.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct SaleIdParam(String);

#[derive(ToSchema)]
#[schema(value_type = String, pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "o-536365")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct OrderIdParam(String);

/// What a sale is doing.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum PhaseName {
    NotOpen,
    Open,
    Paused,
    SoldOut,
    Closed,
}

/// How an operator may pause a sale.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum PauseModeName {
    Refuse,
    Hold,
}

/// How a sale is paused.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum PausedName {
    Refuse,
    Hold,
    Restored,
}

/// What is decided of an order.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum OutcomeName {
    Created,
    SoldOut,
    Rejected,
}

/// Why an order is rejected.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum ReasonName {
    UserDenied,
    PurchaseLimit,
    NotOpen,
    Closed,
    Paused,
    Expired,
}

/// The final answer to an order.
#[derive(ToSchema)]
#[schema(as = Decision)]
#[allow(
    dead_code,
    reason = "only its schema is used; decisions are written by crate::domain::event"
)]
pub(super) struct DecisionView {
    order_id: String,
    sale_id: String,
    user_id: String,
    #[schema(minimum = 1, maximum = 1_000_000)]
    quantity: u32,
    #[schema(inline)]
    outcome: OutcomeName,
    #[schema(inline, value_type = ReasonName, required = false)]
    reason: Option<ReasonName>,
    #[schema(format = DateTime)]
    decided_at: String,
}

/// What an operation may answer instead: sets of problems.
macro_rules! problems {
    ($also:expr; $($name:ident: $($problem_type:ident)*;)*) => {$(
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                responses([$(ProblemType::$problem_type,)*].into_iter().chain($also))
            }
        }
    )*};
}

problems! { [];
    LiveProblems: Overloaded;
    ReadyProblems: Overloaded BrokerUnavailable LedgerUnavailable KeysUnavailable;
    MetricsProblems: BadHeader CrossOrigin Misdirected Unauthorized Forbidden;
}

problems! { EVERYWHERE;
    OrderProblems: BadJson Unauthorized Forbidden UnknownSale Timeout NotOpen Closed SalePaused SoldOut
        TooLarge UnsupportedMediaType Invalid IdempotencyMismatch RateLimited QueueOverloaded
        BrokerUnavailable LedgerUnavailable;
    OrderShowProblems: Unauthorized NotDecided UnknownOrder Invalid LedgerUnavailable;
    SaleListProblems: Invalid LedgerUnavailable;
    SaleProblems: UnknownSale Invalid LedgerUnavailable;
    StatusStreamProblems: Unauthorized Forbidden;
    OpenProblems: BadJson Unauthorized Forbidden Timeout SaleDiffers TooLarge
        UnsupportedMediaType Invalid LedgerUnavailable;
    RestockProblems: BadJson Unauthorized Forbidden UnknownSale Timeout AdjustmentConflict
        TooLarge UnsupportedMediaType Invalid LedgerUnavailable NotTold;
    VerificationProblems: BadJson Unauthorized Forbidden UnknownSale Timeout TooLarge
        UnsupportedMediaType Invalid LedgerUnavailable;
    PauseProblems: BadJson Unauthorized Forbidden UnknownSale Timeout LedgerRestored TooLarge
        UnsupportedMediaType Invalid LedgerUnavailable;
    ResumeProblems: Unauthorized Forbidden UnknownSale LedgerRestored Invalid LedgerUnavailable;
    CloseProblems: Unauthorized Forbidden UnknownSale Invalid LedgerUnavailable;
}

/// What any operation of the API may answer.
const EVERYWHERE: [ProblemType; 8] = [
    ProblemType::BadRequest,
    ProblemType::BadHeader,
    ProblemType::CrossOrigin,
    ProblemType::HeadTooLarge,
    ProblemType::Misdirected,
    ProblemType::TooManyAtOnce,
    ProblemType::Overloaded,
    ProblemType::NoAnswer,
];

fn responses(
    problem_types: impl Iterator<Item = ProblemType>,
) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<String, Vec<ProblemType>> = BTreeMap::new();
    // Wherever a token is needed, what it is verified with can be missing.
    let with_token = |problem_type| {
        if problem_type == ProblemType::Unauthorized {
            vec![problem_type, ProblemType::KeysUnavailable]
        } else {
            vec![problem_type]
        }
    };
    for problem_type in problem_types.flat_map(with_token) {
        by_status.entry(problem_type.status().as_str().to_owned()).or_default().push(problem_type);
    }
    by_status
        .into_iter()
        .map(|(status, problem_types)| (status, response(&problem_types).into()))
        .collect()
}

/// The answer of some problems, all of one status.
fn response(problem_types: &[ProblemType]) -> Response {
    let slugs: Vec<&str> = problem_types.iter().map(|problem_type| problem_type.slug()).collect();
    let content = Content::new(Some(Ref::from_schema_name("Problem")));
    let mut response = ResponseBuilder::new()
        .description(format!("Problem: {}", slugs.join(", ")))
        .content("application/problem+json", content);
    let whole = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let text = ObjectBuilder::new().schema_type(Type::String);
    for (comes, name, schema, meaning) in [
        (
            problem_types.iter().any(|problem_type| problem_type.retry_after()),
            header::RETRY_AFTER,
            whole,
            "Seconds",
        ),
        (
            problem_types.contains(&ProblemType::Unauthorized),
            header::WWW_AUTHENTICATE,
            text,
            "What is wrong with the token, RFC 6750",
        ),
    ] {
        if comes {
            let described =
                HeaderBuilder::new().schema(Some(schema.build())).description(Some(meaning));
            response = response.header(name.as_str(), described.build());
        }
    }
    response.build()
}

/// Order intake for flash sales. Posting an order only puts it into a queue; workers decide it, once
/// and for ever.
#[derive(OpenApi)]
#[openapi(
    info(title = "floodgate", license(name = "MIT or Apache 2.0", identifier = "MIT OR Apache-2.0")),
    servers((url = "/")),
    paths(
        super::orders::post, super::orders::show,
        super::sales::list, super::sales::show, super::stream::sale,
        super::operate::open, super::operate::restock, super::operate::verify, super::operate::pause,
        super::operate::resume, super::operate::close,
        super::stream::status,
        super::health::live, super::health::ready, super::metrics::show,
    ),
    components(schemas(Body, DecisionView, super::sales::SaleView)),
    tags(
        (name = "Orders", description = "With a key configured: a bearer token whose `sub` is the buyer, or one with scope `floodgate:submit`"),
        (name = "Sales", description = "For every client"),
        (name = "Operators", description = "With a key configured: a bearer token with scope `floodgate:admin`"),
        (name = "Health", description = "For orchestrators"),
    ),
)]
struct Described;

/// The API's description.
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
fn described(with_key: bool) -> Value {
    let mut document = serde_json::to_value(openapi()).unwrap_or_default();
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

pub(super) async fn json(State(api): State<Shared>) -> Json<Value> {
    Json(described(api.token_verifier.is_some()))
}

/// The description as a page, without a script.
pub(super) async fn page() -> Html<String> {
    let document = described(true);
    let problems = ProblemType::ALL.iter().fold(String::new(), |mut text, problem_type| {
        let _ = write!(text, "{}", Explained(*problem_type));
        text
    });
    let page = include_str!("page/docs.html").replace("{{operations}}", &operations(&document));
    Html(page.replace("{{problems}}", &problems))
}

/// What one type of problem means: the page that its `type` is the address of.
pub(super) async fn problem(Path(name): Path<String>) -> Result<Html<String>, Problem> {
    let Some(problem_type) =
        ProblemType::ALL.iter().find(|problem_type| problem_type.slug() == name)
    else {
        return Err(ProblemType::NotFound.because("there is no such problem; /docs has all"));
    };
    let page = include_str!("page/problem.html").replace("{{title}}", problem_type.title());
    Ok(Html(page.replace("{{problem}}", &Explained(*problem_type).to_string())))
}

/// A type of problem as an item of a list in HTML.
struct Explained(ProblemType);

impl std::fmt::Display for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (slug, title, meaning) = (self.0.slug(), self.0.title(), escaped(self.0.meaning()));
        let status = self.0.status().as_u16();
        write!(f, "<dt id=\"{slug}\"><code>{slug}</code> {status}: {title}</dt><dd>{meaning}</dd>")
    }
}

fn operations(document: &Value) -> String {
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
    use crate::domain::decision::Reason;

    #[tokio::test]
    async fn everything_described_is_on_the_page() {
        let document = described(true);
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        assert!(!document.to_string().contains("nullable"));
        let Html(page) = page().await;
        for path in document["paths"].as_object().unwrap().keys() {
            assert!(page.contains(&escaped(path)), "{path}");
        }
        for problem_type in ProblemType::ALL {
            assert!(page.contains(&format!("id=\"{}\"", problem_type.slug())));
        }
    }

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
