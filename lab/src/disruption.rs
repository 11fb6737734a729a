//! What can go wrong with a user service besides failures: calls that hang, times without answers, and a limit on
//! calls a second. A layer around the one of floodgate.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use floodgate::domain::order::SaleId;
use floodgate::user_service::EvenShare;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The largest question that is looked at, in bytes; the service itself takes no larger one.
const MAX_QUESTION_BYTES: usize = 4096;

/// What goes wrong. By default, nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disruption {
    /// The share of calls that hang, spread evenly.
    pub hangs: f64,
    /// Sales of which every call hangs.
    pub hanging_sales: HashSet<SaleId>,
    /// How long a call hangs before it is answered.
    pub hang: Duration,
    /// Times when no call is answered.
    pub stall: Option<Stall>,
    /// Calls a second, and as many at once, beyond which calls are refused (429).
    pub rate_limit: Option<NonZeroU32>,
}

/// From time to time answers stop: those that are due then are given when the stall ends, all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stall {
    every: Duration,
    length: Duration,
}

/// Why there can be no such stall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stall of {length:?} every {every:?}; accepted: more than none, and shorter than the time between two of them"
)]
pub struct InvalidStall {
    every: Duration,
    length: Duration,
}

impl Stall {
    /// Stalls of `length`, each ending a whole number of times `every` after the service's start.
    pub fn new(every: Duration, length: Duration) -> Result<Self, InvalidStall> {
        if length.is_zero() || length >= every {
            return Err(InvalidStall { every, length });
        }
        Ok(Self { every, length })
    }

    /// The end of the stall that goes on at `at`, or `None` if there is none then. Both in time
    /// from the service's start.
    fn end(&self, at: Duration) -> Option<Duration> {
        let passed = Duration::from_nanos_u128(at.as_nanos() % self.every.as_nanos());
        let left = self.every.saturating_sub(passed);
        (left <= self.length).then(|| at.saturating_add(left))
    }
}

struct Disrupted {
    disruption: Disruption,
    hangs: EvenShare,
    limiter: Option<DefaultDirectRateLimiter>,
    started: Instant,
    stop: CancellationToken,
}

#[derive(Deserialize)]
struct Question {
    sale_id: String,
}

impl Disruption {
    /// Disrupts the calls of `/verify` among `routes`. At `stop` every call that waits goes on.
    pub(crate) fn around(self, routes: Router, stop: CancellationToken) -> Router {
        let disrupted = Disrupted {
            hangs: EvenShare::new(self.hangs),
            limiter: self.rate_limit.map(|calls| RateLimiter::direct(Quota::per_second(calls))),
            started: Instant::now(),
            disruption: self,
            stop,
        };
        routes.layer(from_fn_with_state(Arc::new(disrupted), disrupt))
    }
}

async fn disrupt(
    State(disrupted): State<Arc<Disrupted>>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() != "/verify" {
        return next.run(request).await;
    }
    if let Some(wait) = disrupted.must_wait() {
        // Whole seconds (RFC 9110 section 10.2.3): rounded up, it is not too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let retry_after = [(header::RETRY_AFTER, HeaderValue::from(seconds))];
        return (StatusCode::TOO_MANY_REQUESTS, retry_after, "too many calls a second")
            .into_response();
    }
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_QUESTION_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    if disrupted.hangs(&body) {
        disrupted.pause(disrupted.disruption.hang).await;
    }
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    disrupted.pause(disrupted.stall_left()).await;
    response
}

impl Disrupted {
    /// How long until another call is within the limit; `None` if this one is.
    fn must_wait(&self) -> Option<Duration> {
        let until = self.limiter.as_ref()?.check().err()?;
        Some(until.wait_time_from(DefaultClock::default().now()))
    }

    fn hangs(&self, question: &[u8]) -> bool {
        let sales = &self.disruption.hanging_sales;
        let of_sale = || {
            let question = serde_json::from_slice(question);
            question
                .is_ok_and(|Question { sale_id }| sales.iter().any(|sale| sale.as_str() == sale_id))
        };
        self.hangs.next() || (!sales.is_empty() && of_sale())
    }

    fn stall_left(&self) -> Duration {
        let now = self.started.elapsed();
        let end = self.disruption.stall.and_then(|stall| stall.end(now));
        end.map_or(Duration::ZERO, |end| end.saturating_sub(now))
    }

    async fn pause(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        tokio::select! {
            () = sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_ends_with_its_period() {
        let ms = Duration::from_millis;
        let stall = Stall::new(ms(1000), ms(200)).unwrap();
        for (at, end) in [
            (0, None),
            (799, None),
            (800, Some(1000)),
            (999, Some(1000)),
            (1000, None),
            (61_900, Some(62_000)),
        ] {
            assert_eq!(stall.end(ms(at)), end.map(ms), "{at}");
        }
        assert!(Stall::new(ms(1000), ms(0)).is_err());
        let error = Stall::new(ms(200), ms(200)).unwrap_err().to_string();
        assert!(error.starts_with("a stall of 200ms every 200ms; accepted"), "{error}");
    }
}
