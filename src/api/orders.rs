//! Taking orders, and telling what became of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use governor::clock::Clock;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Shared;
use super::access::Access;
use super::docs::{OrderProblems, OrderShowProblems};
use super::gather::Gather;
use super::problem::{Kind, Problem};
use super::requests::{self, Id, Json, OrderPath, Whole};
use crate::broker::{Broker, BrokerError, Message, Properties};
use crate::config::ApiSettings;
use crate::decision::Decision;
use crate::event::decision_json;
use crate::intent;
use crate::ledger::{Ledger, LedgerError};
use crate::order::{Order, OrderId, OrderKey, Quantity, SaleId};
use crate::sale::{Phase, SaleState};

/// Publishes on their way at once. Orders gather while they are under way, and RabbitMQ spends less on
/// each: with 64 connections one at once took 6,400 orders/s, two 9,200, three 8,100.
const PUBLISHES_AT_ONCE: usize = 2;
/// Lookups on their way at once.
const LOOKUPS_AT_ONCE: usize = 2;
/// How long an order may be held up by the question whether it was decided before.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(1);
/// How often buyers who have not ordered lately are forgotten.
const FORGET_BUYERS_EVERY: Duration = Duration::from_secs(10);

/// An order ready for the queue.
pub(super) struct Enqueued {
    sale_id: SaleId,
    body: Vec<u8>,
    /// Where the decision is wanted.
    properties: Properties,
}

pub(super) type Enqueue = Gather<Enqueued, (), BrokerError>;
pub(super) type Lookup = Gather<OrderKey, Option<Decision>, LedgerError>;

/// Puts orders into the queue, many in one publish.
pub(super) fn enqueue(broker: Arc<dyn Broker>) -> Enqueue {
    Gather::new(PUBLISHES_AT_ONCE, move |orders: Vec<Enqueued>| {
        let broker = broker.clone();
        async move {
            let messages: Vec<Message<'_>> = orders
                .iter()
                .map(|order| Message::Intent {
                    routing_key: order.sale_id.as_str(),
                    body: &order.body,
                    properties: Some(&order.properties),
                    delay: None,
                })
                .collect();
            broker.publish(&messages).await?;
            Ok(vec![(); orders.len()])
        }
    })
}

/// Looks decisions up, many in one query.
pub(super) fn lookup(ledger: Arc<dyn Ledger>) -> Lookup {
    Gather::new(LOOKUPS_AT_ONCE, move |orders: Vec<OrderKey>| {
        let ledger = ledger.clone();
        async move { ledger.decisions(&orders).await }
    })
}

/// Counts the orders of each buyer.
pub(super) fn buyers(settings: &ApiSettings) -> DefaultKeyedRateLimiter<String> {
    let quota = Quota::per_second(settings.buyer_orders_per_s).allow_burst(settings.buyer_burst);
    RateLimiter::keyed(quota)
}

/// Forgets buyers who have not ordered lately, for as long as it is polled.
pub(super) async fn forget_buyers(api: Shared) {
    loop {
        tokio::time::sleep(FORGET_BUYERS_EVERY).await;
        api.buyers.retain_recent();
        api.buyers.shrink_to_fit();
    }
}

/// A request to buy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    /// The buyer; with a token, its `sub` when left out
    #[schema(pattern = "^[A-Za-z0-9._:-]{1,64}$", example = "u-17850")]
    user_id: Option<String>,
    /// Units wanted
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000, example = 1)]
    quantity: Whole<i64>,
    /// Makes it safe to send again; the Idempotency-Key if left out, or made by the server
    #[schema(pattern = "^[A-Za-z0-9._:-]{1,64}$", example = "o-536365")]
    order_id: Option<String>,
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

/// An order as it was asked for.
struct Asked {
    order: Order,
    /// The client chose its id, so it may have been sent before.
    repeatable: bool,
}

