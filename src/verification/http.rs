//! The verifier behind HTTP: `POST {url}/verify`.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::{Verdict, VerificationSettings, Verifier, VerifierError};
use crate::domain::order::Order;
use crate::http;

/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// Connections that are kept although nothing is asked.
const IDLE_CONNECTIONS: usize = 256;

/// [`Verifier`] that asks a user service over HTTP.
pub struct HttpVerifier {
    client: Client,
    url: Url,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names on the wire")]
struct Question<'a> {
    user_id: &'a str,
    sale_id: &'a str,
    order_id: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    allowed: bool,
    /// Why not. For logs: buyers are told `user_denied`.
    #[serde(default)]
    reason: Option<String>,
}

impl HttpVerifier {
    /// A verifier at `settings.url`. Connects when it is first asked.
    pub fn new(settings: &VerificationSettings) -> Result<Self, VerifierError> {
        let base = settings.url.trim_end_matches('/');
        let url = Url::parse(&format!("{base}/verify")).map_err(unavailable)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(unavailable("the URL must begin with http:// or https://"));
        }
        let client = http::client()
            .timeout(settings.timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(unavailable)?;
        Ok(Self { client, url })
    }
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> VerifierError {
    VerifierError::Unavailable(error.into())
}

#[async_trait]
impl Verifier for HttpVerifier {
    async fn verify(&self, order: &Order) -> Result<Verdict, VerifierError> {
        let question = Question {
            user_id: order.user_id.as_str(),
            sale_id: order.sale_id.as_str(),
            order_id: order.id.as_str(),
        };
        let sending = self.client.post(self.url.clone()).json(&question).send();
        // The URL may hold a password.
        let without_url = |error: reqwest::Error| unavailable(error.without_url());
        let mut response = sending.await.map_err(without_url)?;
        let (status, retry_after) = (response.status(), http::retry_after(response.headers()));
        if status == StatusCode::TOO_MANY_REQUESTS
            || (status == StatusCode::SERVICE_UNAVAILABLE && retry_after.is_some())
        {
            return Err(VerifierError::Busy { retry_after });
        }
        if matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) {
            return Err(VerifierError::Unanswerable(format!("it answered {status}")));
        }
        if status != StatusCode::OK {
            return Err(unavailable(format!("it answered {status}")));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(unavailable("its answer is too large"));
            }
            body.extend_from_slice(&chunk);
        }
        let Answer { allowed, reason } = serde_json::from_slice(&body).map_err(unavailable)?;
        if allowed {
            return Ok(Verdict::Allowed);
        }
        tracing::debug!(order_id = %order.id, reason = reason.as_deref(), "denied");
        Ok(Verdict::Denied)
    }
}
