//! What can go wrong with a user service besides failures: calls that hang, times without answers, and a limit on
//! calls a second. A layer around the one of floodgate.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use floodgate::domain::order::SaleId;
use floodgate::user_service::EvenShare;
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Deserialize;
use serde_json::{Map, Value, json};
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
    counts: Counts,
}

/// Calls since the start, beside those that the service counts.
#[derive(Default)]
struct Counts {
    hung: AtomicU64,
    rate_limited: AtomicU64,
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
            counts: Counts::default(),
        };
        routes.layer(from_fn_with_state(Arc::new(disrupted), disrupt))
    }
}

async fn disrupt(
    State(disrupted): State<Arc<Disrupted>>,
    request: Request,
    next: Next,
) -> Response {
    match request.uri().path() {
        "/verify" => {}
        "/calls" => return disrupted.counted(next.run(request).await).await,
        _ => return next.run(request).await,
    }
    if let Some(wait) = disrupted.must_wait() {
        // Whole seconds (RFC 9110 section 10.2.3): rounded up, it is not too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        disrupted.counts.rate_limited.fetch_add(1, Ordering::Relaxed);
        let headers = [
            (header::RETRY_AFTER, HeaderValue::from(seconds)),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json")),
        ];
        let status = StatusCode::TOO_MANY_REQUESTS;
        let body = json!({ "title": "Too Many Requests", "status": 429, "detail": "too many calls a second" });
        return (status, headers, body.to_string()).into_response();
    }
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_QUESTION_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    if disrupted.hangs(&body) {
        disrupted.counts.hung.fetch_add(1, Ordering::Relaxed);
        disrupted.pause(disrupted.disruption.hang).await;
    }
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    disrupted.pause(disrupted.stall_left()).await;
    response
}

impl Disrupted {
    /// The service's counts with these.
    async fn counted(&self, counts: Response) -> Response {
        let body = to_bytes(counts.into_body(), MAX_QUESTION_BYTES).await.unwrap_or_default();
        let mut all: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
        all.insert("hung".to_owned(), self.counts.hung.load(Ordering::Relaxed).into());
        all.insert(
            "rate_limited".to_owned(),
            self.counts.rate_limited.load(Ordering::Relaxed).into(),
        );
        Json(all).into_response()
    }

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
