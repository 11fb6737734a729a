//! What goes wrong, as clients see it: RFC 9457, `application/problem+json`. The only place that
//! maps errors to statuses.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::broker::BrokerError;
use crate::domain::order::InvalidId;
use crate::ledger::LedgerError;
use crate::sales::operations::OperationError;
use crate::webhooks::NoWebhookId;

/// Where the pages of problems are.
pub(super) const PAGES: &str = "/problems/";
const MEDIA_TYPE: &str = "application/problem+json";
/// The largest answer that is part of another one.
const MAX_PART_BYTES: usize = 1 << 16;
/// Seconds after which it makes sense to try again what failed because something is unavailable or full.
const RETRY_AFTER_S: u32 = 1;

macro_rules! problem_types {
    ($($(#[$doc:meta])* $problem_type:ident, $slug:literal, $status:ident, $title:literal, $meaning:literal;)*) => {
        /// Every type of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemType { $(#[doc = $meaning] $problem_type,)* }

        impl ProblemType {
            /// Every type, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$problem_type,)*];

            /// The word in its `type`.
            pub fn slug(self) -> &'static str {
                match self { $(Self::$problem_type => $slug,)* }
            }

            /// The status it comes with.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$problem_type => StatusCode::$status,)* }
            }

            /// Its `title`, the same at every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Self::$problem_type => $title,)* }
            }

            /// What it means and what to do, for the documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$problem_type => $meaning,)* }
            }
        }
    };
}

problem_types! {
    BadRequest, "bad-request", BAD_REQUEST, "The request is not HTTP",
        "What arrived can't be read as a request of HTTP/1.1.";
    BadJson, "bad-json", BAD_REQUEST, "The body is not JSON",
        "The body could not be read as JSON at all. Mend the request; repeating it changes nothing.";
    BadHeader, "bad-header", BAD_REQUEST, "A header can't be read",
        "A header such as Idempotency-Key or Authorization has a value that is not accepted, or is there twice.";
    Unauthorized, "unauthorized", UNAUTHORIZED, "A valid token is needed",
        "The request has no bearer token, or one that is not accepted; WWW-Authenticate says why.";
    Forbidden, "forbidden", FORBIDDEN, "The token does not allow this",
        "The token is valid, but it is another user's, or lacks the scope that this needs.";
    CrossOrigin, "cross-origin", FORBIDDEN, "The request is from another site's page",
        "Without a key the API answers no page but its own, so that no other can order or operate for who opens it.";
    NotFound, "not-found", NOT_FOUND, "There is nothing at this path",
        "The path is not one of this API's.";
    UnknownSale, "unknown-sale", NOT_FOUND, "There is no such sale",
        "No sale has this id. A sale that was just opened is known everywhere within a second or two.";
    NotDecided, "not-decided", NOT_FOUND, "This order is not decided yet",
        "This server has taken the order, and it waits for its decision: ask again after Retry-After.";
    UnknownOrder, "unknown-order", NOT_FOUND, "No such order is known",
        "There is no decision, and this server has not taken the order lately. If another server or a producer did, it waits for its decision: ask again after Retry-After.";
    UnknownWebhook, "unknown-webhook", NOT_FOUND, "There is no such webhook",
        "No webhook has this id; it was deleted, or never registered.";
    NoFeed, "no-feed", NOT_FOUND, "This deployment keeps no feed",
        "The setting feed.enabled is false.";
    NotKept, "not-kept", GONE, "What follows is not kept any more",
        "The feed keeps events for feed.max_age_s and up to feed.max_bytes. Read again without `after`, and have an operator run `floodgate events replay` for the sales of the time between.";
    Archived, "archived", GONE, "The decision is archived",
        "The order was decided long ago, as the detail says, and the rest of its decision is in a file. An operator brings it back with `floodgate sale restore`.";
    MethodNotAllowed, "method-not-allowed", METHOD_NOT_ALLOWED, "The path has no such method",
        "The header Allow names the methods that the path has.";
    Timeout, "timeout", REQUEST_TIMEOUT, "The request took too long to arrive",
        "The head or the body did not arrive in time. Nothing was queued.";
    NotOpen, "not-open", CONFLICT, "The sale has not opened yet",
        "Order again when the sale has opened. Nothing was queued.";
    Closed, "closed", CONFLICT, "The sale is over",
        "Nothing was queued.";
    SalePaused, "sale-paused", CONFLICT, "The sale is paused",
        "An operator has paused the sale, and orders are refused meanwhile. Nothing was queued. Order again when it goes on.";
    LedgerRestored, "ledger-restored", CONFLICT, "The sale is held until its ledger is accepted",
        "The ledger has lost what it had committed of the sale, as after a restore from a backup. Nothing was changed; `floodgate sale accept-ledger` goes on.";
    SaleDiffers, "sale-differs", CONFLICT, "The sale is open with another definition",
        "The sale exists and keeps the definition it has. To add units, restock it.";
    Replaying, "replaying", CONFLICT, "Another sale is being sent again",
        "A webhook is sent one sale again at a time. Repeat the request when `replaying` of the webhook is null.";
    AdjustmentConflict, "adjustment-conflict", CONFLICT, "The adjustment id was used before",
        "The adjustment id stands for another restock. Give each restock another id.";
    SoldOut, "sold-out", GONE, "The sale is sold out",
        "No unit is left. Nothing was queued. The sale may be restocked.";
    TooLarge, "too-large", PAYLOAD_TOO_LARGE, "The body is too large",
        "The body is larger than api.max_body_bytes.";
    HeadTooLarge, "head-too-large", REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large",
        "The path and the headers together are larger than api.max_header_bytes, or there are more than 64 headers.";
    UnsupportedMediaType, "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The body must be JSON",
        "Send Content-Type: application/json, and no Content-Encoding.";
    Misdirected, "misdirected", MISDIRECTED_REQUEST, "The request is for another host",
        "Without a key the API answers only requests for localhost, so that no web page can reach it under another name.";
    Invalid, "invalid-request", UNPROCESSABLE_ENTITY, "The request is not valid",
        "The JSON is not what this path accepts; the detail names the field and what is accepted.";
    IdempotencyMismatch, "idempotency-mismatch", UNPROCESSABLE_ENTITY, "The id was used for another order",
        "The order id or Idempotency-Key stands for an order with other contents. Use a new one for a new order.";
    RateLimited, "rate-limited", TOO_MANY_REQUESTS, "This buyer posts orders too fast",
        "Wait for Retry-After. Nothing was queued.";
    TooManyAtOnce, "too-many-at-once", TOO_MANY_REQUESTS, "This client has too many requests at once",
        "Wait until some of them are answered, or end some streams. Nothing was queued. Behind a proxy that api.trusted_proxies does not name, all clients are one.";
    BrokerUnavailable, "broker-unavailable", SERVICE_UNAVAILABLE, "Orders can't be queued for now",
        "The queue is unavailable or takes no messages. Whether this order was taken is unknown: repeat it with the same order id or Idempotency-Key.";
    LedgerUnavailable, "ledger-unavailable", SERVICE_UNAVAILABLE, "The ledger can't be read for now",
        "Repeat the request after Retry-After.";
    KeysUnavailable, "keys-unavailable", SERVICE_UNAVAILABLE, "Tokens can't be verified for now",
        "The keys at api.jwt_jwks could not be read since the server was started. Repeat the request after Retry-After.";
    Overloaded, "overloaded", SERVICE_UNAVAILABLE, "Too many requests at once",
        "Nothing was queued. Repeat the request after Retry-After.";
    QueueOverloaded, "queue-overloaded", SERVICE_UNAVAILABLE, "An order would wait too long",
        "So many orders are ahead that this one would wait for longer than api.max_predicted_wait_s. This request queued nothing; an earlier one with the same id may have: ask for its decision. Repeat the request after Retry-After.";
    NoAnswer, "no-answer", SERVICE_UNAVAILABLE, "The request could not be answered in time",
        "Something that was needed is slow. Whether an order was taken is unknown: repeat it with the same order id or Idempotency-Key.";
    NotTold, "not-told", SERVICE_UNAVAILABLE, "The change holds, but subscribers were not told",
        "Repeat the request with the same adjustment id: it changes nothing twice, and tells subscribers.";
    Internal, "internal", INTERNAL_SERVER_ERROR, "Something is wrong with floodgate",
        "This is a defect or a damaged ledger; the server's log says more.";
}

