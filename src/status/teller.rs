//! Telling how a worker does.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{WorkerHealth, WorkerName, WorkerState, WorkerStatus};
use crate::broker::{Broker, Message};
use crate::metrics::Metrics;

const TELL_EVERY: Duration = Duration::from_secs(1);

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
    while !ended.is_cancelled() {
        tokio::select! {
            biased;
            () = ended.cancelled() => {}
            _ = ticks.tick() => {}
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
