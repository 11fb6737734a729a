//! A user service to try floodgate against: slow and unreliable, as it is told to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How it behaves, and how often it was called.
#[derive(Debug)]
pub struct UserService {
    /// Time until it answers.
    pub latency: Duration,
    /// The share of calls that it fails, 0 to 1, spread evenly.
    pub failures: f64,
    calls: AtomicU64,
}

#[derive(Deserialize)]
struct Question {
    #[serde(rename = "user_id")]
    _user_id: String,
}

impl UserService {
    /// A service that allows everybody, after `latency`.
    pub fn new(latency: Duration, failures: f64) -> Self {
        Self { latency, failures, calls: AtomicU64::new(0) }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Answers on `listener` until `stop`.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let routes = Router::new().route("/verify", post(verify)).with_state(self);
        axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

async fn verify(State(service): State<Arc<UserService>>, Json(_): Json<Question>) -> Response {
    let call = service.calls.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(service.latency).await;
    if fails(call, service.failures) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    Json(serde_json::json!({ "allowed": true })).into_response()
}

/// Whether the share of failures reaches another whole one with this call.
fn fails(call: u64, share: f64) -> bool {
    let whole = |calls: u64| (calls as f64 * share).floor();
    whole(call + 1) > whole(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_as_many_as_asked_for() {
        for (share, expected) in [(0.0, 0), (0.02, 20), (0.5, 500), (1.0, 1000)] {
            let failed = (0..1000).filter(|&call| fails(call, share)).count();
            assert_eq!(failed, expected);
        }
    }
}
