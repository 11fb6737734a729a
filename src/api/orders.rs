//! Taking orders, and telling what became of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use super::access::Access;
use super::asked::{Asked, IdOrigin, OrderRequest};
use super::coalescer::RequestCoalescer;
use super::contracts::problems::{OrderProblems, OrderShowProblems};
use super::enqueue::Enqueued;
use super::etag;
use super::problem::{Place, Problem, ProblemType};
use super::requests::{self, Id, Json, OrderPath};
use crate::domain::decision::Decision;
use crate::domain::erasure::{self, ArchivedOrder};
use crate::domain::event::{decision_json, rfc3339};
use crate::domain::intent;
use crate::domain::order::{Order, OrderId, OrderKey, SaleId};
use crate::domain::sale::{PauseMode, Phase, SaleState};
use crate::ledger::{Ledger, LedgerError};
use crate::status::Overview;
use crate::traces::Traced;

/// Lookups on their way at once.
const LOOKUPS_AT_ONCE: usize = 2;
/// How long an order waits for the answer whether it was decided before.
const LOOKUP_LIMIT: Duration = Duration::from_secs(1);
/// How often a client's decision is looked up while its reply has not come.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The longest time after which a client is asked to come again: by then the pace may be another.
const LONGEST_RETRY: Duration = Duration::from_mins(1);

pub(super) type Lookup = RequestCoalescer<OrderKey, Option<Decision>, LedgerError>;

/// Looks decisions up, many in one query.
pub(super) fn lookup(ledger: Arc<dyn Ledger>) -> Lookup {
    RequestCoalescer::new(LOOKUPS_AT_ONCE, move |orders: Vec<OrderKey>| {
        let ledger = ledger.clone();
        async move { ledger.decisions(&orders).await }
    })
}

/// An order that is in the queue.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted<'a> {
    /// Ask for its decision with this
    #[schema(value_type = String)]
    order_id: &'a OrderId,
    #[schema(value_type = String)]
    sale_id: &'a SaleId,
    user_id: &'a str,
    #[schema(minimum = 1, maximum = 1_000_000)]
    quantity: u32,
    /// Always `accepted`: it will be decided
    #[schema(pattern = "^accepted$")]
    status: &'static str,
}

/// Order from a sale
///
/// Only puts the order into the queue: 202 once the queue has it. With `Prefer: wait=N` the answer
/// is the decision itself, if it comes within N seconds.
///
/// An order is identified by its sale and its order id; the same order id in another sale is another
/// order. Clients with the scope `floodgate:submit`, and all clients of a server without a key, choose
/// order ids, by `order_id` or `Idempotency-Key`. Any other token, also one with `floodgate:admin`
/// alone, orders for its `sub` and chooses no order id: `order_id` is answered with 422, and
/// `Idempotency-Key` names the request among those of this buyer for this sale. The order id derived
/// from it is in the answer.
///
/// An order with an id or a key can be sent again, and every answer is that of the first: 200 with the
/// decision once there is one, 202 before. The same id or key with other contents is answered with 422
/// once the first order is decided. Until then it is accepted too, but the first order stands, and
/// `Location` has its decision.
///
/// An order with an id or a key may wait in the queue already, so it is not refused because the sale
/// is not open, closed, paused or sold out: it is queued, and its decision says so. Only an order with neither
/// is answered with 409 or 410 at once.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/orders", tag = "Orders", operation_id = "placeOrder",
    security(("bearerAuth" = [])),
    params(
        ("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale"),
        ("Idempotency-Key" = Option<String>, Header, nullable = false, description = "Names the order, with or without quotes: the same key is the same order. It is the order id from clients that choose order ids, and must then be one; from a buyer's token it is any 1 to 255 visible ASCII characters",
            pattern = r#"^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$"#),
        ("Prefer" = Option<String>, Header, nullable = false, description = "`wait=N`: wait up to N seconds for the decision", example = "wait=5"),
    ),
    request_body = OrderRequest,
    responses(
        (status = 202, description = "In the queue", body = inline(Accepted<'static>), headers(
            ("Location" = String, description = "Where its decision will be"),
            ("Preference-Applied" = String, description = "The wait that was granted"),
            ("RateLimit-Policy" = String, description = "Orders that one buyer may post at once, and the seconds after which all of them may be posted again"),
            ("RateLimit" = String, description = "Orders left to this buyer, and the seconds until all may be posted again"),
        )),
        (status = 200, description = "Decided: as asked for with Prefer, or earlier", body = super::contracts::schemas::DecisionView),
        OrderProblems,
    )
)]
pub(super) async fn post(
    State(api): State<Shared>,
    access: Access,
    Id(sale_id): Id<SaleId>,
    headers: HeaderMap,
    Json(request): Json<OrderRequest>,
) -> Result<Response, Problem> {
    let begun = SystemTime::now();
    let asked = Asked::read(request, sale_id, &headers, &access)?;
    let mut traced = api.traces.request(&asked.order, requests::trace(&headers).as_ref(), begun);
    let answer = answer(&api, &headers, asked, &traced).await;
    if let Some(traced) = &mut traced {
        let status = answer.as_ref().map_or_else(Problem::status, Response::status);
        traced.answered(status.as_u16());
    }
    answer
}

