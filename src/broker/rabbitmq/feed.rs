//! The feed as a stream of RabbitMQ (its page on streams).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::{Mutex, mpsc};

use super::{Frames, Link, classify_error};
use crate::broker::{BrokerError, Fed, FeedBounds, FeedError, FeedReader};
use crate::domain::event::FeedStart;

/// A message that was read before comes within this time, if it is there.
const SOUGHT_WITHIN: Duration = Duration::from_secs(1);
/// The last messages of a stream come within this time, if there are any.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// No further one for so long is taken for its end.
const QUIET: Duration = Duration::from_millis(250);
/// Where a stream is read from, and where a message stands in it.
const OFFSET: &str = "x-stream-offset";
/// A stream is removed segment by segment, so it has some of them.
const SEGMENTS: u64 = 10;
/// The smallest and the largest segment, in bytes; the latter is RabbitMQ's default.
const SEGMENT_BYTES: [u64; 2] = [1 << 20, 500_000_000];

/// Readers of the feed, on a connection that they share.
pub(super) struct Feed {
    link: Arc<Link>,
    connection: Mutex<Option<Connection>>,
}

impl Feed {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, connection: Mutex::default() }
    }

    /// Reads from `start` on.
    pub(super) async fn read(&self, start: FeedStart) -> Result<FeedReader, FeedError> {
        let (after, from) = match start {
            FeedStart::Oldest => (None, word("first")),
            // The message there was read before. That it comes shows that the stream has the place.
            FeedStart::After(after) => {
                let place = i64::try_from(after).unwrap_or(i64::MAX);
                (Some(after), AMQPValue::LongLongInt(place))
            }
            FeedStart::Since(time) => {
                let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
                (None, AMQPValue::Timestamp(seconds))
            }
        };
        let link = self.link.clone();
        let mut reading = Reading { channel: self.channel().await?, last: after, link };
        let mut consumer = reading.consume(from).await?;
        let first = match after {
            Some(place) => reading.sought(&mut consumer, place).await?,
            None => None,
        };
        Ok(FeedReader::start(self.link.feed_ahead(), |send| reading.pass_on(first, consumer, send)))
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        let mut connection = self.connection.lock().await;
        if !connection.as_ref().is_some_and(|connection| connection.status().connected()) {
            *connection = Some(self.link.connect("feed", Frames::Small).await?);
        }
        match &*connection {
            Some(connection) => self.link.within(connection.create_channel()).await,
            None => unreachable!("just made"),
        }
    }
}

fn word(word: &str) -> AMQPValue {
    AMQPValue::LongString(word.into())
}

/// A reader's channel, and how far it has come.
struct Reading {
    link: Arc<Link>,
    channel: Channel,
    last: Option<u64>,
}

impl Reading {
    async fn consume(&self, from: AMQPValue) -> Result<Consumer, BrokerError> {
        let consuming = async {
            let ahead = BasicQosOptions::default();
            self.channel.basic_qos(self.link.feed_ahead(), ahead).await?;
            let mut arguments = FieldTable::default();
            arguments.insert(OFFSET.into(), from);
            let (queue, options) = (self.link.topology.feed(), BasicConsumeOptions::default());
            self.channel.basic_consume(queue.into(), "".into(), options, arguments).await
        };
        self.link.within(consuming).await
    }

    /// Makes sure that the stream has what comes after `place`. The next message of the consumer, if it has come.
    async fn sought(
        &mut self,
        consumer: &mut Consumer,
        place: u64,
    ) -> Result<Option<Fed>, FeedError> {
        let Ok(message) = tokio::time::timeout(SOUGHT_WITHIN, consumer.next()).await else {
            // RabbitMQ sends nothing before the place. Is it beyond the end of a stream that was made again? Age and
            // size never empty one.
            let is_beyond = self.end().await?.is_none_or(|end| end < place);
            return if is_beyond { Err(FeedError::NotKept) } else { Ok(None) };
        };
        match message {
            Some(message) => Ok(self.checked(message).await?.filter(|fed| fed.offset > place)),
            None => Err(lost().into()),
        }
    }

