//! How fast one buyer may order.
//!
//! Answers say how much is left, as the IETF draft "RateLimit header fields for HTTP" (version 10) has it.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

use super::Shared;
use super::problem::{Problem, ProblemType};
use crate::api::ApiSettings;
use crate::domain::order::UserId;

/// How often buyers who have not ordered lately are forgotten.
const FORGET_BUYERS_EVERY: Duration = Duration::from_secs(10);

type Buyers =
    RateLimiter<String, DefaultKeyedStateStore<String>, DefaultClock, StateInformationMiddleware>;

/// Counts the orders of each buyer.
pub(super) struct Rate {
    buyers: Buyers,
    per_second: u32,
    burst: u32,
    /// `RateLimit-Policy`.
    policy: HeaderValue,
}

/// What a buyer may still do: the headers `RateLimit-Policy` and `RateLimit`.
pub(super) struct Left {
    policy: HeaderValue,
    remaining: u32,
    reset_s: u64,
}

impl Rate {
    pub(super) fn of(settings: &ApiSettings) -> Self {
        let (per_second, burst) = (settings.buyer_orders_per_s, settings.buyer_burst);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let buyers = RateLimiter::keyed(quota).with_middleware();
        let (per_second, burst) = (per_second.get(), burst.get());
        let window_s = burst.div_ceil(per_second);
        let policy = HeaderValue::from_str(&format!("\"buyer\";q={burst};w={window_s}"))
            .unwrap_or_else(|error| unreachable!("ASCII: {error}"));
        Self { buyers, per_second, burst, policy }
    }

    /// Counts an order of `buyer`. The error is the problem to answer with, and what is left.
    pub(super) fn count(&self, buyer: &UserId) -> Result<Left, (Problem, Left)> {
        match self.buyers.check_key(&buyer.to_string()) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let spent = self.burst.saturating_sub(remaining);
                Ok(self.left(remaining, spent.div_ceil(self.per_second).into()))
            }
            Err(until) => {
                let wait = until.wait_time_from(DefaultClock::default().now());
                let problem = ProblemType::RateLimited
                    .because(format!(
                        "accepted: {} orders a second from one buyer, {} at once",
                        self.per_second, self.burst
                    ))
                    .retry_after(wait);
                Err((problem, self.left(0, wait.as_secs() + 1)))
            }
        }
    }

    fn left(&self, remaining: u32, reset_s: u64) -> Left {
        Left { policy: self.policy.clone(), remaining, reset_s }
    }
}

impl Left {
    /// Adds what is left to an answer.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let Self { policy, remaining, reset_s } = self;
        headers.insert(HeaderName::from_static("ratelimit-policy"), policy.clone());
        let left = HeaderValue::try_from(format!("\"buyer\";r={remaining};t={reset_s}"));
        headers.extend(left.ok().map(|left| (HeaderName::from_static("ratelimit"), left)));
    }
}

/// Forgets buyers who have not ordered lately, for as long as it is polled.
pub(super) async fn forget_buyers(api: Shared) {
    loop {
        tokio::time::sleep(FORGET_BUYERS_EVERY).await;
        api.rate.buyers.retain_recent();
        api.rate.buyers.shrink_to_fit();
    }
}
