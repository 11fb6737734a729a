//! The live page: plain files, embedded, that load nothing from elsewhere.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;

use super::Shared;

/// Where the page says whether a token is needed.
const ACCESS: &str = "{{access}}";

/// The page and its parts.
pub(super) fn routes() -> Router<Shared> {
    let script = |text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text))
    };
    Router::new()
        .route("/", get(index))
        .route("/style.css", get(style))
        .route("/app.js", script(include_str!("page/app.js")))
}

async fn index(State(api): State<Shared>) -> impl IntoResponse {
    let access = if api.gate.is_some() { "token" } else { "open" };
    Html(include_str!("page/index.html").replace(ACCESS, access))
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("page/style.css"))
}
