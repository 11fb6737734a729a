//! The live page: plain files, embedded, that load nothing from elsewhere.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;

use super::Shared;

/// Where the page says whether a token is needed.
const ACCESS: &str = "{{access}}";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// A part of the page: where it is, its media type and its text.
const PARTS: [(&str, &str, &str); 11] = [
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/app.js", JAVASCRIPT, include_str!("page/app.js")),
    ("/client.js", JAVASCRIPT, include_str!("page/client.js")),
    ("/dom.js", JAVASCRIPT, include_str!("page/dom.js")),
    ("/operator.js", JAVASCRIPT, include_str!("page/operator.js")),
    ("/orders.js", JAVASCRIPT, include_str!("page/orders.js")),
    ("/overview.js", JAVASCRIPT, include_str!("page/overview.js")),
    ("/sale.js", JAVASCRIPT, include_str!("page/sale.js")),
    ("/sparkline.js", JAVASCRIPT, include_str!("page/sparkline.js")),
    ("/status.js", JAVASCRIPT, include_str!("page/status.js")),
];
/// The page and its parts.
pub(super) fn routes() -> Router<Shared> {
    PARTS.into_iter().fold(Router::new().route("/", get(index)), |routes, (path, kind, text)| {
        routes.route(path, get(async move || ([(header::CONTENT_TYPE, kind)], text)))
    })
}

async fn index(State(api): State<Shared>) -> impl IntoResponse {
    let access = if api.token_verifier.is_some() { "token" } else { "open" };
    Html(include_str!("page/index.html").replace(ACCESS, access))
}
