//! The verifier's port: may this user buy? And the policy of when to ask it.

mod breaker;
mod check;
mod http;
mod outcomes;
mod policy;
mod sale_queue;
mod slow_start;
mod verdict_cache;

use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_with::{DurationMilliSeconds, DurationSeconds, serde_as};

use crate::domain::order::Order;

use breaker::{Breaker, Failed};
pub use http::HttpVerifier;
pub use outcomes::{Limits, Outcomes, Verifiable, Wait};
pub use policy::Verification;

/// What an operator should know who has users checked by settings without a `verification.url`.
pub const NO_USER_SERVICE: &str = "verification.url is empty in these settings; orders wait until \
     they expire, unless workers have FLOODGATE_VERIFICATION__URL set";

/// The service that knows the users. It is slow, and at times unavailable; it is never asked while a lock or a
/// transaction is open.
#[async_trait]
pub trait Verifier: Send + Sync {
    /// Whether the user of `order` may have it.
    async fn verify(&self, order: &Order) -> Result<Verdict, VerifierError>;
}

/// What a verifier says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The user may buy, if there is stock.
    Allowed,
    /// The user may not.
    Denied,
}

/// The verifier gave no verdict, which says nothing about the user.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// It has too much to do.
    #[error("user service asks for patience")]
    Busy {
        /// For how long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// It doesn't understand the question about this user (400, 422).
    #[error("user service can't answer for this user: {0}")]
    Unanswerable(String),
    /// It can't be reached, didn't answer in time, or gave an answer that is none.
    #[error("user service unavailable: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Section `verification` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VerificationSettings {
    pub url: String,
    #[serde(rename = "timeout_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub timeout: Duration,
    pub attempts: u32,
    pub max_in_flight_per_sale: usize,
    pub max_in_flight: usize,
    pub breaker_calls: usize,
    #[serde(rename = "breaker_pause_ms")]
    #[serde_as(as = "DurationMilliSeconds<u64>")]
    pub breaker_pause: Duration,
    #[serde(rename = "remember_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub remember: Duration,
}
