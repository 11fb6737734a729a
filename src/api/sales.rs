//! Showing sales, and what operators do to them.

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Shared;
use super::access::AsOperator;
use super::docs::{
    CloseProblems, OpenProblems, RestockProblems, SaleListProblems, SaleProblems,
    VerificationProblems,
};
use super::etag;
use super::problem::{Problem, ProblemType};
use super::requests::{Id, Json, Whole};
use crate::domain::event::rfc3339;
use crate::domain::order::{AdjustmentId, Quantity, SaleId};
use crate::domain::sale::{Sale, SaleState, StockTooLarge};
use crate::ledger::{Changed, Opening};
use crate::sales::operations;
use crate::verification::NO_USER_SERVICE;

/// Sales in one answer, if nothing else is asked for, and at most.
const DEFAULT_LIMIT: u16 = 100;
const MAX_LIMIT: u16 = 1000;

/// A sale as it is shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Sale)]
pub struct SaleView {
    sale_id: String,
    /// Units on offer, restocks included
    #[schema(format = Int64)]
    stock: u32,
    /// Units sold
    #[schema(format = Int64)]
    sold: u32,
    /// Units left
    #[schema(format = Int64)]
    remaining: u32,
    #[schema(value_type = super::docs::PhaseName, inline)]
    state: &'static str,
    /// The most units one buyer may get
    #[schema(format = Int64, required)]
    per_user_limit: Option<u32>,
    #[schema(format = DateTime, required)]
    opens_at: Option<String>,
    #[schema(format = DateTime, required)]
    closes_at: Option<String>,
    /// Whether users are checked before they may buy
    verification: bool,
    /// When the last unit was sold, while none is left
    #[schema(format = DateTime, required)]
    sold_out_at: Option<String>,
    /// Counts restocks, switchings of verification and the closing; begins with 1
    #[schema(format = Int64, minimum = 1)]
    version: u32,
}

impl SaleView {
    /// `state` as it looks at `now`.
    pub fn of(state: &SaleState, now: DateTime<Utc>) -> Self {
        let sale = &state.sale;
        Self {
            sale_id: sale.id.to_string(),
            stock: sale.stock,
            sold: state.sold,
            remaining: state.remaining(),
            state: state.phase(now).name(),
            per_user_limit: sale.per_user_limit,
            opens_at: sale.opens_at.map(rfc3339),
            closes_at: sale.closes_at.map(rfc3339),
            verification: sale.verification,
            sold_out_at: state.sold_out_at.map(rfc3339),
            version: state.version,
        }
    }
}

/// Which sales to show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    limit: Option<u16>,
    after: Option<String>,
}

/// Some sales, by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SaleList {
    sales: Vec<SaleView>,
    /// Where the following ones are, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    next: Option<String>,
}

/// List sales
#[utoipa::path(
    get, path = "/v1/sales", tag = "Sales", operation_id = "listSales",
    params(
        ("limit" = Option<u16>, Query, description = "The most sales in the answer: 1 to 1000, 100 if left out", minimum = 1, maximum = 1000),
        ("after" = Option<String>, Query, description = "Only sales whose id comes after this one", pattern = "^[A-Za-z0-9_-]{1,64}$"),
    ),
    responses((status = 200, description = "Sales by their ids", body = inline(SaleList)), SaleListProblems),
)]
pub(super) async fn list(
    State(api): State<Shared>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<axum::Json<SaleList>, Problem> {
    let Query(Page { limit, after }) =
        page.map_err(|error| ProblemType::Invalid.because(error.body_text()))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let detail = format!("limit is {limit}; accepted: 1 to {MAX_LIMIT}");
        return Err(ProblemType::Invalid.because(detail));
    }
    let after = after.map(SaleId::parse).transpose()?;
    let states = api.ledger.sales(None).await?;
    let now = Utc::now();
    let mut rest =
        states.iter().filter(|state| after.as_ref().is_none_or(|after| state.sale.id > *after));
    let sales: Vec<SaleView> =
        rest.by_ref().take(limit.into()).map(|state| SaleView::of(state, now)).collect();
    let next = rest.next().and(sales.last()).map(|last| {
        let after = &last.sale_id;
        format!("/v1/sales?limit={limit}&after={after}")
    });
    Ok(axum::Json(SaleList { sales, next }))
}