/// The answer to an order.
pub(super) async fn answer(
    api: &Shared,
    headers: &HeaderMap,
    Asked { order, origin }: Asked,
    traced: &Traced,
) -> Result<Response, Problem> {
    let state = api.sale_cache.sale(&order.sale_id).await?;
    let state = state.ok_or_else(|| super::sales::unknown(&order.sale_id))?;
    match origin {
        IdOrigin::Made => refuse_early(&state)?,
        // Any API process may have accepted it, and it may wait in the queue: what this process knows
        // of the sale is no answer to it.
        IdOrigin::Chosen | IdOrigin::Derived => {
            if let Some(decision) = decided_before(api, &order).await {
                if decision.order == order {
                    return Ok(json(StatusCode::OK, decision_json(&decision)));
                }
                // A worker knows which token is whose.
                if !erasure::is_token(&decision.order.user_id) {
                    return Err(used_before(&order, origin));
                }
            }
        }
    }
    // One that this server has taken waits already.
    if api.recent.buyer_of(&order.key()).is_none() {
        admit(api)?;
    }
    let left = match api.rate.count(&order.user_id) {
        Ok(left) => left,
        Err((problem, left)) => {
            let mut response = problem.into_response();
            left.add_to(response.headers_mut());
            return Ok(response);
        }
    };
    let wait = requests::wait(headers).map(|wait| wait.min(api.settings.max_wait));
    let mut response = take(api, &order, wait, traced).await?;
    left.add_to(response.headers_mut());
    if let Some(wait) = wait {
        let applied = HeaderValue::from_str(&format!("wait={}", wait.as_secs()));
        let name = HeaderName::from_static("preference-applied");
        response.headers_mut().extend(applied.ok().map(|applied| (name, applied)));
    }
    Ok(response)
}

fn used_before(order: &Order, origin: IdOrigin) -> Problem {
    ProblemType::IdempotencyMismatch.because(if origin == IdOrigin::Derived {
        "the Idempotency-Key was used before in this sale, with another quantity".to_owned()
    } else {
        format!("order {} was posted before for another user or quantity", order.key())
    })
}

/// The decision that an order has already. `None` also when the ledger can't tell in time: the order
/// is then queued, and the worker repeats the decision.
async fn decided_before(api: &Shared, order: &Order) -> Option<Decision> {
    let (sale_id, order_id) = (&order.sale_id, &order.id);
    match tokio::time::timeout(LOOKUP_LIMIT, api.lookup.ask(order.key())).await {
        Ok(Ok(Ok(decision))) => decision,
        Ok(Ok(Err(error))) => {
            tracing::debug!(%sale_id, %order_id, %error, "lookup failed, queueing the order");
            None
        }
        Ok(Err(_)) | Err(_) => {
            tracing::debug!(%sale_id, %order_id, "lookup not answered in time, queueing the order");
            None
        }
    }
}

/// Waits until the ledger has the decision of an order.
async fn stored(api: &Shared, order: &Order) -> Vec<u8> {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let decision = decided_before(api, order).await;
        if let Some(decision) = decision.filter(|decision| decision.order == *order) {
            return decision_json(&decision);
        }
    }
}

/// Puts the order into the queue, and waits for its decision if that is wanted.
async fn take(
    api: &Shared,
    order: &Order,
    wait: Option<Duration>,
    traced: &Traced,
) -> Result<Response, Problem> {
    let mut waiting = wait.map(|_| api.replies.expect(order.clone()));
    let body = intent::to_json(order, Utc::now());
    let (sale_id, wants_reply) = (order.sale_id.clone(), waiting.is_some());
    let sending = traced.as_ref().map(|request| Box::new(request.send_intents(sale_id.as_str())));
    let queued = api.enqueue.ask(Enqueued { sale_id, body, wants_reply, sending }).await;
    queued
        .map_err(|error| ProblemType::Internal.because(error.to_string()))?
        .map_err(|error| Problem::from(error.as_ref()))?;
    let place = {
        let now = api.status.now();
        now.settled + now.ahead
    };
    api.recent.taken(order, place);
    if let (Some(waiting), Some(wait)) = (&mut waiting, wait) {
        let decision = tokio::select! {
            decision = tokio::time::timeout(wait, waiting.decision()) => decision.ok(),
            // Replies are best effort, and those of another embedded process never come.
            decision = tokio::time::timeout(wait, stored(api, order)) => decision.ok(),
            // A server that stops keeps no client waiting.
            () = api.stop.cancelled() => None,
        };
        if let Some(decision) = decision {
            return Ok(json(StatusCode::OK, decision));
        }
    }
    let accepted = Accepted {
        order_id: &order.id,
        sale_id: &order.sale_id,
        user_id: order.user_id.as_str(),
        quantity: order.quantity.get(),
        status: "accepted",
    };
    let location = format!("/v1/sales/{}/orders/{}", order.sale_id, order.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], axum::Json(accepted)).into_response())
}

