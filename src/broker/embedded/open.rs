//! A queue in the file that this process consumes: what was delivered from it, and what comes next.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::store::{self, ReturnLimit, Row};
use super::writer_handle::WriterHandle;
use crate::sqlite::{Lock, SqliteFile};

/// How long a message of another process may wait before it is seen. Those of this one are seen at
/// once.
const POLL: Duration = Duration::from_millis(50);

/// The consumed queues of a broker, by number.
#[derive(Debug, Default)]
pub(super) struct OpenQueues(Mutex<HashMap<i64, Arc<OpenQueue>>>);

/// One of them. All consumers of this process share it, so that each message goes to one of them.
#[derive(Debug)]
pub(super) struct OpenQueue {
    pub queue_id: i64,
    pub limit: Option<ReturnLimit>,
    pub consumers: AtomicUsize,
    /// Keeps other processes from consuming the queue.
    lock: Mutex<Option<Lock>>,
    /// Held by the consumer that waits for messages.
    turn: tokio::sync::Mutex<()>,
    /// The greatest position delivered.
    reached: AtomicI64,
    /// Positions at or before it of messages that came back.
    returned: Mutex<BTreeSet<i64>>,
    news: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl OpenQueues {
    pub(super) fn get(&self, queue_id: i64) -> Option<Arc<OpenQueue>> {
        locked(&self.0).get(&queue_id).cloned()
    }

    pub(super) fn insert(&self, queue: Arc<OpenQueue>) {
        locked(&self.0).insert(queue.queue_id, queue);
    }

    /// Lets other processes consume the queue.
    pub(super) fn remove(&self, queue_id: i64) {
        if let Some(queue) = locked(&self.0).remove(&queue_id) {
            queue.unlock();
        }
    }

    /// Lets other processes consume all of them.
    pub(super) fn remove_all(&self) {
        for (_, queue) in locked(&self.0).drain() {
            queue.unlock();
        }
    }

    /// Wakes the consumer that waits for messages of `queue_id`.
    pub(super) fn announce(&self, queue_id: i64) {
        if let Some(queue) = self.get(queue_id) {
            queue.news.notify_one();
        }
    }
}

impl OpenQueue {
    /// A queue without unsettled messages, with the lock on it.
    pub(super) fn new(queue_id: i64, limit: Option<ReturnLimit>, lock: Lock) -> Self {
        Self {
            queue_id,
            limit,
            consumers: AtomicUsize::new(0),
            lock: Mutex::new(Some(lock)),
            turn: tokio::sync::Mutex::default(),
            reached: AtomicI64::new(0),
            returned: Mutex::default(),
            news: Notify::new(),
        }
    }

    fn unlock(&self) {
        locked(&self.lock).take();
    }

    /// Messages that came back wait at their positions again.
    pub(super) fn put_back(&self, positions: impl IntoIterator<Item = i64>) {
        locked(&self.returned).extend(positions);
        self.news.notify_one();
    }

    /// Messages that wait here.
    pub(super) async fn depth(&self, file: &SqliteFile) -> Result<i64, sqlx::Error> {
        let reached = self.reached.load(Ordering::Acquire);
        let returned = i64::try_from(locked(&self.returned).len()).unwrap_or(i64::MAX);
        Ok(store::count_after(file.readers(), self.queue_id, reached).await? + returned)
    }

    /// The next messages, up to `most`; waits for one. Dropping the future takes none.
    pub(super) async fn take(
        &self,
        file: &SqliteFile,
        writer: &WriterHandle,
        most: usize,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let _turn = self.turn.lock().await;
        loop {
            let returned: Vec<i64> = locked(&self.returned).iter().copied().take(most).collect();
            if !returned.is_empty() {
                let rows = store::at(file.readers(), self.queue_id, &returned).await?;
                let mut waiting = locked(&self.returned);
                for position in &returned {
                    waiting.remove(position);
                }
                return Ok(rows);
            }
            let reached = self.reached.load(Ordering::Acquire);
            let rows = store::after(file.readers(), self.queue_id, reached, most).await?;
            if let Some(last) = rows.last() {
                // Before they are delivered: if one of them ends the process, that is known.
                writer.delivered(self.queue_id, last.position).await;
                self.reached.store(last.position, Ordering::Release);
                return Ok(rows);
            }
            // Without news there may be some of another process.
            let _ = tokio::time::timeout(POLL, self.news.notified()).await;
        }
    }
}
