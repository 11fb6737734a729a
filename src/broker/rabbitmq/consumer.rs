//! A session of a consumer: deliveries out, settlements in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, ErrorKind};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Frames, Link, classify_error, wire};
use crate::broker::{BrokerError, Delivery, Queue, Settlement};

/// How long a settled delivery may wait for the ones before it, so that one acknowledgement can
/// serve all of them: a quorum queue takes each acknowledgement as an entry of its log.
const ACK_DELAY: Duration = Duration::from_millis(20);

/// What is consumed, and how.
pub(super) struct Source {
    pub link: Arc<Link>,
    pub queue: Queue,
    /// Exchanges and routing keys of what the queue gets, if it is a subscriber's or a private one.
    pub bindings: Vec<(String, String)>,
    pub prefetch: u16,
}

/// Whether the broker has sent a message that does not fit a frame: at a redelivery it adds headers of its
/// own. AMQP 0-9-1 calls it `frame-error`, 501.
pub(super) fn breaks_frames(error: &BrokerError) -> bool {
    let BrokerError::Transient(source) = error else { return false };
    let error = source.downcast_ref::<lapin::Error>().map(lapin::Error::kind);
    matches!(error, Some(ErrorKind::ProtocolError(error)) if error.get_id() == 501)
}

/// One consumer on one channel of one connection. Delivery tags are good for this session only:
/// settlements that come after its end are dropped, and the broker delivers again.
pub(super) struct Session {
    link: Arc<Link>,
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    queue: Queue,
    /// Larger bodies are cut.
    largest: usize,
    /// The prefetch of this session.
    window: u16,
    /// Takes messages one by one, because one of them may break the session. Once they are settled
    /// another session takes more at once.
    isolating: bool,
    /// Messages that are suspect yet.
    careful: usize,
    /// Delivery tags delivered and not settled.
    unsettled: BTreeSet<u64>,
    /// Delivery tags settled with an ack that the broker was not told of yet.
    acked: BTreeSet<u64>,
    /// Messages settled in this session.
    settled: usize,
}

type Settled = (u64, Settlement);
type Received = Option<Result<lapin::message::Delivery, lapin::Error>>;

/// Where deliveries go, and how their settlements come back.
#[derive(Clone)]
struct DeliverySink {
    deliver: UnboundedSender<Delivery>,
    settle: UnboundedSender<Settled>,
}

