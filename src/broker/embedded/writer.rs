//! Writing: all that waits goes into one transaction, so that many publishes wait for the disk
//! once, and settlements not at all.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::classify_error;
use super::message_batch::{self, MessageBatch};
use super::open::OpenQueues;
use super::store;
use super::writer_handle::{MAX_COMMANDS, WriteCommand};
use crate::broker::BrokerError;
use crate::retry::Backoff;
use crate::sqlite::{SqliteFile, Survives};

/// How long settlements may wait for others to be written with.
const SETTLEMENT_DELAY: Duration = Duration::from_millis(20);
/// How long to sleep at most while messages are deferred: the clock may be set.
const CLOCK_CHECK: Duration = Duration::from_secs(1);

/// Executes the commands of its handles, many in one transaction.
pub(super) struct Writer {
    file: SqliteFile,
    open: Arc<OpenQueues>,
    pending: PendingWrites,
    /// When `pending` is to be written, if nothing in it is urgent.
    write_at: Option<Instant>,
    /// The last try failed, and nothing but a publish is urgent until the next one.
    failing: bool,
    backoff: Backoff,
    /// When the first of the deferred messages comes back, in milliseconds since 1970.
    next_due_ms: Option<i64>,
}

/// What goes into the next transaction.
#[derive(Default)]
struct PendingWrites {
    batch: MessageBatch,
    publishers: Vec<oneshot::Sender<Result<(), BrokerError>>>,
    changes: Changes,
}

/// What becomes of messages that were there before, by the numbers of their queues.
#[derive(Default)]
struct Changes {
    acked: BTreeMap<i64, Vec<i64>>,
    returned: BTreeMap<i64, Vec<i64>>,
    delivered: BTreeMap<i64, i64>,
    to_tell: Vec<oneshot::Sender<()>>,
}

/// What a transaction has done.
struct Written {
    /// Queues that got messages.
    news: HashSet<i64>,
    /// Messages that came back too often: queue and position.
    dead: HashSet<(i64, i64)>,
    next_due_ms: Option<i64>,
}

impl Writer {
    pub(super) fn new(file: SqliteFile, open: Arc<OpenQueues>) -> Self {
        Self {
            file,
            open,
            pending: PendingWrites::default(),
            write_at: None,
            failing: false,
            backoff: Backoff::step(),
            next_due_ms: None,
        }
    }