/// Show a sale
#[utoipa::path(
    get, path = "/v1/sales/{sale_id}", tag = "Sales", operation_id = "showSale",
    params(
        ("sale_id" = inline(super::docs::SaleIdParam), Path, description = "The sale"),
        ("If-None-Match" = Option<String>, Header, nullable = false, description = "The ETag of what the client has"),
    ),
    responses(
        (status = 200, description = "The sale", body = SaleView, headers(("ETag" = String, description = "For If-None-Match"))),
        (status = 304, description = "It has not changed since, by If-None-Match"),
        SaleProblems,
    ),
)]
pub(super) async fn show(
    State(api): State<Shared>,
    Id(id): Id<SaleId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let state = api.ledger.sales(Some(std::slice::from_ref(&id))).await?.pop();
    let state = state.ok_or_else(|| unknown(&id))?;
    let view = serde_json::to_vec(&SaleView::of(&state, Utc::now()));
    let view = view.unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
    Ok(etag::json(view, &headers))
}

pub(super) fn unknown(id: &SaleId) -> Problem {
    ProblemType::UnknownSale.because(format!("there is no sale {id}"))
}

/// A sale to be opened.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenRequest {
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
    sale_id: String,
    /// Units on offer
    #[schema(value_type = u32, format = Int64, minimum = 0, maximum = 2_147_483_647, example = 100)]
    stock: Whole<u32>,
    /// The most units one buyer may get; no limit if left out
    #[schema(value_type = Option<u32>, format = Int64, minimum = 1, maximum = 4_294_967_295_u32)]
    per_user_limit: Option<Whole<u32>>,
    /// Orders submitted before are rejected; RFC 3339
    #[schema(format = DateTime, value_type = Option<String>)]
    opens_at: Option<DateTime<Utc>>,
    /// Orders submitted at that time or later are rejected; RFC 3339
    #[schema(format = DateTime, value_type = Option<String>)]
    closes_at: Option<DateTime<Utc>>,
    /// Whether users are checked before they may buy; not if left out
    #[serde(default)]
    verification: bool,
}

/// Open a sale
///
/// Opening it again changes nothing.
#[utoipa::path(
    post, path = "/v1/sales", tag = "Operators", operation_id = "openSale",
    security(("bearerAuth" = [])), request_body = OpenRequest,
    responses(
        (status = 201, description = "Opened", body = SaleView, headers(("Location" = String, description = "Where the sale is"))),
        (status = 200, description = "It was open with this definition", body = SaleView),
        OpenProblems,
    ),
)]
pub(super) async fn open(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Json(request): Json<OpenRequest>,
) -> Result<Response, Problem> {
    let OpenRequest { sale_id, stock, per_user_limit, opens_at, closes_at, verification } = request;
    let sale_id = SaleId::parse(sale_id);
    let per_user_limit = per_user_limit.map(|Whole(limit)| limit);
    let (id, stock) = (sale_id?, stock.0);
    let sale = Sale { id: id.clone(), stock, per_user_limit, opens_at, closes_at, verification };
    sale.check().map_err(|invalid| ProblemType::Invalid.because(invalid.to_string()))?;
    let (ledger, journal) = (api.ledger.clone(), api.operations.journal.clone());
    let opening = operations::open(ledger, journal, &by, std::slice::from_ref(&sale)).await?.pop();
    if let Some(Opening::Differs(state)) = opening {
        let detail = format!(
            "sale {id} is open with a stock of {}, of which {} are sold; it stays as it is",
            state.sale.stock, state.sold
        );
        return Err(ProblemType::SaleDiffers.because(detail));
    }
    api.sale_cache.read(std::slice::from_ref(&id)).await?;
    let state = api.sale_cache.sale(&id).await?.unwrap_or_else(|| SaleState::opened(sale));
    let view = axum::Json(SaleView::of(&state, Utc::now()));
    if opening != Some(Opening::Opened) {
        return Ok(view.into_response());
    }
    warn_of_checks(&api, &state);
    let location = [(header::LOCATION, format!("/v1/sales/{id}"))];
    Ok((StatusCode::CREATED, location, view).into_response())
}