/// Refuses an order that would wait too long.
fn admit(api: &Shared) -> Result<(), Problem> {
    let limit = api.settings.max_predicted_wait;
    let wait_s = api.status.now().wait_s.unwrap_or_default();
    let wait = Duration::try_from_secs_f64(wait_s).unwrap_or(Duration::MAX);
    if limit.is_zero() || wait <= limit {
        return Ok(());
    }
    let detail = format!(
        "an order that arrives now would wait for about {} s; the limit is {} s",
        wait.as_secs(),
        limit.as_secs(),
    );
    Err(ProblemType::QueueOverloaded
        .because(detail)
        .retry_after(wait.saturating_sub(limit).min(LONGEST_RETRY)))
}

/// Refuses an order that cannot have been accepted before, when the sale as this process knows it
/// sells nothing.
fn refuse_early(state: &SaleState) -> Result<(), Problem> {
    let id = &state.sale.id;
    let time = |time: Option<_>| time.map(rfc3339).unwrap_or_default();
    Err(match state.phase(Utc::now()) {
        Phase::Open => return Ok(()),
        Phase::Paused if state.paused.is_some_and(PauseMode::holds) => return Ok(()),
        Phase::Paused => ProblemType::SalePaused.because(format!("sale {id} is paused")),
        Phase::NotOpen => {
            let opens = time(state.sale.opens_at);
            ProblemType::NotOpen.because(format!("sale {id} opens at {opens}"))
        }
        Phase::Closed => {
            let closed = time(state.sale.closes_at);
            ProblemType::Closed.because(format!("sale {id} closed at {closed}"))
        }
        Phase::SoldOut => ProblemType::SoldOut.because(format!("sale {id} has no unit left")),
    })
}

/// Where an order stands that was put at `place`, counted from when this server began to watch.
fn place_now(now: &Overview, place: u64) -> Place {
    let ahead = place.saturating_sub(now.settled).min(now.ahead);
    let share = if now.ahead > 0 { ahead as f64 / now.ahead as f64 } else { 0.0 };
    Place { ahead, wait_s: now.wait_s.map(|wait_s| (wait_s * share).ceil()) }
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Bytes::from(body)).into_response()
}

/// What became of an order
///
/// A token without the scope `floodgate:submit` or `floodgate:admin` sees the orders of its own `sub`
/// only; any other order is answered as if there were none.
#[utoipa::path(
    get, path = "/v1/sales/{sale_id}/orders/{order_id}", tag = "Orders", operation_id = "showOrder",
    security(("bearerAuth" = [])),
    params(
        ("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale"),
        ("order_id" = inline(super::contracts::schemas::OrderIdParam), Path, description = "The order's id in this sale"),
        ("If-None-Match" = Option<String>, Header, nullable = false, description = "The ETag of what the client has"),
    ),
    responses(
        (status = 200, description = "Decided, for ever", body = super::contracts::schemas::DecisionView,
            headers(("ETag" = String, description = "For If-None-Match"))),
        (status = 304, description = "The client has it, by its If-None-Match"),
        OrderShowProblems,
    )
)]
pub(super) async fn show(
    State(api): State<Shared>,
    access: Access,
    OrderPath(order): OrderPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = api.lookup.ask(order.clone()).await;
    let decision = found
        .map_err(|error| ProblemType::Internal.because(error.to_string()))?
        .map_err(|error| Problem::from(error.as_ref()))?;
    // Another buyer's order is answered like none, so that no client can find out which ids are in use.
    if let Some(decision) = decision {
        let user = &decision.order.user_id;
        if access.may_see(|subject| subject == user) {
            return Ok(etag::json(decision_json(&decision), &headers));
        }
    } else if access.may_see_taken(&api.recent, &order) {
        let detail = format!("order {order} is queued, or a dead letter");
        let place = api.recent.place_of(&order).map(|place| place_now(&api.status.now(), place));
        return Err(ProblemType::NotDecided.because(detail).place(place));
    } else if let Some(archived) = archived(&api, &access, &order).await? {
        return Err(archived);
    }
    Err(ProblemType::UnknownOrder.because(format!("order {order} is not known here")))
}

/// The answer for an archived order, to those who may see it.
async fn archived(
    api: &Shared,
    access: &Access,
    order: &OrderKey,
) -> Result<Option<Problem>, Problem> {
    let state = api.sale_cache.sale(&order.sale_id).await?;
    let Some(state) = state.filter(|state| state.archived) else { return Ok(None) };
    let found = api.ledger.archived(std::slice::from_ref(order)).await?.pop().flatten();
    let key = state.erasure_key.as_ref();
    let seen = found.filter(|found| access.may_see(|subject| found.is_of(subject, key)));
    Ok(seen.map(|ArchivedOrder { outcome, decided_at, .. }| {
        let (outcome, at) = (outcome.code(), rfc3339(decided_at));
        ProblemType::Archived.because(format!("order {order} was decided at {at}: {outcome}"))
    }))
}