/// One occurrence of a problem.
#[derive(Debug, Clone)]
pub struct Problem {
    r#type: ProblemType,
    detail: Box<str>,
    retry_after_s: Option<u32>,
    challenge: Option<Box<str>>,
    place: Option<Box<Place>>,
}

/// Where an order stands that is not decided yet.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(super) struct Place {
    /// About how many messages with orders are ahead of it
    pub ahead: u64,
    /// About how many seconds it has to wait yet; missing while that can't be told
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = f64)]
    pub wait_s: Option<f64>,
}

/// The body of a problem, RFC 9457 section 3.1.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    /// Names the type, and is the address of a page that explains it
    #[serde(rename = "type")]
    #[schema(format = "uri", example = "https://shop.example/problems/sold-out")]
    problem_type: String,
    /// The type in words
    #[schema(example = "The sale is sold out")]
    title: &'a str,
    /// The HTTP status
    #[schema(example = 410)]
    status: u16,
    /// What was wrong this time, and what is accepted
    detail: &'a str,
    /// The path that was asked for
    instance: &'a str,
    /// Of an order that is queued here and not decided: where it stands
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = Place)]
    place: Option<Place>,
}

impl ProblemType {
    /// Whether it comes with `Retry-After`: it passes by itself.
    pub(super) fn retry_after(self) -> bool {
        let passes = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        passes.contains(&self.status()) || [Self::NotDecided, Self::UnknownOrder].contains(&self)
    }

    /// A problem of this type.
    pub(super) fn because(self, detail: impl Into<String>) -> Problem {
        let retry_after_s = self.retry_after().then_some(RETRY_AFTER_S);
        let detail = detail.into().into_boxed_str();
        Problem { r#type: self, detail, retry_after_s, challenge: None, place: None }
    }
}

impl Problem {
    /// The status of its answer.
    pub(super) fn status(&self) -> StatusCode {
        self.r#type.status()
    }

