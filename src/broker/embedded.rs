//! The broker in a SQLite file: for one machine, with nothing else to install.
//!
//! Queues are rows in the order of their positions. One process at a time consumes a queue, and knows
//! in its memory what is unsettled; any process may publish. What is published is confirmed once
//! it is on the disk. What is settled is written soon after: a message whose settlement is lost
//! comes again, as with any broker.

mod consumer;
mod feed;
mod message_batch;
mod open;
mod private;
mod queues;
mod routing;
mod store;
mod stored;
mod writer;
mod writer_handle;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Bounds, Broker, BrokerError, Delay, Deliveries, Depth, EventBatch, FeedError, FeedReader,
    Message, Properties, Published, Queue, Receipt, Reply, Topic,
};
use crate::domain::event::FeedStart;
use crate::domain::event_batch::batch_json;
use crate::fault::crash_point;
use crate::metrics::Metrics;
use crate::sqlite::{SqliteFile, Trouble};
use consumer::{Consumer, Source};
use feed::Feed;
use message_batch::MessageBatch;
use open::OpenQueues;
use private::PrivateQueue;
use queues::Queues;
use routing::Binding;
use store::Row;
use writer::Writer;
use writer_handle::WriterHandle;

/// [`Broker`] in a file. Private queues are in the memory of this object, so a process has one
/// broker for all its parts. Dropped, it ends at once, and what was unsettled comes again.
pub struct EmbeddedBroker {
    queues: Arc<Queues>,
    /// If there is to be one.
    feed: Option<Arc<Feed>>,
    closed: CancellationToken,
}

