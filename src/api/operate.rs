//! What operators do to sales.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Shared;
use super::access::AsOperator;
use super::contracts::problems::{
    CloseProblems, OpenProblems, PauseProblems, RestockProblems, ResumeProblems,
    VerificationProblems,
};
use super::problem::{Problem, ProblemType};
use super::requests::{Id, Json};
use super::sales::{SaleView, unknown};
use crate::domain::order::{AdjustmentId, Quantity, SaleId};
use crate::domain::sale::{PauseMode, Sale, SaleState, StockTooLarge};
use crate::domain::whole::Whole;
use crate::ledger::{Changed, Opening};
use crate::sales::operations;
use crate::verification::NO_USER_SERVICE;

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
    params(("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale")),
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
    params(("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale")),
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
    params(("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale")),
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

/// How to pause.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseRequest {
    #[schema(value_type = super::contracts::schemas::PauseModeName, inline)]
    mode: PauseMode,
}

/// Pause a sale
///
/// What is decided stays. Refused are also orders that wait in the queue when their turn comes; held ones are decided
/// once the sale is resumed. A paused sale can be paused otherwise: held orders are then refused. Repeating it changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/pause", tag = "Operators", operation_id = "pauseSale",
    security(("bearerAuth" = [])),
    params(("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale")),
    request_body = PauseRequest,
    responses((status = 200, description = "Paused, now or earlier", body = SaleView), PauseProblems),
)]
pub(super) async fn pause(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<SaleId>,
    Json(PauseRequest { mode }): Json<PauseRequest>,
) -> Result<axum::Json<SaleView>, Problem> {
    let changed = api.operations.pause(&by, &id, Some(mode), Utc::now()).await?;
    answer(&api, &id, changed).await
}

/// Resume a paused sale
///
/// Orders that were held are decided within half a minute, as if their waiting had begun only now. Repeating it changes
/// nothing.
#[utoipa::path(
    post, path = "/v1/sales/{sale_id}/resume", tag = "Operators", operation_id = "resumeSale",
    security(("bearerAuth" = [])),
    params(("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale")),
    responses((status = 200, description = "Not paused, or not any more", body = SaleView), ResumeProblems),
)]
pub(super) async fn resume(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<SaleId>,
) -> Result<axum::Json<SaleView>, Problem> {
    let changed = api.operations.pause(&by, &id, None, Utc::now()).await?;
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
        Changed::NotAccepted => Err(ProblemType::LedgerRestored
            .because(format!("sale {id} is held until its ledger is accepted"))),
        Changed::StockTooLarge => Err(ProblemType::Invalid.because(StockTooLarge.to_string())),
        Changed::UnknownSale => Err(unknown(id)),
    }
}
