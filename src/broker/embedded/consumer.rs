//! Consuming: deliveries out, settlements in.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::open::OpenQueue;
use super::private::PrivateQueue;
use super::queues::Queues;
use super::store::Row;
use crate::broker::{Delivery, Settlement, cut};
use crate::retry::Backoff;

/// Messages read at once.
const CHUNK: usize = 512;
/// Settlements taken at once.
const SETTLEMENTS: usize = 4096;

/// Where messages come from.
pub(super) enum Source {
    File(Arc<OpenQueue>),
    Memory(Arc<PrivateQueue>),
}

/// One consumer of a queue.
pub(super) struct Consumer {
    queues: Arc<Queues>,
    source: Source,
    stop: CancellationToken,
    /// Deliveries for which there is room.
    room: Semaphore,
    /// Larger bodies are cut.
    largest: usize,
    /// Whether the messages have orders.
    has_intents: bool,
    /// Positions delivered and not settled.
    unsettled: Mutex<BTreeSet<i64>>,
}

type Settled = (i64, Settlement);

impl Consumer {
    pub(super) fn new(
        queues: Arc<Queues>,
        source: Source,
        window: u16,
        largest: usize,
        has_intents: bool,
        stop: CancellationToken,
    ) -> Self {
        let room = Semaphore::new(usize::from(window.max(1)));
        Self { queues, source, stop, room, largest, has_intents, unsettled: Mutex::default() }
    }

    /// Runs until it is stopped or its deliveries are dropped, and then until everything
    /// delivered is settled or dropped. Ends at once when the broker is `closed`.
    pub(super) async fn run(self, deliver: UnboundedSender<Delivery>, closed: CancellationToken) {
        let (settle, settled) = unbounded_channel();
        let working = async {
            // The first ends with its senders; then the second does with those in deliveries.
            tokio::join!(self.deliver(deliver, settle), self.settle(settled));
            self.leave().await;
        };
        tokio::select! {
            () = working => {}
            () = closed.cancelled() => {}
        }
    }

    async fn deliver(&self, deliver: UnboundedSender<Delivery>, settle: UnboundedSender<Settled>) {
        loop {
            let rows = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = deliver.closed() => return,
                rows = self.next() => rows,
            };
            self.room.forget_permits(rows.len());
            for Row { position, mut body, mut properties, redelivered } in rows {
                cut(&mut body, &mut properties, self.largest);
                self.unsettled().insert(position);
                let settle = settle.clone();
                let unsettled =
                    self.has_intents.then(|| self.queues.metrics.take(properties.sent_at()));
                let settler = Box::new(move |settlement| {
                    // Without a receiver the broker is gone, and the message will come again.
                    let _ = settle.send((position, settlement));
                });
                let delivery = Delivery::new(body, properties, redelivered, settler);
                // Without a receiver it stays unsettled, and goes back.
                let _ = deliver.send(delivery.counted(unsettled));
            }
        }
    }

    /// The next messages there is room for; waits for one, and for room. Dropping the future takes
    /// none.
    async fn next(&self) -> Vec<Row> {
        let mut backoff = Backoff::step();
        loop {
            // Only this task takes room away, so what is there stays.
            match self.room.acquire().await {
                Ok(one) => drop(one),
                Err(_) => unreachable!("the semaphore is never closed"),
            }
            let most = self.room.available_permits().min(CHUNK);
            let taken = match &self.source {
                Source::File(queue) => {
                    queue.take(&self.queues.file, &self.queues.writer, most).await
                }
                Source::Memory(queue) => Ok(queue.take(most).await),
            };
            match taken {
                Ok(rows) => return rows,
                Err(error) => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?delay, "can't read a queue");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Takes settlements until no delivery is left that could send one.
    async fn settle(&self, mut settled: UnboundedReceiver<Settled>) {
        let mut batch = Vec::new();
        while settled.recv_many(&mut batch, SETTLEMENTS).await > 0 {
            let count = batch.len();
            let (acked, returned) = self.split(&mut batch);
            self.tell(acked, returned).await;
            self.room.add_permits(count);
        }
    }

    /// The positions of what is acknowledged, and of what goes back.
    fn split(&self, batch: &mut Vec<Settled>) -> (Vec<i64>, Vec<i64>) {
        let (mut acked, mut returned) = (Vec::new(), Vec::new());
        let mut unsettled = self.unsettled();
        for (position, settlement) in batch.drain(..) {
            unsettled.remove(&position);
            match settlement {
                Settlement::Ack => acked.push(position),
                Settlement::Requeue | Settlement::Reject => returned.push(position),
            }
        }
        (acked, returned)
    }

    fn unsettled(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.unsettled.lock()
    }

    async fn tell(&self, acked: Vec<i64>, returned: Vec<i64>) {
        match &self.source {
            Source::File(queue) => {
                let (writer, came_back) = (&self.queues.writer, !returned.is_empty());
                writer.settle(queue.queue_id, acked, returned).await;
                if came_back {
                    // It must be at its position again before there is room for the next one.
                    writer.flush().await;
                }
            }
            Source::Memory(queue) => queue.settle(&acked, &returned),
        }
    }

    /// Gives back what was dropped unsettled, and ends.
    async fn leave(&self) {
        let unsettled = std::mem::take(&mut *self.unsettled());
        self.tell(Vec::new(), unsettled.into_iter().collect()).await;
        match &self.source {
            Source::File(queue) => self.queues.leave(queue).await,
            Source::Memory(queue) => self.queues.private.leave(queue),
        }
    }
}
