//! The queues of a broker: those in the file, and the private ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Mutex, OnceCell};

use super::classify_error;
use super::open::{OpenQueue, OpenQueues};
use super::private::PrivateQueues;
use super::routing::Binding;
use super::store::{self, ReturnLimit};
use super::writer_handle::WriterHandle;
use crate::broker::topology::Topology;
use crate::broker::{Bounds, BrokerError, Queue, Topic};
use crate::metrics::BrokerMetrics;
use crate::sqlite::{Lock, SqliteFile, Survives};

/// The queues, and what is needed to change them.
pub(super) struct Queues {
    pub file: SqliteFile,
    pub names: Topology,
    pub writer: WriterHandle,
    pub private: PrivateQueues,
    /// Those that this process consumes.
    pub open: Arc<OpenQueues>,
    pub bounds: Bounds,
    pub metrics: BrokerMetrics,
    own: OnceCell<Own>,
    /// Held while a queue is opened or closed.
    open_lock: Mutex<()>,
}

/// Numbers of the queues that are always there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    pub intents: i64,
    pub returned: i64,
    pub dead_letters: i64,
}

impl Queues {
    pub(super) fn new(
        file: SqliteFile,
        namespace: &str,
        bounds: Bounds,
        writer: WriterHandle,
        open: Arc<OpenQueues>,
        metrics: BrokerMetrics,
    ) -> Self {
        Self {
            file,
            names: Topology::new(namespace),
            writer,
            private: PrivateQueues::default(),
            open,
            bounds,
            metrics,
            own: OnceCell::new(),
            open_lock: Mutex::default(),
        }
    }

    /// The numbers of the queues that are always there; makes them at first.
    pub(super) async fn own(&self) -> Result<Own, BrokerError> {
        let making = async {
            let intents = self.make(&self.names.queue(&Queue::Intents)).await?;
            let returned = self.make(&self.names.queue(&Queue::Returned)).await?;
            let dead_letters = self.make(&self.names.queue(&Queue::DeadLetters)).await?;
            Ok(Own { intents, returned, dead_letters })
        };
        self.own
            .get_or_try_init(|| making)
            .await
            .copied()
            .map_err(|error: sqlx::Error| classify_error(error))
    }

    /// The number of the queue called `name`; makes it unless it is there.
    async fn make(&self, name: &str) -> Result<i64, sqlx::Error> {
        if let Some(queue_id) = store::queue_id(self.file.readers(), name).await? {
            return Ok(queue_id);
        }
        let mut writing = self.file.begin(Survives::PowerLoss).await?;
        let queue_id = store::make_queue(writing.connection(), name).await?;
        writing.commit().await?;
        Ok(queue_id)
    }

    /// The number of `queue` in the file, if it is there.
    pub(super) async fn find(&self, queue: &Queue) -> Result<Option<i64>, BrokerError> {
        let name = self.names.queue(queue);
        store::queue_id(self.file.readers(), &name).await.map_err(classify_error)
    }

    /// Makes a queue in the file, bound to `topics` besides those it is bound to, and returns its
    /// number.
    pub(super) async fn bound(
        &self,
        queue: &Queue,
        topics: &[Topic<'_>],
    ) -> Result<i64, BrokerError> {
        let name = self.names.queue(queue);
        let binding = async {
            let queue_id = self.make(&name).await?;
            if !topics.is_empty() {
                let mut writing = self.file.begin(Survives::PowerLoss).await?;
                for topic in topics {
                    store::bind(writing.connection(), queue_id, &Binding::to(*topic)).await?;
                }
                writing.commit().await?;
            }
            Ok(queue_id)
        };
        binding.await.map_err(|error: sqlx::Error| classify_error(error))
    }

    /// Which queues get events, by what the file says now: subscribers of other processes count too.
    pub(super) async fn bindings(&self) -> Result<Vec<(i64, Binding)>, BrokerError> {
        let ours = self.names.queue(&Queue::Subscriber(String::new()));
        let bindings = store::bindings(self.file.readers()).await.map_err(classify_error)?;
        let bindings = bindings.into_iter().filter(|(_, name, _)| name.starts_with(&ours));
        Ok(bindings.map(|(queue_id, _, binding)| (queue_id, binding)).collect())
    }

    /// Opens a queue for one more consumer. The first one takes over what the last process has left
    /// unsettled.
    pub(super) async fn join(
        &self,
        queue_id: i64,
        name: &str,
    ) -> Result<Arc<OpenQueue>, BrokerError> {
        let own = self.own().await?;
        let _open_lock = self.open_lock.lock().await;
        let queue = if let Some(queue) = self.open.get(queue_id) {
            queue
        } else {
            let lock = self.lock(queue_id, name)?;
            let limited = [own.intents, own.returned].contains(&queue_id);
            let limit = limited.then_some(ReturnLimit {
                returns: self.bounds.delivery_limit,
                dead_letters: own.dead_letters,
            });
            self.take_over(queue_id, limit).await.map_err(classify_error)?;
            let queue = Arc::new(OpenQueue::new(queue_id, limit, lock));
            self.open.insert(queue.clone());
            queue
        };
        queue.consumers.fetch_add(1, Ordering::Relaxed);
        Ok(queue)
    }

    /// Keeps other processes from consuming the queue called `name`.
    fn lock(&self, queue_id: i64, name: &str) -> Result<Lock, BrokerError> {
        let lock = self.file.lock(&format!("queue-{queue_id}"));
        let lock = lock.map_err(|error| BrokerError::Transient(Box::new(error)))?;
        lock.ok_or_else(|| {
            let file = self.file.path().display();
            let problem = format!("another floodgate process consumes {name} of {file}");
            BrokerError::Permanent(problem.into())
        })
    }

    /// Counts that messages came back that were unsettled when their process ended.
    async fn take_over(
        &self,
        queue_id: i64,
        limit: Option<ReturnLimit>,
    ) -> Result<(), sqlx::Error> {
        let mut writing = self.file.begin(Survives::Kill).await?;
        let connection = writing.connection();
        let positions = store::left_unsettled(connection, queue_id).await?;
        if !positions.is_empty() {
            tracing::info!(messages = positions.len(), "taking over what a process left unsettled");
            store::came_back(connection, queue_id, &positions, limit).await?;
        }
        store::set_delivered(connection, queue_id, 0).await?;
        writing.commit().await
    }

    /// Ends a consumer of an open queue that has settled or given back all it had.
    pub(super) async fn leave(&self, queue: &OpenQueue) {
        let _open_lock = self.open_lock.lock().await;
        if queue.consumers.fetch_sub(1, Ordering::Relaxed) > 1 {
            self.writer.flush().await;
        } else {
            self.writer.delivered(queue.queue_id, 0).await;
            self.open.remove(queue.queue_id);
        }
    }
}
