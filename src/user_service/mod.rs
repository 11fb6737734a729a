//! A user service to try floodgate against: as slow, as unreliable and as strict as it is told to be.
//!
//! It answers what [`crate::verification`] asks, `POST /verify`, and `GET /calls` with its [`Counts`].
//! A [`Behaviour`] says how it behaves from the start; whoever runs it in the same process can also
//! make it hang and fail at a moment of their choice.

mod behaviour;
mod counts;
mod http;
mod latency;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::domain::order::{OrderId, SaleId, UserId};

use behaviour::EvenShare;
pub use behaviour::{Behaviour, InvalidStall, Stall};
pub use counts::Counts;
use counts::Tally;
pub use latency::{InvalidLatency, Latency, MAX_LATENCY, MAX_SAMPLES_BYTES};

/// How long a stopping service waits for questions that have not come in whole. Those that have are
/// answered at once.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A user service, on as many listeners as it is served on.
#[derive(Debug)]
pub struct UserService {
    behaviour: Behaviour,
    failures: EvenShare,
    hangs: EvenShare,
    random: Mutex<StdRng>,
    limiter: Option<DefaultDirectRateLimiter>,
    started: Instant,
    held: watch::Sender<bool>,
    failing: AtomicBool,
    tally: Tally,
}

/// What is asked: may this user have that order?
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    user: UserId,
    sale: SaleId,
    /// Nothing depends on it, but a question without it is malformed.
    _order: OrderId,
}

/// What a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allowed,
    /// With the reason.
    Denied(&'static str),
    Failed,
    /// With the time after which another call will be let through.
    RateLimited(Duration),
}

impl UserService {
    /// A service that behaves like that. The first stall is counted from now.
    pub fn new(behaviour: Behaviour) -> Self {
        Self {
            failures: EvenShare::new(behaviour.failures),
            hangs: EvenShare::new(behaviour.hangs),
            random: Mutex::new(StdRng::seed_from_u64(behaviour.seed)),
            limiter: behaviour
                .rate_limit
                .map(|calls| RateLimiter::direct(Quota::per_second(calls))),
            started: Instant::now(),
            held: watch::Sender::new(false),
            failing: AtomicBool::new(false),
            tally: Tally::default(),
            behaviour,
        }
    }

    /// Well-formed calls so far, answered or not.
    pub fn calls(&self) -> u64 {
        self.counts().calls
    }

    /// What has been asked and answered so far.
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// From now on every call waits, until [`UserService::release`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// All calls that have come since [`UserService::hold`] are answered at once.
    pub fn release(&self) {
        self.held.send_replace(false);
    }

    /// Whether every answer is a failure (503) from now on, whatever share of them was asked for.
    pub fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// Answers on `listener` until `stop`; then whoever waits is answered at once, and no more
    /// connections are taken.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let serving = axum::serve(listener, http::routes(self, stop.clone()))
            .with_graceful_shutdown(stop.clone().cancelled_owned())
            .into_future();
        let too_long = async {
            stop.cancelled().await;
            sleep(DRAIN_LIMIT).await;
        };
        tokio::select! {
            served = serving => served,
            () = too_long => Ok(()),
        }
    }

    /// Answers one call, after the time that it is to take or at `stop`.
    async fn answer(&self, question: &Question, stop: impl Future<Output = ()>) -> Answer {
        if let Some(wait) = self.must_wait() {
            self.tally.rate_limited(&question.user);
            return Answer::RateLimited(wait);
        }
        let fails = self.failures.next();
        let hangs =
            self.behaviour.hanging_sales.contains(&question.sale) || !fails && self.hangs.next();
        let call = self.tally.begin(&question.user, hangs);
        tokio::select! {
            () = self.take_time(hangs) => {}
            () = stop => {}
        }
        let answer = if fails || self.failing.load(Ordering::Relaxed) {
            Answer::Failed
        } else if let Some(reason) = self.behaviour.denies(&question.user) {
            Answer::Denied(reason)
        } else {
            Answer::Allowed
        };
        call.answered(answer);
        answer
    }

    /// How long until another call is within the limit; `None` if this one is.
    fn must_wait(&self) -> Option<Duration> {
        let until = self.limiter.as_ref()?.check().err()?;
        Some(until.wait_time_from(DefaultClock::default().now()))
    }

    async fn take_time(&self, hangs: bool) {
        let mut held = self.held.subscribe();
        // Whoever comes while all are held is answered with the others, without a latency of its own.
        if hangs || !*held.borrow() {
            let now = self.started.elapsed();
            sleep(self.due(now, hangs).saturating_sub(now)).await;
        }
        // The sender lives as long as the service.
        let _ = held.wait_for(|held| !held).await;
    }

    /// When to answer a call that came `at` that time after the start, in the same time.
    fn due(&self, at: Duration, hangs: bool) -> Duration {
        let stall_end = |at| self.behaviour.stall.as_ref().and_then(|stall| stall.end(at));
        let due = if hangs {
            at.saturating_add(self.behaviour.hang)
        } else if let Some(end) = stall_end(at) {
            return end;
        } else {
            let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
            at.saturating_add(self.behaviour.latency.draw(&mut *random))
        };
        stall_end(due).unwrap_or(due)
    }
}

#[cfg(test)]
mod tests;
