//! Telling how a worker does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{WorkerHealth, WorkerName, WorkerState, WorkerStatus};
use crate::broker::{Broker, Message};
use crate::metrics::Metrics;

const TELL_EVERY: Duration = Duration::from_secs(1);
/// Longer than the broker may take to confirm a status.
const STOOD_STILL: Duration = Duration::from_secs(15);

/// Publishes the status of the worker of this process each second until it has `ended`, and that it has. What the
/// broker does not take is not told.
pub async fn tell(
    broker: Arc<dyn Broker>,
    metrics: Arc<Metrics>,
    health: Arc<WorkerHealth>,
    ended: CancellationToken,
) {
    let name = WorkerName::here();
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told_at = Instant::now();
    while !ended.is_cancelled() {
        tokio::select! {
            biased;
            () = ended.cancelled() => {}
            _ = ticks.tick() => {}
        }
        let still = told_at.elapsed();
        told_at = Instant::now();
        if still > STOOD_STILL {
            // Otherwise the log would only have servers that closed its connections.
            tracing::warn!(
                seconds = still.as_secs(),
                "this process stood still, or could not tell its status"
            );
        }
        let mut status = WorkerStatus::of(&name, &metrics, &health);
        if ended.is_cancelled() {
            status.state = WorkerState::Ended;
        }
        let body = serde_json::to_vec(&status)
            .unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
        let published = broker.publish(&[Message::Status(&body)]).await;
        if let Err(error) = published.all() {
            tracing::debug!(%error, "can't tell the status");
        }
    }
}
