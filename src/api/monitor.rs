//! What a worker serves: its metrics, and whether it works.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::problem::Problems;
use super::settings::ApiSettings;
use super::{public_url, server};
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::status::WorkerHealth;

/// A server for who watches a worker. It answers everyone who can reach it, and only reads.
pub struct Monitor {
    /// Limits on connections and requests.
    pub settings: ApiSettings,
    /// What is shown.
    pub metrics: Arc<Metrics>,
    /// Whether the worker works.
    pub health: Arc<WorkerHealth>,
}

impl Monitor {
    /// Serves on `listener` until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let problems = Arc::new(Problems::of(&public_url(&self.settings, &listener)));
        let settings = self.settings.clone();
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(live))
            .route("/readyz", get(ready))
            .fallback(server::not_found)
            .method_not_allowed_fallback(server::method_not_allowed)
            .with_state(Arc::new(self));
        let is_on_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let routes = if is_on_loopback { routes.layer(from_fn(server::local)) } else { routes };
        server::serve(listener, routes, &settings, problems, stop).await;
    }
}

async fn metrics(State(monitor): State<Arc<Monitor>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], monitor.metrics.text())
}

async fn live(State(monitor): State<Arc<Monitor>>) -> (StatusCode, &'static str) {
    if monitor.health.is_stuck() {
        (StatusCode::SERVICE_UNAVAILABLE, "orders wait, all servers answer, and nothing moves\n")
    } else {
        (StatusCode::OK, "live\n")
    }
}

async fn ready(State(monitor): State<Arc<Monitor>>) -> (StatusCode, &'static str) {
    if monitor.health.is_consuming() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "takes no orders\n")
    }
}
