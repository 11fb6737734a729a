//! The problems that each operation may answer with.

use std::collections::BTreeMap;

use axum::http::header;
use utoipa::IntoResponses;
use utoipa::openapi::{
    Content, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder, Type,
};

use crate::api::problem::ProblemType;

/// What an operation may answer instead: sets of problems.
macro_rules! problems {
    ($also:expr; $($name:ident: $($problem_type:ident)*;)*) => {$(
        pub(in crate::api) struct $name;

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
    BatchProblems: BadJson Unauthorized Forbidden Timeout TooLarge UnsupportedMediaType Invalid;
    OrderShowProblems: Unauthorized NotDecided UnknownOrder Archived Invalid LedgerUnavailable;
    EventProblems: Unauthorized Forbidden NoFeed NotKept Invalid BrokerUnavailable;
    WebhookRegisterProblems: BadJson Unauthorized Forbidden UnknownSale NoFeed Timeout TooLarge
        UnsupportedMediaType Invalid LedgerUnavailable;
    WebhookListProblems: Unauthorized Forbidden LedgerUnavailable;
    WebhookProblems: Unauthorized Forbidden UnknownWebhook Invalid LedgerUnavailable;
    WebhookReplayProblems: BadJson Unauthorized Forbidden UnknownWebhook UnknownSale NoFeed Timeout Replaying Archived
        TooLarge UnsupportedMediaType Invalid BrokerUnavailable LedgerUnavailable;
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