    /// Its type.
    pub fn problem_type(&self) -> ProblemType {
        self.r#type
    }

    /// The same, with another time to wait, in whole seconds, at least one.
    pub(super) fn retry_after(mut self, wait: std::time::Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.retry_after_s = Some(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX));
        self
    }

    /// The same, with where the order stands.
    pub(super) fn place(mut self, place: Option<Place>) -> Self {
        self.place = place.map(Box::new);
        self
    }

    /// The same, with a `WWW-Authenticate` that says what is wrong with the token, RFC 6750.
    pub(super) fn challenge(mut self, challenge: String) -> Self {
        self.challenge = Some(challenge.into_boxed_str());
        self
    }
}

/// Answers with the status alone; `Problems` adds what the path and the server's address are needed for.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.r#type.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes problems as a server that is known by some address.
pub(super) struct Problems {
    /// Where the page of a type is, up to its slug.
    types: String,
}

impl Problems {
    /// Problems of the server at `public_url`, which may end with a slash.
    pub(super) fn of(public_url: &str) -> Self {
        Self { types: format!("{}{PAGES}", public_url.trim_end_matches('/')) }
    }

    /// Status and body of an answer to a request for `path` that is part of a larger one. An answer too large to be one
    /// is none.
    pub(super) async fn parts(
        &self,
        answered: Result<Response, Problem>,
        path: &str,
    ) -> (StatusCode, Vec<u8>) {
        let mut response = answered.unwrap_or_else(IntoResponse::into_response);
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            return (problem.status(), self.body(&problem, path));
        }
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), MAX_PART_BYTES).await;
        (status, body.map(Vec::from).unwrap_or_default())
    }

    fn body(&self, problem: &Problem, path: &str) -> Vec<u8> {
        let Problem { r#type: problem_type, detail, place, .. } = problem;
        let body = Body {
            problem_type: format!("{}{}", self.types, problem_type.slug()),
            title: problem_type.title(),
            status: problem_type.status().as_u16(),
            detail,
            instance: path,
            place: place.as_deref().copied(),
        };
        serde_json::to_vec(&body)
            .unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
    }

    /// The whole answer to a request for `path`.
    pub(super) fn response(&self, problem: Problem, path: &str) -> Response {
        let mut response = (problem.r#type.status(), self.body(&problem, path)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = problem.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(value) = problem.challenge.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }

    /// The bytes of an answer where there is no request, after which the connection is closed.
    pub(super) fn closing(&self, problem: &Problem) -> Vec<u8> {
        let body = self.body(problem, "/");
        let (status, length) = (problem.r#type.status(), body.len());
        let mut answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {length}\r\n\
             x-request-id: {}\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n\
             connection: close\r\n\r\n",
            Uuid::now_v7()
        )
        .into_bytes();
        answer.extend(body);
        answer
    }
}

impl From<NoWebhookId> for Problem {
    fn from(invalid: NoWebhookId) -> Self {
        ProblemType::Invalid.because(invalid.to_string())
    }
}

impl From<InvalidId> for Problem {
    fn from(invalid: InvalidId) -> Self {
        ProblemType::Invalid.because(invalid.to_string())
    }
}

/// Errors of servers are logged here, where they are handled; clients get to know the type only. That a server
/// is unavailable is logged once, by its adapter.
impl From<&LedgerError> for Problem {
    fn from(error: &LedgerError) -> Self {
        match error {
            LedgerError::Transient(_) => {
                tracing::debug!(%error, "a request could not be answered");
                ProblemType::LedgerUnavailable.because("the ledger is unavailable")
            }
            LedgerError::Permanent(_) => {
                tracing::error!(%error, "a request could not be answered");
                ProblemType::Internal.because("the ledger refused the request")
            }
        }
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        Self::from(&error)
    }
}

impl From<&BrokerError> for Problem {
    fn from(error: &BrokerError) -> Self {
        tracing::debug!(%error, "an order could not be queued");
        ProblemType::BrokerUnavailable.because(match error {
            BrokerError::Full(_) => "the queue takes no more orders for now",
            _ => "the queue is unavailable",
        })
    }
}

impl From<OperationError> for Problem {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Ledger(error) => error.into(),
            OperationError::NotTold(error) => {
                tracing::warn!(%error, "subscribers could not be told of a change");
                ProblemType::NotTold.because("the change is recorded")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_type_has_a_name_that_can_stand_in_a_link() {
        let mut slugs: Vec<_> =
            ProblemType::ALL.iter().map(|problem_type| problem_type.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), ProblemType::ALL.len());
        assert!(slugs.iter().all(|slug| slug.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }

    #[test]
    fn what_may_be_repeated_says_when() {
        for problem_type in ProblemType::ALL {
            let response = Problems::of("http://x/").response(problem_type.because("x"), "/");
            let wants = matches!(response.status().as_u16(), 429 | 503);
            assert!(
                !wants || response.headers().contains_key(header::RETRY_AFTER),
                "{problem_type:?}"
            );
        }
    }
}
