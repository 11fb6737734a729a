//! Showing sales.

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Shared;
use super::contracts::problems::{SaleListProblems, SaleProblems};
use super::etag;
use super::problem::{Problem, ProblemType};
use super::requests::Id;
use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;
use crate::domain::sale::{PauseMode, SaleState};

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
    #[schema(value_type = super::contracts::schemas::PhaseName, inline)]
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
    /// While it is paused: whether orders are refused or held, or held because the ledger was restored from a backup
    #[schema(value_type = Option<super::contracts::schemas::PausedName>, inline, required)]
    paused: Option<&'static str>,
    /// Whether decisions of it are in an archive
    archived: bool,
    /// Counts restocks, switchings of verification, pauses, their ends and the closing; begins with 1
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
            paused: state.paused.map(PauseMode::name),
            archived: state.archived,
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
        ("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale"),
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