impl Asked {
    fn read(
        request: OrderRequest,
        sale_id: SaleId,
        headers: &HeaderMap,
        access: &Access,
    ) -> Result<Self, Problem> {
        let user_id = access.buyer(request.user_id)?;
        let Whole(quantity) = request.quantity;
        let quantity = Quantity::new(quantity).ok_or_else(|| {
            Kind::Invalid.because(format!(
                "quantity is {quantity}; accepted: a whole number from 1 to {}",
                Quantity::MAX
            ))
        })?;
        let named = request.order_id.map(OrderId::parse).transpose()?;
        let key = requests::idempotency_key(headers)?;
        if let (Some(named), Some(key)) = (&named, &key)
            && named != key
        {
            return Err(Kind::IdempotencyMismatch.because(
                "order_id and Idempotency-Key differ; give one of them, or the same twice",
            ));
        }
        let given = named.or(key);
        let repeatable = given.is_some();
        let id = match given {
            Some(id) => id,
            None => OrderId::parse(Uuid::now_v7().to_string())?,
        };
        Ok(Self { order: Order { id, sale_id, user_id, quantity }, repeatable })
    }
}

/// Order from a sale
///
/// Only puts the order into the queue: 202 once the queue has it. With `Prefer: wait=N` the answer
/// is the decision itself, if it comes within N seconds.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/orders", tag = "Orders", operation_id = "placeOrder",
    security(("bearerAuth" = [])),
    params(
        ("sale_id" = inline(super::docs::SaleIdParam), Path, description = "The sale"),
        ("Idempotency-Key" = Option<String>, Header, nullable = false, description = "Names the order, with or without quotes: the same key is the same order",
            pattern = r#"^([A-Za-z0-9._:-]{1,64}|"[A-Za-z0-9._:-]{1,64}")$"#),
        ("Prefer" = Option<String>, Header, nullable = false, description = "`wait=N`: wait up to N seconds for the decision", example = "wait=5"),
    ),
    request_body = OrderRequest,
    responses(
        (status = 202, description = "In the queue", body = inline(Accepted<'static>), headers(
            ("Location" = String, description = "Where its decision will be"),
            ("Preference-Applied" = String, description = "The wait that was granted"),
        )),
        (status = 200, description = "Decided: as asked for with Prefer, or earlier", body = super::docs::DecisionView),
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
    let Asked { order, repeatable } = Asked::read(request, sale_id, &headers, &access)?;
    let state = api.watch.sale(&order.sale_id).await?;
    let refusal = refusal(state.as_ref(), &order.sale_id);
    // After the look at the sale: when that one says sold out, every order that got a unit is
    // found here, and none of their buyers is told that there is nothing left.
    if repeatable && let Some(decision) = decided_before(&api, &order, refusal.is_some()).await? {
        if decision.order == order {
            return Ok(json(StatusCode::OK, decision_json(&decision)));
        }
        return Err(used_before(&order));
    }
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    limit_rate(&api, &order)?;
    if repeatable && !api.recent.claim(&order) {
        return Err(used_before(&order));
    }
    let wait = requests::wait(&headers).map(|wait| wait.min(api.settings.api.max_wait()));
    let mut response = take(&api, &order, wait).await?;
    if let Some(wait) = wait {
        let applied = HeaderValue::from_str(&format!("wait={}", wait.as_secs()));
        let name = HeaderName::from_static("preference-applied");
        response.headers_mut().extend(applied.ok().map(|applied| (name, applied)));
    }
    Ok(response)
}

fn used_before(order: &Order) -> Problem {
    let id = &order.id;
    Kind::IdempotencyMismatch
        .because(format!("order {id} was posted before for another user or quantity"))
}

/// The decision that an order has already. When that can't be known now it matters only to an order
/// that is refused otherwise: any other goes into the queue, which is there for this.
async fn decided_before(
    api: &Shared,
    order: &Order,
    refused: bool,
) -> Result<Option<Decision>, Problem> {
    if refused {
        return decided(api, order.key()).await;
    }
    let found = tokio::time::timeout(LOOKUP_PATIENCE, decided(api, order.key())).await;
    Ok(found.ok().and_then(Result::ok).flatten())
}

/// Puts the order into the queue, and waits for its decision if that is wanted.
async fn take(api: &Shared, order: &Order, wait: Option<Duration>) -> Result<Response, Problem> {
    let mut waiting = wait.map(|_| api.replies.expect(order.key()));
    let properties = waiting.as_ref().map(super::replies::Waiting::properties).unwrap_or_default();
    let sale_id = order.sale_id.clone();
    let body = intent::to_json(order, Utc::now());
    api.pulse.accepted(order.key());
    let queued = api.enqueue.ask(Enqueued { sale_id, body, properties }).await;
    queued
        .map_err(|error| Kind::Internal.because(error.to_string()))?
        .map_err(|error| Problem::from(error.as_ref()))?;
    if let (Some(waiting), Some(wait)) = (&mut waiting, wait) {
        let decision = tokio::select! {
            decision = tokio::time::timeout(wait, waiting.decision()) => decision.ok(),
            // A server that stops keeps nobody waiting.
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

/// Why an order for this sale would be for nothing, if it would.
fn refusal(state: Option<&SaleState>, id: &SaleId) -> Option<Problem> {
    let Some(state) = state else {
        return Some(Kind::UnknownSale.because(format!("there is no sale {id}")));
    };
    let time = |time: Option<_>| time.map(crate::event::rfc3339).unwrap_or_default();
    match state.phase(Utc::now()) {
        Phase::Open => None,
        Phase::NotOpen => {
            let opens = time(state.sale.opens_at);
            Some(Kind::NotOpen.because(format!("sale {id} opens at {opens}")))
        }
        Phase::Closed => {
            let closed = time(state.sale.closes_at);
            Some(Kind::Closed.because(format!("sale {id} closed at {closed}")))
        }
        Phase::SoldOut => Some(Kind::SoldOut.because(format!("sale {id} has no unit left"))),
    }
}

fn limit_rate(api: &Shared, order: &Order) -> Result<(), Problem> {
    let buyer = order.user_id.to_string();
    api.buyers.check_key(&buyer).map_err(|until| {
        let wait = until.wait_time_from(governor::clock::DefaultClock::default().now());
        let ApiSettings { buyer_orders_per_s, buyer_burst, .. } = &api.settings.api;
        Kind::RateLimited
            .because(format!(
                "accepted: {buyer_orders_per_s} orders a second from one buyer, {buyer_burst} at once"
            ))
            .retry_after(wait)
    })
}

async fn decided(api: &Shared, order: OrderKey) -> Result<Option<Decision>, Problem> {
    let found = api.lookup.ask(order).await;
    found
        .map_err(|error| Kind::Internal.because(error.to_string()))?
        .map_err(|error| Problem::from(error.as_ref()))
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Bytes::from(body)).into_response()
}

/// What became of an order
#[utoipa::path(
    get, path = "/v1/sales/{sale_id}/orders/{order_id}", tag = "Orders", operation_id = "showOrder",
    security(("bearerAuth" = [])),
    params(
        ("sale_id" = inline(super::docs::SaleIdParam), Path, description = "The sale"),
        ("order_id" = inline(super::docs::OrderIdParam), Path, description = "The order's id in this sale"),
    ),
    responses(
        (status = 200, description = "Decided, for ever", body = super::docs::DecisionView),
        OrderShowProblems,
    )
)]
pub(super) async fn show(
    State(api): State<Shared>,
    access: Access,
    OrderPath(order): OrderPath,
) -> Result<Response, Problem> {
    // Somebody else's order is as good as none, so that nobody can find out which ids are in use.
    let decision = decided(&api, order.clone()).await?;
    match decision.filter(|decision| access.may_see(&decision.order.user_id)) {
        Some(decision) => Ok(json(StatusCode::OK, decision_json(&decision))),
        None => Err(Kind::NotDecided.because(format!(
            "order {order} is not decided: it is unknown, still queued, or a dead letter"
        ))),
    }
}