impl EmbeddedBroker {
    /// A broker in `file`, whose queues are named within `namespace`.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime: it starts the task that writes.
    pub fn new(file: SqliteFile, namespace: &str, bounds: Bounds, metrics: &Metrics) -> Self {
        let open = Arc::new(OpenQueues::default());
        let (writer, commands) = WriterHandle::new();
        // Ends with the last writer.
        tokio::spawn(Writer::new(file.clone(), open.clone()).run(commands));
        let queues =
            Arc::new(Queues::new(file, namespace, bounds, writer, open, metrics.broker.clone()));
        let feed = bounds.feed.map(|bounds| Arc::new(Feed::new(queues.clone(), bounds)));
        let closed = CancellationToken::new();
        if let Some(feed) = feed.clone() {
            let closed = closed.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = feed.trim() => {}
                    () = closed.cancelled() => {}
                }
            });
        }
        Self { queues, feed, closed }
    }

    async fn source(&self, queue: Queue, topics: &[Topic<'_>]) -> Result<Source, BrokerError> {
        let queue_id = match &queue {
            Queue::Private(_) => {
                let name = self.queues.names.queue(&queue);
                return Ok(Source::Memory(self.queues.private.join(&name, topics)));
            }
            Queue::Intents => self.queues.own().await?.intents,
            Queue::Returned => self.queues.own().await?.returned,
            Queue::DeadLetters => self.queues.own().await?.dead_letters,
            Queue::IntentsShard(_) | Queue::ReturnedShard(_) => return Err(BrokerError::NoQueue),
            Queue::Subscriber(_) => self.queues.bound(&queue, topics).await?,
            Queue::Named(_) => self.queues.find(&queue).await?.ok_or(BrokerError::NoQueue)?,
        };
        let name = self.queues.names.queue(&queue);
        Ok(Source::File(self.queues.join(queue_id, &name).await?))
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.closed.cancel();
        self.queues.open.remove_all();
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn subscribe(
        &self,
        queue: Queue,
        topics: &[Topic<'_>],
        prefetch: u16,
    ) -> Result<Deliveries, BrokerError> {
        let bounds = &self.queues.bounds;
        let (window, largest) = (bounds.window(&queue, prefetch), bounds.largest(&queue));
        let has_intents = queue.has_intents();
        let source = self.source(queue, topics).await?;
        let (deliver, incoming) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let queues = self.queues.clone();
        let consumer = Consumer::new(queues, source, window, largest, has_intents, stop.clone());
        let consumer = tokio::spawn(consumer.run(deliver, self.closed.clone()));
        Ok(Deliveries::new(incoming, stop, consumer, Arc::default()))
    }

    async fn publish(&self, messages: &[Message<'_>]) -> Published {
        match self.try_publish(messages).await {
            Ok(receipts) => Published { receipts, error: None },
            Err(error) => Published::alike(messages.len(), Receipt::Unconfirmed, Some(error)),
        }
    }

    fn reply(&self, Reply { to, correlation_id, in_batches: _, event }: Reply) {
        match self.queues.private.named(&to) {
            Some(queue) => {
                let properties = stored::of_event(&event, &to, Some(&correlation_id));
                queue.push(new_row(event.data, properties));
            }
            None => self.queues.metrics.dropped_replies.inc(),
        }
    }

    async fn feed(&self, start: FeedStart) -> Result<FeedReader, FeedError> {
        match &self.feed {
            Some(feed) => feed.read(start).await,
            None => Err(BrokerError::NoQueue.into()),
        }
    }

    fn address(&self, queue: &Queue) -> String {
        self.queues.names.queue(queue)
    }

    async fn deferred(&self) -> Result<u64, BrokerError> {
        store::delayed(self.queues.file.readers()).await.map_err(classify_error)
    }

    /// Unsettled messages of another process are counted too; its consumers are not, because
    /// what one process consumes no other one can.
    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError> {
        let queues = &self.queues;
        if let Queue::Private(_) = queue {
            let queue = queues.private.named(&queues.names.queue(&queue));
            return Ok(queue.map_or_else(Depth::default, |queue| Depth {
                messages: u32::try_from(queue.depth()).unwrap_or(u32::MAX),
                consumers: 1,
            }));
        }
        let Some(queue_id) = queues.find(&queue).await? else { return Ok(Depth::default()) };
        let open = queues.open.get(queue_id);
        let consumers = u32::from(open.is_some());
        let messages = match open {
            Some(queue) => queue.depth(&queues.file).await,
            None => store::count_after(queues.file.readers(), queue_id, 0).await,
        };
        let messages = u32::try_from(messages.map_err(classify_error)?).unwrap_or(u32::MAX);
        Ok(Depth { messages, consumers })
    }
}

/// Messages by where they go.
#[derive(Default)]
struct Routed {
    batch: MessageBatch,
    private: Vec<(Arc<PrivateQueue>, Row)>,
    /// Once it is stored.
    receipts: Vec<Receipt>,
}

impl EmbeddedBroker {
    async fn try_publish(&self, messages: &[Message<'_>]) -> Result<Vec<Receipt>, BrokerError> {
        let Routed { batch, private, receipts } = self.route(messages).await?;
        if !batch.is_empty() {
            let stored = self.queues.writer.publish(batch).await;
            crash_point("published");
            let gone = |_| BrokerError::Transient("the broker has ended".into());
            stored.await.map_err(gone)??;
        }
        for (queue, row) in private {
            queue.push(row);
        }
        Ok(receipts)
    }

    async fn route(&self, messages: &[Message<'_>]) -> Result<Routed, BrokerError> {
        let own = self.queues.own().await?;
        if let Some(feed) = &self.feed {
            feed.queue_id().await?;
        }
        let (bindings, private) = if messages.iter().any(Message::is_for_subscribers) {
            (self.queues.bindings().await?, self.queues.private.all())
        } else {
            (Vec::new(), Vec::new())
        };
        let mut routed = Routed::default();
        for message in messages {
            match message {
                Message::Intent { routing_key, body, properties, delay } => {
                    let properties = stored::of_intent(routing_key, *properties);
                    let (queue_id, due_ms) = match delay {
                        Some(delay) => (own.returned, Some(due_ms(*delay))),
                        None => (own.intents, None),
                    };
                    routed.batch.push(queue_id, due_ms, body, properties);
                }
                Message::DeadLetter(letter) => {
                    let properties = stored::of_dead_letter(letter);
                    routed.batch.push(own.dead_letters, None, &letter.body, properties);
                }
                Message::Event(event) | Message::EventTo { event, .. } => {
                    let topic = Topic::Events(&event.routing_key);
                    let properties = stored::of_event(event, &event.routing_key, None);
                    routed.event(topic, &event.data, &properties, &bindings, &private);
                    continue;
                }
                Message::Status(body) => {
                    let properties = Properties::default();
                    routed.event(Topic::Status, body, &properties, &bindings, &private);
                    continue;
                }
                Message::EventBatch(EventBatch { routing_key, events }) => {
                    let properties = stored::published(routing_key);
                    let body = batch_json(events, &self.queues.names.event_source());
                    let topic = Topic::Batches(routing_key);
                    routed.event(topic, &body, &properties, &bindings, &private);
                    continue;
                }
            }
            routed.receipts.push(Receipt::Confirmed);
        }
        Ok(routed)
    }
}

impl Routed {
    /// Gives every subscriber of `topic` a copy.
    fn event(
        &mut self,
        topic: Topic<'_>,
        body: &[u8],
        properties: &Properties,
        bindings: &[(i64, Binding)],
        private: &[Arc<PrivateQueue>],
    ) {
        let mut taken_by: Vec<i64> = bindings
            .iter()
            .filter(|(_, binding)| binding.takes(topic))
            .map(|(queue_id, _)| *queue_id)
            .collect();
        // A queue gets one copy, however many of its bindings match.
        taken_by.sort_unstable();
        taken_by.dedup();
        let mut copies = taken_by.len();
        for queue_id in taken_by {
            self.batch.push(queue_id, None, body, properties.clone());
        }
        for queue in private.iter().filter(|queue| queue.takes(topic)) {
            self.private.push((queue.clone(), new_row(body.to_vec(), properties.clone())));
            copies += 1;
        }
        let receipt = if copies == 0 { Receipt::NoSubscriber } else { Receipt::Confirmed };
        self.receipts.push(receipt);
    }
}

/// A message that gets its position when it is put into a queue.
fn new_row(body: Vec<u8>, properties: Properties) -> Row {
    Row { position: 0, body, properties, redelivered: false }
}

fn due_ms(delay: Delay) -> i64 {
    Utc::now().timestamp_millis() + i64::from(delay.ms())
}

/// Tells errors that pass from those that stay.
fn classify_error(error: impl Into<Arc<sqlx::Error>>) -> BrokerError {
    let error: Arc<sqlx::Error> = error.into();
    match Trouble::of(&error) {
        Trouble::Full => BrokerError::Full("there is no room on the disk"),
        Trouble::Passes => BrokerError::Transient(Box::new(error)),
        Trouble::Stays => BrokerError::Permanent(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        delivery_limit: 10,
        max_body_bytes: 1 << 20,
        prefetch_bytes: 16 << 30,
        feed: None,
    };

    /// Lets the file grow to so many pages and no further, as a disk does that fills up.
    async fn limit_pages(file: &SqliteFile, pages: i64) {
        let mut writing = file.begin(crate::sqlite::Survives::Kill).await.unwrap();
        let pragma = format!("pragma max_page_count = {pages}");
        let query = sqlx::query(sqlx::AssertSqlSafe(pragma));
        query.execute(writing.connection()).await.unwrap();
        writing.commit().await.unwrap();
    }

    #[tokio::test]
    async fn without_room_on_the_disk_publishes_are_refused_and_settlements_are_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteFile::open(folder.path().join("f.db")).await.unwrap();
        let broker = EmbeddedBroker::new(file.clone(), "test", BOUNDS, &Metrics::new());
        let body = vec![b'x'; 100_000];
        for _ in 0..3 {
            broker.publish(&[Message::intent("s", &body)]).await.all().unwrap();
        }
        let mut deliveries = broker.consume(Queue::Intents, 2).await.unwrap();
        let (first, second) = (deliveries.next().await.unwrap(), deliveries.next().await.unwrap());
        limit_pages(&file, 1).await;
        let large = vec![b'y'; 1_000_000];
        let refused = broker.publish(&[Message::intent("s", &large)]).await.all();
        assert!(matches!(refused, Err(BrokerError::Full(_))), "{refused:?}");
        first.ack();
        second.requeue();
        // What is settled makes room, for the message that waits and for small ones.
        assert_eq!(deliveries.next().await.unwrap().body, body);
        broker.publish(&[Message::intent("s", b"small")]).await.all().unwrap();
        deliveries.stop();
        let ended = tokio::time::timeout(Duration::from_secs(30), deliveries.finished());
        ended.await.unwrap();
        assert_eq!(broker.depth(Queue::Intents).await.unwrap().messages, 3);
    }
}