    /// What a message says, once it is acknowledged. An error if others between it and the last one were removed; none
    /// if it was read before.
    async fn checked(
        &mut self,
        message: Result<Delivery, lapin::Error>,
    ) -> Result<Option<Fed>, FeedError> {
        let message = message.map_err(classify_error)?;
        let offset = offset(&message).ok_or_else(|| BrokerError::Permanent("no offset".into()))?;
        // Numbers may be left out; but if it is the first that is kept, or not even that, there were others before.
        if self.last.is_some_and(|last| offset > last.saturating_add(1))
            && self.first().await?.is_some_and(|first| first >= offset)
        {
            return Err(FeedError::NotKept);
        }
        self.link.within(message.ack(BasicAckOptions::default())).await?;
        if self.last.is_some_and(|last| offset <= last) {
            return Ok(None);
        }
        self.last = Some(offset);
        Ok(Some(Fed { offset, body: message.data }))
    }

    /// Hands on `first` and what the consumer gets.
    async fn pass_on(
        mut self,
        first: Option<Fed>,
        mut consumer: Consumer,
        send: mpsc::Sender<Result<Fed, FeedError>>,
    ) {
        if let Some(first) = first
            && send.send(Ok(first)).await.is_err()
        {
            return;
        }
        while let Some(message) = consumer.next().await {
            let checked = self.checked(message).await;
            let Some(fed) = checked.transpose() else { continue };
            let is_over = fed.is_err();
            if send.send(fed).await.is_err() || is_over {
                return;
            }
        }
    }

    /// The place of the first message.
    async fn first(&self) -> Result<Option<u64>, BrokerError> {
        let mut consumer = self.consume(word("first")).await?;
        let message = self.link.within(async { consumer.next().await.transpose() }).await?;
        self.cancel(&consumer).await?;
        Ok(message.as_ref().and_then(offset))
    }

    /// The place of the last message, if there is any.
    async fn end(&self) -> Result<Option<u64>, BrokerError> {
        // Begins with the last chunk, which has several messages.
        let mut consumer = self.consume(word("last")).await?;
        let (mut end, mut patience) = (None, ENDS_WITHIN);
        while let Ok(Some(message)) = tokio::time::timeout(patience, consumer.next()).await {
            patience = QUIET;
            let message = message.map_err(classify_error)?;
            end = offset(&message);
            self.link.within(message.ack(BasicAckOptions::default())).await?;
        }
        self.cancel(&consumer).await?;
        Ok(end)
    }

    async fn cancel(&self, consumer: &Consumer) -> Result<(), BrokerError> {
        let cancelling = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        self.link.within(cancelling).await
    }
}

fn lost() -> BrokerError {
    BrokerError::Transient("the connection is lost".into())
}

fn offset(message: &Delivery) -> Option<u64> {
    match message.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

impl Link {
    fn feed_ahead(&self) -> u16 {
        self.bounds.feed.map_or(1, |feed| feed.ahead())
    }

    /// Makes the stream, if there is to be one.
    pub(super) async fn declare_feed(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let Some(feed) = self.bounds.feed else { return Ok(()) };
        let name = self.topology.feed();
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.clone().into(), durable, arguments(&feed)).await?;
        for topic in feed.topics() {
            let (exchange, routing_key) = self.topology.binding(topic);
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            let name = name.clone().into();
            channel.queue_bind(name, exchange.into(), routing_key.into(), options, none).await?;
        }
        Ok(())
    }
}

fn arguments(feed: &FeedBounds) -> FieldTable {
    let mut arguments = FieldTable::default();
    let number = |number: u64| AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX));
    let segment = (feed.max_bytes / SEGMENTS).clamp(SEGMENT_BYTES[0], SEGMENT_BYTES[1]);
    let max_age = format!("{}s", feed.max_age.as_secs());
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments.insert("x-max-age".into(), AMQPValue::LongString(max_age.into()));
    arguments.insert("x-max-length-bytes".into(), number(feed.max_bytes));
    arguments.insert("x-stream-max-segment-size-bytes".into(), number(segment));
    arguments
}
