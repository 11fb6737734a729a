//! Many orders in one request: a line of JSON for each, and a line for each in the answer.

use std::sync::Arc;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::task::AbortOnDropHandle;
use utoipa::ToSchema;

use super::Shared;
use super::access::{Access, AsService};
use super::asked::{Asked, OrderRequest};
use super::client::Client;
use super::contracts::problems::BatchProblems;
use super::limits::{Follower, holding};
use super::orders;
use super::problem::{Problem, ProblemType};
use super::requests::{self, Id};
use crate::domain::order::SaleId;
use crate::domain::whole::Whole;

/// One JSON document a line. There is no registered name; this is the one in use.
const MEDIA_TYPE: &str = "application/x-ndjson";
/// The longest line, in bytes: the ids in it are short.
const MAX_LINE_BYTES: usize = 4096;
/// Lines of a request under way at once: as many as are looked up, or published, together.
const AT_ONCE: usize = 512;

/// An order, as a line of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderLine {
    /// The sale; may be left out where the path names it
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
    sale_id: Option<String>,
    /// Makes it safe to send the batch again
    #[schema(pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "o-536365")]
    order_id: String,
    /// The buyer
    #[schema(pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "u-17850")]
    user_id: String,
    /// Units wanted
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000, example = 1)]
    quantity: Whole<i64>,
}

/// The answer to a line.
#[derive(Serialize, ToSchema)]
pub(super) struct LineAnswer {
    /// The number of the line, from 1
    line: usize,
    /// The HTTP status that the order would have got by itself
    status: u16,
    /// What it would have got: the order in the queue, its decision, or a problem
    #[schema(value_type = Object)]
    answer: Box<RawValue>,
}

/// The lines of a body, and the room that the request takes among the streams of its client.
pub(super) struct Lines {
    bytes: Bytes,
    room: Follower,
}

impl FromRequest<Shared> for Lines {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        let accepted = ["application/x-ndjson", "application/ndjson", "application/jsonl"];
        let Some(&client) = request.extensions().get::<Client>() else {
            unreachable!("every request has its client")
        };
        let room = api.limits.follower(client)?;
        let bytes = requests::body(request, api, &accepted, api.settings.max_batch_bytes).await?;
        Ok(Self { bytes, room })
    }
}

/// Each line that has something in it, with its number from 1.
fn numbered(mut bytes: Bytes) -> impl Iterator<Item = (usize, Bytes)> {
    let mut number = 0;
    std::iter::from_fn(move || {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
            let line = bytes.split_to(end);
            // Without its end.
            bytes = bytes.slice(1.min(bytes.len())..);
            number += 1;
            let text = line.trim_ascii();
            if !text.is_empty() {
                return Some((number, line.slice_ref(text)));
            }
        }
        None
    })
}

/// Order many at once from a sale
///
/// A line of JSON for each order, and a line in the answer for each: its number, the status and the body
/// that the order would have got by itself. Lines are on their own: one that is wrong costs no other. They
/// come back in their order, and are decided in about that order.
///
/// If the connection breaks, send the batch again: an order is known by its sale and its id. `Prefer: wait=N`
/// holds for each line.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/orders:batch", tag = "Orders", operation_id = "placeOrdersOfSale",
    security(("bearerAuth" = [])),
    params(
        ("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale"),
        ("Prefer" = Option<String>, Header, nullable = false, description = "`wait=N`: wait up to N seconds for each decision", example = "wait=5"),
    ),
    request_body(content = String, content_type = "application/x-ndjson", description = "An `OrderLine` in each line"),
    responses(
        (status = 200, description = "A `LineAnswer` for each line", body = String, content_type = "application/x-ndjson"),
        BatchProblems,
    )
)]
pub(super) async fn of_sale(
    State(api): State<Shared>,
    AsService(access): AsService,
    Id(sale_id): Id<SaleId>,
    headers: HeaderMap,
    lines: Lines,
) -> Result<Response, Problem> {
    Batch { access, sale_id: Some(sale_id), headers }.answer(api, lines)
}

