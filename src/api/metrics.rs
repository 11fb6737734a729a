//! `/metrics`, for Prometheus.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::response::IntoResponse;

use super::Shared;
use super::access::Access;
use super::contracts::problems::MetricsProblems;
use super::problem::Problem;
use super::server::for_this_server;
use crate::metrics::CONTENT_TYPE;

/// The metrics of this process, in Prometheus's text format
#[utoipa::path(get, path = "/metrics", tag = "Health", security((), ("bearer" = [])), responses(
    (status = 200, description = "Metrics", content_type = "text/plain", body = String),
    MetricsProblems,
))]
pub(super) async fn show(
    State(api): State<Shared>,
    request: Request,
) -> Result<impl IntoResponse + use<>, Problem> {
    for_this_server(&api, &request)?;
    // What a proxy on this machine passes on comes from elsewhere.
    let is_forwarded =
        ["forwarded", "x-forwarded-for"].iter().any(|name| request.headers().contains_key(*name));
    if !(api.settings.metrics_open || api.is_on_loopback && !is_forwarded) {
        let mut parts = request.into_parts().0;
        Access::from_request_parts(&mut parts, &api).await?.must_scrape()?;
    }
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], api.metrics.text()))
}
