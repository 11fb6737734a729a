//! A user service to try floodgate against: as slow, as unreliable and as strict as it is told to be.
//!
//! It answers what [`crate::verification`] asks, `POST /verify`, and `GET /calls` with its [`Counts`].
//! A [`Behaviour`] says how it behaves from the start; a program that runs it in its own process can also
//! make it wait and fail at a moment of its choice.

mod behaviour;
mod counts;
mod http;
mod latency;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::domain::order::{OrderId, SaleId, UserId};

pub use behaviour::{Behaviour, EvenShare};
use counts::CallCounts;
pub use counts::Counts;
pub use latency::{InvalidLatency, Latency, MAX_LATENCY, MAX_SAMPLES_BYTES};

/// How long a stopping service waits for questions that have not come in whole. Those that have are
/// answered at once.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A user service, on as many listeners as it is served on.
#[derive(Debug)]
pub struct UserService {
    behaviour: Behaviour,
    failures: EvenShare,
    random: Mutex<StdRng>,
    held: watch::Sender<bool>,
    failing: AtomicBool,
    counts: CallCounts,
}

/// What is asked: may this user have that order?
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    user: UserId,
    /// Nothing depends on sale and order, but a question without them is malformed.
    sale: SaleId,
    _order: OrderId,
}

/// What a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allowed,
    /// With the reason.
    Denied(&'static str),
    Failed,
}

impl UserService {
    /// A service that behaves like that.
    pub fn new(behaviour: Behaviour) -> Self {
        Self {
            failures: EvenShare::new(behaviour.failures),
            random: Mutex::new(StdRng::seed_from_u64(behaviour.seed)),
            held: watch::Sender::new(false),
            failing: AtomicBool::new(false),
            counts: CallCounts::default(),
            behaviour,
        }
    }

    /// Well-formed calls so far, answered or not.
    pub fn calls(&self) -> u64 {
        self.counts().calls
    }

    /// What has been asked and answered so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
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

    /// Answers on `listener` until `stop`; then every waiting call is answered at once, and no more
    /// connections are taken.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        serve(listener, self.routes(stop.clone()), stop).await
    }

    /// Its routes, for a server that adds to them. At `stop` every waiting call is answered.
    pub fn routes(self: Arc<Self>, stop: CancellationToken) -> axum::Router {
        http::routes(self, stop)
    }

    /// Answers one call, after the time that it is to take or at `stop`.
    async fn answer(&self, question: &Question, stop: impl Future<Output = ()>) -> Answer {
        let fails = self.failures.next();
        let call = self.counts.begin(&question.user);
        tokio::select! {
            () = self.take_time() => {}
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

    async fn take_time(&self) {
        let mut held = self.held.subscribe();
        // A call that comes while all are held is answered with the others, without a separate latency.
        if !*held.borrow() {
            let latency = {
                let mut random = self.random.lock();
                self.behaviour.latency.draw(&mut *random)
            };
            sleep(latency).await;
        }
        // The sender lives as long as the service.
        let _ = held.wait_for(|held| !held).await;
    }
}

/// Serves a user service's `routes` on `listener` until `stop`, and then the calls that have come in whole.
pub async fn serve(
    listener: TcpListener,
    routes: axum::Router,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let serving = axum::serve(listener, routes)
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

#[cfg(test)]
mod tests;
