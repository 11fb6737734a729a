//! The sender of webhooks: what `floodgate webhooks` runs.
//!
//! It reads the feed for each webhook and sends what is there, one task for each webhook, so that an endpoint
//! that hangs delays no other. What an endpoint does not accept waits in the database, and is tried again with growing
//! delays; how far the feed is read is written in the same transaction, so nothing is lost by a crash, and what was
//! under way is sent again. Of several senders one works for a webhook at a time; another takes over when it is gone.

mod endpoint;
mod lane;
mod schedule;
mod source;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::broker::Broker;
use crate::ledger::Books;
use crate::metrics::Metrics;
use crate::status::WorkerHealth;
use crate::webhooks::{Webhook, WebhookError, WebhookId, WebhookQueue, WebhookSettings};
use endpoint::Endpoint;
use lane::Lane;

/// How often to look which webhooks there are.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long a claim holds. A webhook whose sender has died is taken over after so long.
const CLAIM: Duration = Duration::from_secs(30);
/// How long recording the last results may take when it ends.
const RECORDING: Duration = Duration::from_secs(10);
/// How often deliveries that are over are forgotten.
const FORGET_EVERY: Duration = Duration::from_mins(1);

/// Sends events to webhooks.
pub struct WebhookSender {
    /// Where webhooks are kept.
    pub queue: Arc<dyn WebhookQueue>,
    /// What has the feed.
    pub broker: Arc<dyn Broker>,
    /// Where sales are sent again from.
    pub books: Arc<dyn Books>,
    /// How to send.
    pub settings: WebhookSettings,
    /// The `source` of events.
    pub source: String,
    /// What this process counts.
    pub metrics: Arc<Metrics>,
    /// Told whether it works.
    pub health: Arc<WorkerHealth>,
}

/// Why a sender can't begin.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client of webhooks can't be made: {0}")]
pub struct SenderError(#[from] reqwest::Error);

/// What all lanes share.
struct Shared {
    sender: WebhookSender,
    endpoint: Endpoint,
    /// Names this sender.
    id: String,
}

/// A lane at work.
struct Running {
    revision: i32,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl WebhookSender {
    /// Sends until `stop`, then finishes the requests that are under way.
    pub async fn run(self, stop: CancellationToken) -> Result<(), SenderError> {
        let endpoint = Endpoint::new(&self.settings)?;
        let shared = Arc::new(Shared { sender: self, endpoint, id: Uuid::now_v7().to_string() });
        Lanes { shared, running: HashMap::new(), claimed_at: Instant::now() }.run(stop).await;
        Ok(())
    }
}

/// The lanes of a sender.
struct Lanes {
    shared: Arc<Shared>,
    running: HashMap<WebhookId, Running>,
    claimed_at: Instant,
}

impl Lanes {
    async fn run(mut self, stop: CancellationToken) {
        let mut looking = tokio::time::interval(LOOK_EVERY);
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut forget_at = Instant::now();
        while stop.run_until_cancelled(looking.tick()).await.is_some() {
            match self.claim().await {
                Ok(all) => {
                    self.shared.sender.health.set_consuming(true);
                    let states: Vec<_> = all.iter().map(|webhook| webhook.status.name()).collect();
                    self.shared.sender.metrics.webhooks.are(&states);
                    self.follow(all);
                }
                Err(error) => {
                    tracing::debug!(%error, "webhooks can't be claimed");
                    self.shared.sender.health.set_consuming(false);
                    // Another sender may have them by now.
                    if self.claimed_at.elapsed() >= CLAIM {
                        self.follow(Vec::new());
                    }
                }
            }
            if Instant::now() >= forget_at {
                self.forget().await;
                forget_at = Instant::now() + FORGET_EVERY;
            }
        }
        self.end().await;
    }

    async fn claim(&mut self) -> Result<Vec<Webhook>, WebhookError> {
        let Shared { sender, id, .. } = &*self.shared;
        let (now, begun) = (Utc::now(), Instant::now());
        let all = sender.queue.claim(id, (now + CLAIM).timestamp_millis(), now.timestamp_millis());
        let all = all.await?;
        self.claimed_at = begun;
        Ok(all)
    }

    /// Has a lane for each of `all` that this sender has, as it is now, and no others.
    fn follow(&mut self, all: Vec<Webhook>) {
        let is_ours = |webhook: &Webhook| {
            webhook.claimed_by.as_ref() == Some(&self.shared.id)
                && webhook.status.disabled_at.is_none()
        };
        let ours: HashMap<_, _> =
            all.into_iter().filter(is_ours).map(|webhook| (webhook.id, webhook)).collect();
        self.running.retain(|id, lane| {
            let goes_on = ours.get(id).is_some_and(|webhook| webhook.revision == lane.revision)
                && !lane.task.is_finished();
            if !goes_on {
                lane.task.abort();
            }
            goes_on
        });
        for (id, webhook) in ours {
            self.running.entry(id).or_insert_with(|| {
                let (revision, stop) = (webhook.revision, CancellationToken::new());
                let lane = Lane::new(self.shared.clone(), webhook);
                let task = tokio::spawn(lane.run(stop.clone()));
                Running { revision, stop, task }
            });
        }
    }

    async fn forget(&self) {
        let WebhookSender { queue, settings, .. } = &self.shared.sender;
        for id in self.running.keys() {
            if let Err(error) = queue.forget(*id, settings.keep_deliveries).await {
                tracing::debug!(%error, "deliveries that are over can't be forgotten");
            }
        }
    }

    /// Lets each lane finish what is under way, and gives the claims up.
    async fn end(self) {
        let Shared { sender, id, .. } = &*self.shared;
        sender.health.set_consuming(false);
        let mut lanes: Vec<Running> = self.running.into_values().collect();
        for lane in &lanes {
            lane.stop.cancel();
        }
        let ending = async {
            for lane in &mut lanes {
                // It ends with its token; one that panicked has nothing left to do.
                let _ = (&mut lane.task).await;
            }
        };
        if tokio::time::timeout(sender.settings.timeout + RECORDING, ending).await.is_err() {
            tracing::warn!("what was sent last could not be recorded; it is sent again");
        }
        for lane in &lanes {
            lane.task.abort();
        }
        if let Err(error) = sender.queue.release(id).await {
            tracing::debug!(%error, "the claims were not given up; they run out");
        }
    }
}
