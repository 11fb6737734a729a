//! Which shards of a divided intake this worker takes.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::shards::{ShardMap, ShardMapError, WorkerId};

/// How often a worker shows that it runs, and looks who else does.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long it waits when it may not.
const REFUSED: Duration = Duration::from_mins(1);

/// Shows that this worker runs, and has the broker take its shards, until `stop`; then leaves them to the others.
/// While the map is unavailable the shards stay as they are.
pub(super) async fn steer(
    map: Arc<dyn ShardMap>,
    broker: Arc<dyn Broker>,
    stop: CancellationToken,
) {
    let worker = WorkerId::new();
    let mut taken = None;
    while !stop.is_cancelled() {
        let mut wait = BEAT_EVERY;
        match map.beat(worker).await {
            Ok(roster) => {
                let shards = roster.shards_of(worker);
                if taken.as_ref() != Some(&shards) {
                    let workers = roster.workers.len();
                    if taken.is_some() || !shards.is_empty() {
                        tracing::info!(
                            ?shards,
                            of = roster.division.shards,
                            workers,
                            "taking shards"
                        );
                    }
                    broker.take_shards(&shards);
                    taken = Some(shards);
                }
            }
            Err(error @ ShardMapError::Unavailable(_)) => {
                tracing::debug!(%error, "can't look for shards");
            }
            Err(error @ ShardMapError::Refused(_)) => {
                tracing::error!(%error, "can't take shards; see: floodgate check");
                wait = REFUSED;
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    if let Err(error) = map.leave(worker).await {
        // The others notice that it is silent.
        tracing::debug!(%error, "can't leave the shards");
    }
}
