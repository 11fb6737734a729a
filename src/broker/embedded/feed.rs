//! The feed in the file: a queue that is read and not consumed.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::{OnceCell, mpsc};

use super::queues::Queues;
use super::{classify_error, store};
use crate::broker::{BrokerError, Fed, FeedBounds, FeedError, FeedReader, Queue};
use crate::domain::event::FeedStart;
use crate::sqlite::Survives;

/// How often to look for others.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often what is too old is removed.
const REMOVE_EVERY: Duration = Duration::from_mins(1);
/// The queue's name among those of subscribers, which are what events are put into.
const NAME: &str = "feed";

/// The feed.
pub(super) struct Feed {
    queues: Arc<Queues>,
    bounds: FeedBounds,
    queue_id: OnceCell<i64>,
}

impl Feed {
    pub(super) fn new(queues: Arc<Queues>, bounds: FeedBounds) -> Self {
        Self { queues, bounds, queue_id: OnceCell::new() }
    }

    /// The number of its queue; makes it at first.
    pub(super) async fn queue_id(&self) -> Result<i64, BrokerError> {
        let making = async || {
            let queue = Queue::Subscriber(NAME.to_owned());
            self.queues.bound(&queue, &self.bounds.topics()).await
        };
        self.queue_id.get_or_try_init(making).await.copied()
    }

    /// Reads from `start` on.
    pub(super) async fn read(&self, start: FeedStart) -> Result<FeedReader, FeedError> {
        let (queues, queue_id) = (self.queues.clone(), self.queue_id().await?);
        let after = match start {
            FeedStart::Oldest => None,
            FeedStart::After(after) => Some(i64::try_from(after).unwrap_or(i64::MAX)),
            FeedStart::Since(time) => {
                let readers = queues.file.readers();
                let before = store::before(readers, queue_id, time.timestamp()).await;
                before.map_err(classify_error)?
            }
        };
        if let Some(place) = after {
            let next = store::after(queues.file.readers(), queue_id, place, 1).await;
            let next = next.map_err(classify_error)?;
            let is_kept = match next.first() {
                Some(next) => !is_apart(after, next.position),
                // A file that was restored has other messages at places that it had before.
                None => self.last_position(queue_id).await? >= place,
            };
            if !is_kept {
                return Err(FeedError::NotKept);
            }
        }
        let ahead = self.bounds.ahead();
        Ok(FeedReader::start(ahead, move |send| {
            pass_on(queues, queue_id, ahead.into(), after, send)
        }))
    }

    async fn last_position(&self, queue_id: i64) -> Result<i64, BrokerError> {
        store::last_position(self.queues.file.readers(), queue_id).await.map_err(classify_error)
    }

    /// Removes what is too old or too much, for as long as it is polled.
    pub(super) async fn trim(&self) {
        loop {
            if let Err(error) = self.remove().await {
                tracing::debug!(%error, "the feed could not be trimmed");
            }
            tokio::time::sleep(REMOVE_EVERY).await;
        }
    }

    async fn remove(&self) -> Result<(), BrokerError> {
        let queue_id = self.queue_id().await?;
        let FeedBounds { max_age, max_bytes, .. } = self.bounds;
        let age = i64::try_from(max_age.as_secs()).unwrap_or(i64::MAX);
        let removing = async {
            let mut writing = self.queues.file.begin(Survives::Kill).await?;
            let sent_before_s = Utc::now().timestamp().saturating_sub(age);
            let most = i64::try_from(max_bytes).unwrap_or(i64::MAX);
            store::trim(writing.connection(), queue_id, sent_before_s, most).await?;
            writing.commit().await
        };
        removing.await.map_err(|error: sqlx::Error| classify_error(error))
    }
}

/// Whether what was between two places is missing: places follow each other.
fn is_apart(last: Option<i64>, next: i64) -> bool {
    last.is_some_and(|last| next > last.saturating_add(1))
}

async fn pass_on(
    queues: Arc<Queues>,
    queue_id: i64,
    ahead: usize,
    mut last: Option<i64>,
    send: mpsc::Sender<Result<Fed, FeedError>>,
) {
    loop {
        let rows =
            match store::after(queues.file.readers(), queue_id, last.unwrap_or(0), ahead).await {
                Ok(rows) => rows,
                Err(error) => {
                    let _ = send.send(Err(classify_error(error).into())).await;
                    return;
                }
            };
        if rows.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for row in rows {
            if is_apart(last, row.position) {
                let _ = send.send(Err(FeedError::NotKept)).await;
                return;
            }
            last = Some(row.position);
            let fed = Fed { offset: row.position.cast_unsigned(), body: row.body };
            if send.send(Ok(fed)).await.is_err() {
                return;
            }
        }
    }
}
