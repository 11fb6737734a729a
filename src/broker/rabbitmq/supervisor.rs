//! Keeps a consumer going: a new session whenever one is lost, and messages that break sessions found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::consumer::{Session, Source, breaks_frames};
use super::oversized::replace;
use crate::broker::{BrokerError, Delivery};
use crate::retry::Backoff;

/// How long to wait before the next session while one message is known to break them.
const ISOLATING: Duration = Duration::from_millis(50);

/// Runs one [`Session`] after the other.
pub(super) struct Supervisor {
    pub source: Source,
    pub stop: CancellationToken,
    /// Set once a session was lost and another is open.
    pub interrupted: Arc<AtomicBool>,
}

/// What a lost session leaves to be done.
#[derive(Default)]
struct Suspicion {
    /// Messages that the next session takes one by one.
    careful: usize,
    /// Messages to look at before, because one may not fit a frame.
    oversized: usize,
}

impl Supervisor {
    pub(super) async fn run(self, first: Option<Session>, deliver: UnboundedSender<Delivery>) {
        let mut deliver = Some(deliver);
        let mut backoff = Backoff::reconnect();
        let mut session = first;
        let mut had_session = session.is_some();
        let mut suspicion = Suspicion::default();
        loop {
            let ended = match session.take() {
                Some(mut session) => {
                    let ended = session.run(&mut deliver, &self.stop).await;
                    suspicion = ended.as_ref().map_or_else(
                        |error| Suspicion {
                            careful: session.suspects(error),
                            oversized: session.oversized(error),
                        },
                        |()| Suspicion::default(),
                    );
                    if suspicion.careful == 0 {
                        backoff.reset();
                    }
                    ended
                }
                None => match self.open(&mut suspicion).await {
                    Ok(opened) => {
                        if std::mem::replace(&mut had_session, true) {
                            self.source.link.metrics.reconnects.inc();
                        }
                        session = Some(opened);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            let Err(error) = ended else {
                if deliver.is_none() {
                    return;
                }
                continue;
            };
            if self.stop.is_cancelled() {
                return;
            }
            let delay = if breaks_frames(&error) { ISOLATING } else { backoff.next_delay() };
            let Suspicion { careful, .. } = suspicion;
            let Source { link, queue, .. } = &self.source;
            if breaks_frames(&error) {
                tracing::warn!(?queue, %error, careful, "a message does not fit a frame");
            } else {
                link.outage.failed(&error);
                tracing::debug!(?queue, %error, ?delay, careful, "lost a consumer, trying again");
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Opens another session.
    async fn open(&self, suspicion: &mut Suspicion) -> Result<Session, BrokerError> {
        let Source { link, queue, .. } = &self.source;
        if suspicion.oversized > 0 {
            let replaced = replace(link, queue, suspicion.oversized).await?;
            suspicion.oversized = 0;
            tracing::warn!(?queue, replaced, "replaced messages whose headers did not fit a frame");
        }
        let session = self.source.open(suspicion.careful).await?;
        self.interrupted.store(true, Ordering::Relaxed);
        tracing::debug!(?queue, careful = suspicion.careful, "consuming again");
        Ok(session)
    }
}