/// Order many at once
///
/// The same for orders of any sales: each line has its `sale_id`.
#[utoipa::path(
    post, path = "/v1/orders:batch", tag = "Orders", operation_id = "placeOrders",
    security(("bearerAuth" = [])),
    params(
        ("Prefer" = Option<String>, Header, nullable = false, description = "`wait=N`: wait up to N seconds for each decision", example = "wait=5"),
    ),
    request_body(content = String, content_type = "application/x-ndjson", description = "An `OrderLine` in each line"),
    responses(
        (status = 200, description = "A `LineAnswer` for each line", body = String, content_type = "application/x-ndjson"),
        BatchProblems,
    )
)]
pub(super) async fn of_all(
    State(api): State<Shared>,
    AsService(access): AsService,
    headers: HeaderMap,
    lines: Lines,
) -> Result<Response, Problem> {
    Batch { access, sale_id: None, headers }.answer(api, lines)
}

/// What all lines of a request share.
struct Batch {
    access: Access,
    /// The sale that the path names.
    sale_id: Option<SaleId>,
    headers: HeaderMap,
}

impl Batch {
    /// The answer, which begins before the last line is read.
    fn answer(self, api: Shared, Lines { bytes, room }: Lines) -> Result<Response, Problem> {
        if requests::idempotency_key(&self.headers)?.is_some() {
            return Err(ProblemType::BadHeader.because(
                "Idempotency-Key names one order; accepted here: an order_id in each line",
            ));
        }
        let batch = Arc::new(self);
        let answers = stream::iter(numbered(bytes)).map(move |(number, line)| {
            let (api, batch) = (api.clone(), batch.clone());
            // It ends although the client reads no answers: others wait for what it holds meanwhile.
            let answering = tokio::spawn(async move {
                let mut text = serde_json::to_vec(&batch.line_answer(&api, number, &line).await)?;
                text.push(b'\n');
                Ok::<_, serde_json::Error>(text)
            });
            let answering = AbortOnDropHandle::new(answering);
            async move { Ok::<_, BoxError>(answering.await??) }
        });
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))];
        let body = Body::from_stream(holding(answers.buffered(AT_ONCE), room));
        Ok((kind, body).into_response())
    }

    async fn line_answer(&self, api: &Shared, line: usize, text: &[u8]) -> LineAnswer {
        let answered = match self.asked(text) {
            Ok(asked) => orders::answer(api, &self.headers, asked, &None).await,
            Err(problem) => Err(problem),
        };
        let (status, body) = api.problems.parts(answered, "/v1/orders:batch").await;
        // It is JSON: an order, a decision or a problem.
        let answer = serde_json::from_slice(&body).unwrap_or_default();
        LineAnswer { line, status: status.as_u16(), answer }
    }

    fn asked(&self, text: &[u8]) -> Result<Asked, Problem> {
        if text.len() > MAX_LINE_BYTES {
            let detail = format!("accepted: lines of up to {MAX_LINE_BYTES} bytes");
            return Err(ProblemType::TooLarge.because(detail));
        }
        let OrderLine { sale_id, order_id, user_id, quantity } = requests::parse(text)?;
        let named = sale_id.map(SaleId::parse).transpose()?;
        let sale_id = match (&self.sale_id, named) {
            (Some(of_path), Some(named)) if named != *of_path => {
                let detail = format!("sale_id is {named}, and the path is of sale {of_path}");
                return Err(ProblemType::Invalid.because(detail));
            }
            (Some(sale_id), _) => sale_id.clone(),
            (None, Some(sale_id)) => sale_id,
            (None, None) => return Err(ProblemType::Invalid.because("sale_id is missing")),
        };
        let request = OrderRequest::of(order_id, user_id, quantity);
        Asked::read(request, sale_id, &HeaderMap::new(), &self.access)
    }
}