impl Source {
    /// A new session, in which the first `careful` messages are taken one by one.
    pub(super) async fn open(&self, careful: usize) -> Result<Session, BrokerError> {
        let Self { link, queue, bindings, prefetch } = self;
        let window = if careful > 0 { 1 } else { *prefetch };
        // A private queue ends with its connection, and with it a message that does not fit.
        let is_private = matches!(queue, Queue::Private(_));
        let frames = if is_private { Frames::Small } else { Frames::Large };
        let connection = link.connect("consumer", frames).await?;
        let name = link.topology.queue(queue);
        let opening = async {
            let channel = connection.create_channel().await?;
            if matches!(queue, Queue::Subscriber(_) | Queue::Private(_)) {
                link.declare_subscription(&channel, queue, bindings).await?;
            } else if queue.is_shard() {
                link.declare_intake(&channel, queue).await?;
            }
            channel.basic_qos(window, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let consumer = channel
                .basic_consume(name.into(), "".into(), options, FieldTable::default())
                .await?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = link.within(opening).await?;
        Ok(Session {
            link: link.clone(),
            connection,
            channel,
            consumer,
            queue: queue.clone(),
            largest: link.bounds.largest(queue),
            window,
            isolating: careful > 0,
            careful,
            unsettled: BTreeSet::new(),
            acked: BTreeSet::new(),
            settled: 0,
        })
    }
}

impl Session {
    /// How many messages of the next session may hold the one that has ended this one with `error`; 0 if
    /// none seems to be to blame. A session that got nowhere is as suspect as one that has met a message
    /// that does not fit a frame.
    /// Who browses dead letters settles none before the end, and can't take them one by one.
    pub(super) fn suspects(&self, error: &BrokerError) -> usize {
        if self.queue == Queue::DeadLetters {
            return 0;
        }
        let got_nowhere = self.settled == 0 && !self.unsettled.is_empty();
        match breaks_frames(error) {
            // It was the one message that was on its way. Behind it are those that were suspect before.
            true if self.isolating => self.careful.max(1),
            false if !got_nowhere => self.careful,
            _ => usize::from(self.window).max(self.careful),
        }
    }

    /// How many messages at the head of the queue to look at, to find those that do not fit a frame.
    pub(super) fn oversized(&self, error: &BrokerError) -> usize {
        match self.queue {
            _ if !breaks_frames(error) => 0,
            Queue::DeadLetters => usize::MAX,
            Queue::Intents | Queue::IntentsShard(_) | Queue::Returned | Queue::ReturnedShard(_) => {
                usize::from(self.isolating)
            }
            Queue::Subscriber(_) | Queue::Private(_) | Queue::Named(_) => 0,
        }
    }

    /// Runs until `stop`, and then until everything delivered is settled. An error means that
    /// the session is lost.
    pub(super) async fn run(
        &mut self,
        deliver: &mut Option<UnboundedSender<Delivery>>,
        stop: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let Some(taker) = deliver.clone() else { return Ok(()) };
        let (settle, mut settled) = unbounded_channel::<Settled>();
        let sink = DeliverySink { deliver: taker, settle };
        let mut batch = Vec::new();
        let mut ack_by = None;
        loop {
            tokio::select! {
                _ = settled.recv_many(&mut batch, 4096) => self.settle(&mut batch).await?,
                next = self.consumer.next() => self.deliver(next, &sink)?,
                () = at(ack_by) => self.ack_all().await?,
                () = stop.cancelled() => break,
            }
            if self.is_trusted_again() {
                break;
            }
            ack_by = match (self.acked.is_empty(), ack_by) {
                (true, _) => None,
                (false, None) => Some(Instant::now() + ACK_DELAY),
                (false, earlier) => earlier,
            };
        }
        if stop.is_cancelled() {
            // From here on the session alone holds the sender, so that the taker sees the end of it.
            *deliver = None;
        }
        self.drain(sink, settled).await
    }

    /// Hands over what has come, and all that is ready after it.
    fn deliver(&mut self, first: Received, sink: &DeliverySink) -> Result<(), BrokerError> {
        let mut received = Some(first);
        while let Some(delivery) = received {
            let Some(delivery) = delivery else {
                return Err(BrokerError::Transient("the broker ended the consumer".into()));
            };
            self.deliver_one(delivery.map_err(classify_error)?, sink);
            received = self.consumer.next().now_or_never();
        }
        Ok(())
    }

    fn deliver_one(&mut self, delivery: lapin::message::Delivery, sink: &DeliverySink) {
        let tag = delivery.delivery_tag;
        let redelivered = delivery.redelivered;
        let lapin::message::Delivery { routing_key, properties, data, .. } = delivery;
        let (body, properties) =
            wire::received(routing_key.to_string(), properties, data, &self.queue, self.largest);
        self.unsettled.insert(tag);
        let settle = sink.settle.clone();
        let unsettled =
            self.queue.has_intents().then(|| self.link.metrics.take(properties.sent_at()));
        let settler = Box::new(move |settlement| {
            // Without a receiver the session is over, and the message will come again.
            let _ = settle.send((tag, settlement));
        });
        let delivery = Delivery::new(body, properties, redelivered, settler);
        // Without a receiver deliveries are dropped; this one stays unsettled.
        let _ = sink.deliver.send(delivery.counted(unsettled));
    }

    /// Whether every suspect is settled and no delivery is unsettled that another session would get again.
    fn is_trusted_again(&self) -> bool {
        self.isolating && self.careful == 0 && self.unsettled.is_empty()
    }

    /// Takes settlements, and tells the broker of those that one acknowledgement can serve.
    async fn settle(&mut self, batch: &mut Vec<Settled>) -> Result<(), BrokerError> {
        self.settled += batch.len();
        self.careful = self.careful.saturating_sub(batch.len());
        for (tag, settlement) in batch.drain(..) {
            self.unsettled.remove(&tag);
            match settlement {
                Settlement::Ack => {
                    self.acked.insert(tag);
                }
                Settlement::Requeue => {
                    let options = BasicNackOptions { requeue: true, multiple: false };
                    self.channel.basic_nack(tag, options).await.map_err(classify_error)?;
                }
                Settlement::Reject => {
                    let options = BasicRejectOptions { requeue: true };
                    self.channel.basic_reject(tag, options).await.map_err(classify_error)?;
                }
            }
        }
        let later = match self.unsettled.first() {
            Some(oldest) => self.acked.split_off(oldest),
            None => BTreeSet::new(),
        };
        let ready = std::mem::replace(&mut self.acked, later);
        if let Some(last) = ready.last() {
            let options = BasicAckOptions { multiple: true };
            self.channel.basic_ack(*last, options).await.map_err(classify_error)?;
        }
        Ok(())
    }

    /// Tells the broker of every acknowledgement, one by one.
    async fn ack_all(&mut self) -> Result<(), BrokerError> {
        let acked = std::mem::take(&mut self.acked);
        let single = BasicAckOptions { multiple: false };
        let telling = acked.into_iter().map(|tag| self.channel.basic_ack(tag, single));
        try_join_all(telling).await.map(drop).map_err(classify_error)
    }

    /// Takes no more, waits for the settlements of what was delivered, and ends.
    async fn drain(
        &mut self,
        sink: DeliverySink,
        mut settled: UnboundedReceiver<Settled>,
    ) -> Result<(), BrokerError> {
        if !self.queue.is_shard() {
            let tag = self.consumer.tag();
            let cancelling = self.channel.basic_cancel(tag, BasicCancelOptions::default());
            self.link.within(cancelling).await?;
            // What the broker had sent before it heard of it is still here.
            while let Some(delivery) = self.consumer.next().await {
                self.deliver_one(delivery.map_err(classify_error)?, &sink);
            }
        }
        // A shard's consumer stays until it has settled what it was given, because the next one gets messages as soon
        // as it is cancelled. What comes meanwhile goes back with the channel.
        drop(sink);
        let mut batch = Vec::new();
        while !self.unsettled.is_empty() && settled.recv_many(&mut batch, 4096).await > 0 {
            self.settle(&mut batch).await?;
        }
        self.ack_all().await?;
        // The acknowledgements are on their way; closing in order makes sure that they arrive.
        self.link.within(self.channel.close(200, "drained".into())).await?;
        self.link.within(self.connection.close(200, "drained".into())).await
    }
}

/// Waits until `time`, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
