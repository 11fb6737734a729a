//! The feed as a stream of RabbitMQ (its page on streams).

use std::sync::Arc;

use futures_util::StreamExt;
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

/// Messages that RabbitMQ sends ahead of their acknowledgements.
const PREFETCH: u16 = 500;
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
    pub(super) async fn read(&self, start: FeedStart) -> Result<FeedReader, BrokerError> {
        let (after, from) = match start {
            FeedStart::Oldest => (None, first()),
            FeedStart::After(after) => {
                let next = i64::try_from(after.saturating_add(1)).unwrap_or(i64::MAX);
                (Some(after), AMQPValue::LongLongInt(next))
            }
            FeedStart::Since(time) => {
                let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
                (None, AMQPValue::Timestamp(seconds))
            }
        };
        let channel = self.channel().await?;
        let link = self.link.clone();
        let consumer = link.within(consume(&channel, link.topology.feed(), from)).await?;
        Ok(FeedReader::start(|send| pass_on(link, channel, consumer, after, send)))
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

fn first() -> AMQPValue {
    AMQPValue::LongString("first".into())
}

async fn consume(
    channel: &Channel,
    queue: String,
    from: AMQPValue,
) -> Result<Consumer, lapin::Error> {
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), from);
    channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), arguments).await
}

/// Hands on what the consumer gets, from `after` on.
async fn pass_on(
    link: Arc<Link>,
    channel: Channel,
    mut consumer: Consumer,
    after: Option<u64>,
    send: mpsc::Sender<Result<Fed, FeedError>>,
) {
    let mut expected = after.map(|after| after.saturating_add(1));
    while let Some(message) = consumer.next().await {
        let fed = async {
            let message = message.map_err(classify_error)?;
            let offset = offset(message.properties.headers().as_ref());
            let offset = offset.ok_or_else(|| BrokerError::Permanent("no offset".into()))?;
            // Numbers may be left out; but if it is the first that is kept, there were others before.
            if expected.take().is_some_and(|expected| offset > expected)
                && is_first(&link, &channel, offset).await?
            {
                return Err(FeedError::NotKept);
            }
            message.ack(BasicAckOptions::default()).await.map_err(classify_error)?;
            Ok(Fed { offset, body: message.data })
        }
        .await;
        // Should RabbitMQ begin earlier, as it does for other kinds of places.
        let is_before = |fed: &Fed| after.is_some_and(|after| fed.offset <= after);
        if fed.as_ref().is_ok_and(is_before) {
            expected = after.map(|after| after.saturating_add(1));
            continue;
        }
        let is_over = fed.is_err();
        if send.send(fed).await.is_err() || is_over {
            return;
        }
    }
}

/// Whether the first message of the stream stands at `offset`.
async fn is_first(link: &Link, channel: &Channel, offset: u64) -> Result<bool, BrokerError> {
    let looking = async {
        let mut consumer = consume(channel, link.topology.feed(), first()).await?;
        let message = consumer.next().await.transpose()?;
        channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        Ok(message.and_then(|message| self::offset(message.properties.headers().as_ref())))
    };
    Ok(link.within(looking).await? == Some(offset))
}

fn offset(headers: Option<&FieldTable>) -> Option<u64> {
    match headers?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

impl Link {
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