/// Tells the log when users are to be checked, and by these settings no service does it. Workers may have
/// others, so nothing is refused.
fn warn_of_checks(api: &Shared, SaleState { sale, .. }: &SaleState) {
    if sale.verification && !api.has_user_service {
        tracing::warn!(sale_id = %sale.id, "users are to be checked: {NO_USER_SERVICE}");
    }
}

/// Units to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RestockRequest {
    /// Names this restock: repeated with the same id it adds nothing
    #[schema(pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "delivery-7")]
    adjustment_id: String,
    /// Units to add
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000, example = 10)]
    units: Whole<i64>,
}

/// Add units to a sale
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/restock", tag = "Operators", operation_id = "restockSale",
    security(("bearerAuth" = [])),
    params(("sale_id" = inline(super::docs::SaleIdParam), Path, description = "The sale")),
    request_body = RestockRequest,
    responses((status = 200, description = "Added, now or earlier", body = SaleView), RestockProblems),
)]
pub(super) async fn restock(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<SaleId>,
    Json(RestockRequest { adjustment_id, units: Whole(units) }): Json<RestockRequest>,
) -> Result<axum::Json<SaleView>, Problem> {
    let adjustment_id = AdjustmentId::parse(adjustment_id)?;
    let quantity = Quantity::new(units).ok_or_else(|| {
        let accepted = format!("a whole number from 1 to {}", Quantity::MAX);
        ProblemType::Invalid.because(format!("units is {units}; accepted: {accepted}"))
    })?;
    let changed = api.operations.restock(&by, &id, adjustment_id, quantity, Utc::now()).await?;
    answer(&api, &id, changed).await
}

/// End a sale
///
/// Orders that were submitted before are still decided. Closing it again changes nothing.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/close", tag = "Operators", operation_id = "closeSale",
    security(("bearerAuth" = [])),
    params(("sale_id" = inline(super::docs::SaleIdParam), Path, description = "The sale")),
    responses((status = 200, description = "Closed, now or earlier", body = SaleView), CloseProblems),
)]
pub(super) async fn close(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<SaleId>,
) -> Result<axum::Json<SaleView>, Problem> {
    let changed = api.operations.close(&by, &id, Utc::now()).await?;
    answer(&api, &id, changed).await
}

/// Whether users are checked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerificationRequest {
    /// Whether users are checked before they may buy, from now on
    #[schema(example = false)]
    verification: bool,
}

/// Check the users of a sale, or sell without checks
///
/// For the case that the user service is unavailable, or available again. Switched off, orders that wait for it are sold
/// within seconds, those that have waited for a minute within half a minute. Repeating it changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/verification", tag = "Operators", operation_id = "switchVerification",
    security(("bearerAuth" = [])),
    params(("sale_id" = inline(super::docs::SaleIdParam), Path, description = "The sale")),
    request_body = VerificationRequest,
    responses((status = 200, description = "Switched, now or earlier", body = SaleView), VerificationProblems),
)]
pub(super) async fn verify(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<SaleId>,
    Json(VerificationRequest { verification }): Json<VerificationRequest>,
) -> Result<axum::Json<SaleView>, Problem> {
    let changed = api.operations.verify(&by, &id, verification).await?;
    if let Changed::Done { state, .. } = &changed {
        warn_of_checks(&api, state);
    }
    answer(&api, &id, changed).await
}

async fn answer(
    api: &Shared,
    id: &SaleId,
    changed: Changed,
) -> Result<axum::Json<SaleView>, Problem> {
    match changed {
        Changed::Done { state, .. } => {
            api.sale_cache.read(std::slice::from_ref(id)).await?;
            Ok(axum::Json(SaleView::of(&state, Utc::now())))
        }
        Changed::Conflict(first) => Err(ProblemType::AdjustmentConflict.because(format!(
            "adjustment {} has added {} units to sale {}",
            first.adjustment_id,
            first.units.get(),
            first.sale_id
        ))),
        Changed::StockTooLarge => Err(ProblemType::Invalid.because(StockTooLarge.to_string())),
        Changed::UnknownSale => Err(unknown(id)),
    }
}
