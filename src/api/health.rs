//! Whether the process lives, and whether it is ready for requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use parking_lot::Mutex;

use super::Shared;
use super::contracts::problems::{LiveProblems, ReadyProblems};
use super::problem::{Problem, ProblemType};
use crate::broker::{Broker, Queue};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A process that has not come round for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// A server that has not answered for so long is unavailable.
const UNAVAILABLE_AFTER: Duration = Duration::from_secs(5);

/// When things were last seen to work. Nothing is known at the start.
#[derive(Default)]
pub(super) struct Health {
    beat_at: Mutex<Option<Instant>>,
    broker_at: Mutex<Option<Instant>>,
}

impl Health {
    /// Looks after the process and the broker for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>, broker: Arc<dyn Broker>) {
        let looking = async {
            loop {
                match broker.depth(Queue::Intents).await {
                    Ok(_) => note(&self.broker_at),
                    Err(error) => tracing::debug!(%error, "the broker does not answer"),
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let beating = async {
            loop {
                note(&self.beat_at);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::join!(looking, beating);
    }
}

fn note(at: &Mutex<Option<Instant>>) {
    *at.lock() = Some(Instant::now());
}

fn within(at: &Mutex<Option<Instant>>, limit: Duration) -> bool {
    at.lock().is_some_and(|at| at.elapsed() < limit)
}

/// The process works; no server is asked
#[utoipa::path(get, path = "/livez", tag = "Health", responses(
    (status = 200, description = "It works", content_type = "text/plain", body = String),
    LiveProblems,
))]
pub(super) async fn live(State(api): State<Shared>) -> Result<&'static str, Problem> {
    if !within(&api.health.beat_at, STUCK_AFTER) {
        Err(ProblemType::Overloaded.because("the process is stuck"))
    } else if api.worker_health.is_stuck() {
        Err(ProblemType::Overloaded.because("orders wait, all servers answer, and nothing moves"))
    } else {
        Ok("live\n")
    }
}

/// Orders can be taken: not stopping, broker and ledger answer, and tokens can be verified
#[utoipa::path(get, path = "/readyz", tag = "Health", responses(
    (status = 200, description = "Send orders here", content_type = "text/plain", body = String),
    ReadyProblems,
))]
pub(super) async fn ready(State(api): State<Shared>) -> Result<&'static str, Problem> {
    if api.stop.is_cancelled() {
        Err(ProblemType::Overloaded.because("the server is stopping"))
    } else if !within(&api.health.broker_at, UNAVAILABLE_AFTER) {
        Err(ProblemType::BrokerUnavailable.because("the broker does not answer"))
    } else if api.sale_cache.age() > UNAVAILABLE_AFTER {
        Err(ProblemType::LedgerUnavailable.because("the ledger does not answer"))
    } else if api.token_verifier.as_ref().is_some_and(|token_verifier| !token_verifier.has_keys()) {
        Err(ProblemType::KeysUnavailable.because("the keys of tokens could not be read yet"))
    } else {
        Ok("ready\n")
    }
}