    /// Writes `commands` until every handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<WriteCommand>) {
        // Messages may have been deferred before. When that can't be read, the first try to move
        // them finds out.
        self.next_due_ms = store::next_due_ms(self.file.readers()).await.unwrap_or(Some(0));
        let mut inbox = Vec::new();
        loop {
            let wake = [self.write_at, self.look_at()].into_iter().flatten().min();
            tokio::select! {
                taken = commands.recv_many(&mut inbox, MAX_COMMANDS) => if taken == 0 { break },
                () = at(wake) => {}
            }
            for command in inbox.drain(..) {
                self.pending.take(command);
            }
            let now = Instant::now();
            if self.pending.is_urgent(self.failing)
                || self.write_at.is_some_and(|time| time <= now)
                || !self.failing && self.is_due()
            {
                self.write().await;
            } else if !self.pending.changes.is_empty() {
                self.write_at.get_or_insert(now + SETTLEMENT_DELAY);
            }
        }
        if !self.pending.changes.is_empty() {
            // What can't be written now comes again.
            self.write().await;
        }
    }

    /// Whether the time of a deferred message has come.
    fn is_due(&self) -> bool {
        self.next_due_ms.is_some_and(|due| due <= Utc::now().timestamp_millis())
    }

    /// When to look again for deferred messages.
    fn look_at(&self) -> Option<Instant> {
        let wait = self.next_due_ms.filter(|_| !self.failing)? - Utc::now().timestamp_millis();
        let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
        Some(Instant::now() + wait.min(CLOCK_CHECK))
    }

    /// Writes all that waits. Messages that can't be stored are refused; changes that can't be
    /// written are kept.
    async fn write(&mut self) {
        let PendingWrites { batch, publishers, changes } = std::mem::take(&mut self.pending);
        let mut written = self.transact(&batch, &changes).await.map_err(Arc::new);
        for publisher in publishers {
            // The publisher may have given up.
            let _ = publisher
                .send(written.as_ref().map(drop).map_err(|error| classify_error(error.clone())));
        }
        if written.is_err() && !batch.is_empty() && !changes.is_empty() {
            // Perhaps there was no room for the messages, but there is for the changes.
            written = self.transact(&MessageBatch::default(), &changes).await.map_err(Arc::new);
        }
        match written {
            Ok(written) => {
                (self.failing, self.write_at) = (false, None);
                self.backoff.reset();
                self.next_due_ms = written.next_due_ms;
                self.tell(changes, &written);
            }
            Err(error) => {
                let delay = self.backoff.next_delay();
                tracing::warn!(%error, ?delay, file = %self.file.path().display(), "can't write");
                (self.failing, self.write_at) = (true, Some(Instant::now() + delay));
                self.pending.changes = changes;
            }
        }
    }

    async fn transact(
        &self,
        batch: &MessageBatch,
        changes: &Changes,
    ) -> Result<Written, sqlx::Error> {
        // What is lost of the changes only makes messages come again.
        let survives = if batch.is_empty() { Survives::Kill } else { Survives::PowerLoss };
        let mut writing = self.file.begin(survives).await?;
        let connection = writing.connection();
        let (mut news, mut dead) = (HashSet::new(), HashSet::new());
        for (&queue_id, positions) in &changes.acked {
            store::delete(connection, queue_id, positions).await?;
        }
        for (&queue_id, positions) in &changes.returned {
            let limit = self.open.get(queue_id).and_then(|queue| queue.limit);
            let too_often = store::came_back(connection, queue_id, positions, limit).await?;
            news.extend(limit.filter(|_| !too_often.is_empty()).map(|limit| limit.dead_letters));
            dead.extend(too_often.into_iter().map(|position| (queue_id, position)));
        }
        for (&queue_id, &position) in &changes.delivered {
            store::set_delivered(connection, queue_id, position).await?;
        }
        if !batch.is_empty() {
            message_batch::insert(connection, batch).await?;
            news.extend(batch.queues());
        }
        let mut next_due_ms = self.next_due_ms;
        if self.is_due() {
            news.extend(store::move_due(connection, Utc::now().timestamp_millis()).await?);
            next_due_ms = store::next_due_ms(connection).await?;
        } else if let Some(due) = batch.next_due_ms() {
            next_due_ms = Some(next_due_ms.map_or(due, |earlier| earlier.min(due)));
        }
        writing.commit().await?;
        Ok(Written { news, dead, next_due_ms })
    }

    fn tell(&self, changes: Changes, written: &Written) {
        for (queue_id, positions) in changes.returned {
            if let Some(queue) = self.open.get(queue_id) {
                let lives = |position: &i64| !written.dead.contains(&(queue_id, *position));
                queue.put_back(positions.into_iter().filter(lives));
            }
        }
        for &queue_id in &written.news {
            self.open.announce(queue_id);
        }
        for waiting in changes.to_tell {
            let _ = waiting.send(());
        }
    }
}

impl PendingWrites {
    fn take(&mut self, command: WriteCommand) {
        let changes = &mut self.changes;
        match command {
            WriteCommand::Publish(batch, publisher) => {
                self.batch.append(batch);
                self.publishers.push(publisher);
            }
            WriteCommand::Settle { queue_id, acked, returned } => {
                if !acked.is_empty() {
                    changes.acked.entry(queue_id).or_default().extend(acked);
                }
                if !returned.is_empty() {
                    changes.returned.entry(queue_id).or_default().extend(returned);
                }
            }
            WriteCommand::Delivered(queue_id, position, waiting) => {
                changes.delivered.insert(queue_id, position);
                changes.to_tell.push(waiting);
            }
            WriteCommand::Flush(waiting) => changes.to_tell.push(waiting),
        }
    }

    /// Whether a task waits for it.
    fn is_urgent(&self, failing: bool) -> bool {
        let Changes { returned, to_tell, .. } = &self.changes;
        let awaited = !(to_tell.is_empty() && returned.is_empty());
        !self.publishers.is_empty() || (awaited && !failing)
    }
}

impl Changes {
    fn is_empty(&self) -> bool {
        let Self { acked, returned, delivered, to_tell } = self;
        acked.is_empty() && returned.is_empty() && delivered.is_empty() && to_tell.is_empty()
    }
}

/// Waits until `time`, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
