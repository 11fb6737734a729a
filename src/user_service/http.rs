//! The user service's HTTP: what [`crate::verification`] speaks, and a look at the counts.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use super::{Answer, Question, UserService};
use crate::domain::order::{OrderId, SaleId, UserId};

/// The largest question, in bytes. One has three ids of 64 bytes.
const MAX_QUESTION_BYTES: usize = 4096;

#[derive(Clone)]
struct Shared {
    service: Arc<UserService>,
    stop: CancellationToken,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names on the wire")]
struct Fields {
    user_id: String,
    sale_id: String,
    order_id: String,
}

pub(super) fn routes(service: Arc<UserService>, stop: CancellationToken) -> Router {
    Router::new()
        .route("/verify", post(verify))
        .route("/calls", get(calls))
        .layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES))
        .with_state(Shared { service, stop })
}

async fn verify(
    State(Shared { service, stop }): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let question = match read(body) {
        Ok(question) => question,
        Err((status, why)) => {
            service.counts.malformed();
            return problem(status, &why);
        }
    };
    match service.answer(&question, stop.cancelled()).await {
        Answer::Allowed => Json(json!({ "allowed": true })).into_response(),
        Answer::Denied(reason) => {
            Json(json!({ "allowed": false, "reason": reason })).into_response()
        }
        Answer::Failed => problem(StatusCode::SERVICE_UNAVAILABLE, "failed, as it was told to"),
    }
}

async fn calls(State(Shared { service, .. }): State<Shared>) -> Json<Counts> {
    Json(service.counts())
}

/// The question, or the status and the detail of what is answered instead.
fn read(body: Result<Bytes, BytesRejection>) -> Result<Question, (StatusCode, String)> {
    let body = body.map_err(|rejection| {
        let accepted = format!("accepted: a whole body of up to {MAX_QUESTION_BYTES} bytes");
        (rejection.status(), accepted)
    })?;
    parse(&body).map_err(|why| {
        let accepted = r#"{"user_id": "...", "sale_id": "...", "order_id": "..."}"#;
        (StatusCode::BAD_REQUEST, format!("{why}; the question is {accepted}"))
    })
}

fn parse(body: &[u8]) -> Result<Question, String> {
    // The library would read an array as well, its elements being the fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("the body is no JSON object".to_owned());
    }
    let Fields { user_id, sale_id, order_id } =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok(Question {
        user: UserId::parse(user_id).map_err(|error| error.to_string())?,
        sale: SaleId::parse(sale_id).map_err(|error| error.to_string())?,
        _order: OrderId::parse(order_id).map_err(|error| error.to_string())?,
    })
}

/// A problem in the form of RFC 9457.
fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = Json(json!({ "title": title, "status": status.as_u16(), "detail": detail }));
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_names_user_sale_and_order() {
        let question =
            parse(br#"{"user_id": "u", "sale_id": "s", "order_id": "o", "more": 1}"#).unwrap();
        assert_eq!((question.user.as_str(), question.sale.as_str()), ("u", "s"));
        for (bad, why) in [
            ("", "no JSON object"),
            (r#"["u", "s", "o"]"#, "no JSON object"),
            (r#"{"user_id": "u""#, "EOF"),
            (r#"{"user_id": "u", "sale_id": "s"}"#, "missing field `order_id`"),
            (r#"{"user_id": 1, "sale_id": "s", "order_id": "o"}"#, "invalid type: integer `1`"),
            (r#"{"user_id": "u", "sale_id": "a.b", "order_id": "o"}"#, "sale_id has a character"),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
