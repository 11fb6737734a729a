//! The broker on RabbitMQ 3.10 or newer: quorum queues, publisher confirms.
//!
//! Consuming and publishing have connections of their own, because RabbitMQ stops reading from a
//! connection that publishes while it is short of memory or disk, acknowledgements included.

mod bounds;
mod consumer;
mod declare;
mod feed;
mod headers;
mod nodes;
mod oversized;
mod publisher;
mod reader;
mod replies;
mod shards;
mod supervisor;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::constants::FRAME_MIN_SIZE;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, ErrorKind};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{mpsc, watch};
use tokio::try_join;
use tokio_util::sync::CancellationToken;

use super::topology::Topology;
use super::{
    Bounds, Broker, BrokerError, Delay, Deliveries, Depth, FeedError, FeedReader, Message,
    Published, Queue, Reply, Topic,
};
use crate::broker::BrokerSettings;
use crate::domain::event::FeedStart;
use crate::metrics::{BrokerMetrics, Dependency, Metrics};
use crate::outage::Outage;
use crate::tls::Tls;
use consumer::Source;
use feed::Feed;
use nodes::Nodes;
use publisher::Publisher;
use reader::Reader;
use replies::Replies;
use shards::{LATE_BINDING, ShardedConsumer};
use supervisor::Supervisor;

/// What is left out of the logs, in the language of their filter: the client library logs every event that has
/// no subscriber, with all of its contents, and every lost connection; floodgate counts the former and says the
/// latter once.
pub const UNLOGGED: &str = "lapin=off";

/// [`Broker`] on RabbitMQ.
pub struct RabbitBroker {
    link: Arc<Link>,
    publisher: Publisher,
    replies: Replies,
    feed: Feed,
    /// The shards that this process takes.
    shards: watch::Sender<Vec<u16>>,
}

/// How to reach the server, and what has to be there.
struct Link {
    nodes: Nodes,
    topology: Topology,
    bounds: Bounds,
    timeout: Duration,
    outage: Outage,
    metrics: BrokerMetrics,
    tls: OwnedTLSConfig,
}

impl RabbitBroker {
    /// A broker at `url`, whose exchanges and queues are named within `namespace`. Connects when it is first
    /// used, and declares what it needs then.
    pub fn new(
        url: &SecretString,
        tls: Tls,
        namespace: &str,
        settings: &BrokerSettings,
        bounds: Bounds,
        metrics: &Metrics,
    ) -> Result<Self, BrokerError> {
        let timeout = settings.confirm_timeout;
        let nodes = Nodes::of(url, settings.heartbeat_s, timeout)?;
        let topology = Topology::new(namespace);
        let link = Arc::new(Link {
            nodes,
            topology,
            bounds,
            timeout,
            outage: Outage::new(metrics.dependencies.of(Dependency::RabbitMq)),
            metrics: metrics.broker.clone(),
            tls: tls_config(tls),
        });
        let (publisher, replies) = (Publisher::new(link.clone()), Replies::new(link.clone()));
        let feed = Feed::new(link.clone());
        Ok(Self { link, publisher, replies, feed, shards: watch::Sender::default() })
    }

    /// The version of the server.
    pub async fn version(&self) -> Result<String, BrokerError> {
        let reader = Reader::connect(&self.link).await?;
        let version = reader.server_version.clone();
        reader.close().await?;
        Ok(version)
    }

    /// Fails unless the server can be reached and everything is declared.
    pub async fn check(&self) -> Result<(), BrokerError> {
        self.publisher.channel().await.map(drop)
    }
}

impl RabbitBroker {
    /// A look at the queue called `name`.
    async fn depth_of(&self, name: String) -> Result<Depth, BrokerError> {
        let looked = self.look_at(name).await;
        self.link.outage.noted(looked, BrokerError::is_transient)
    }

    async fn look_at(&self, name: String) -> Result<Depth, BrokerError> {
        let channel = self.publisher.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(name.into(), passive, FieldTable::default());
        let queue = self.link.within(declared).await?;
        Ok(Depth { messages: queue.message_count(), consumers: queue.consumer_count() })
    }

    /// Divides the intake into `shards` instead of `before`, of which 1 is not sharded. Needs the plugin
    /// `rabbitmq_consistent_hash_exchange` where there are more. Loses nothing if it fails; it is to be repeated then.
    pub async fn divide(&self, before: u16, shards: u16) -> Result<(), BrokerError> {
        let channel = self.publisher.channel().await?;
        let dividing = self.link.within(self.link.divide(&channel, before, shards)).await;
        dividing.map_err(shards::explain)?;
        if shards > 1 {
            // Who looked for the mark before it was there may have bound them meanwhile.
            tokio::time::sleep(LATE_BINDING).await;
            self.link.within(self.link.unbind_unsharded(&channel)).await?;
        }
        Ok(())
    }

    /// Deletes every queue and exchange of the namespace, with up to `shards` of an intake that was divided, and the
    /// queues of `subscribers`.
    pub async fn remove(&self, subscribers: &[&str], shards: u16) -> Result<(), BrokerError> {
        let channel = self.publisher.channel().await?;
        let names = &self.link.topology;
        let mut queues = [Queue::Intents, Queue::Returned, Queue::DeadLetters]
            .map(|queue| names.queue(&queue))
            .to_vec();
        queues.extend(Delay::ALL.map(|delay| names.delay(delay)));
        queues.push(names.feed());
        queues.extend(
            subscribers.iter().map(|&name| names.queue(&Queue::Subscriber(name.to_owned()))),
        );
        for (_, queue) in self.link.intakes() {
            let shards = (0..shards).filter_map(|number| queue.shard(number));
            queues.extend(shards.map(|shard| names.queue(&shard)));
        }
        let mut exchanges = names.exchanges();
        exchanges.extend(self.link.intakes().map(|(exchange, _)| names.sharded(&exchange)));
        exchanges.push(names.sharded_mark());
        let removing = async {
            for name in queues {
                channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
            }
            for exchange in exchanges {
                channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
            }
            Ok(())
        };
        self.link.within(removing).await
    }
}

/// What the library is told of TLS.
fn tls_config(tls: Tls) -> OwnedTLSConfig {
    let identity = tls.client.map(|client| OwnedIdentity::PKCS8 {
        pem: client.certificate.into_bytes(),
        key: client.key.expose_secret().as_bytes().to_vec(),
    });
    OwnedTLSConfig { identity, cert_chain: tls.ca }
}

/// The largest frames of a connection, for 64 of which the library holds room.
#[derive(Clone, Copy)]
enum Frames {
    /// As large as the server allows, which is 128 KiB by default: what producers send in headers has to fit one.
    Large,
    /// The smallest that the library takes, 8 KiB, where only floodgate's own messages come.
    Small,
}

impl Link {
    /// A new connection, with everything declared that the namespace needs.
    async fn connect(&self, role: &str, frames: Frames) -> Result<Connection, BrokerError> {
        let connecting = async {
            let (connection, is_sharded) = try_join!(self.open(role, frames), self.is_sharded())?;
            self.declare(&connection, is_sharded).await?;
            Ok(connection)
        };
        self.outage.noted(self.within(connecting).await, BrokerError::is_transient)
    }

    /// A new connection, and nothing else.
    async fn open(&self, role: &str, frames: Frames) -> Result<Connection, lapin::Error> {
        self.nodes.first(|node| self.open_to(node, role, frames)).await
    }

    async fn open_to(
        &self,
        mut node: AMQPUri,
        role: &str,
        frames: Frames,
    ) -> Result<Connection, lapin::Error> {
        if let Frames::Small = frames {
            node.query.frame_max = Some(FRAME_MIN_SIZE);
        }
        let name = format!("floodgate {role}");
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = self.tls.clone();
        let runtime = lapin::runtime::default_runtime()?;
        Connection::connect_uri_with_config(node, properties, tls, runtime).await
    }

    /// Waits for an answer of the server, but no longer than the time limit.
    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<T, BrokerError> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(result) => result.map_err(classify_error),
            Err(elapsed) => Err(BrokerError::Transient(Box::new(elapsed))),
        }
    }
}

/// Tells errors that pass from those that stay: a queue that exists with other arguments, and
/// refused credentials or permissions (406 and 403 of AMQP 0-9-1).
fn classify_error(error: lapin::Error) -> BrokerError {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) if matches!(refusal.get_id(), 403 | 406) => {
            BrokerError::Permanent(Box::new(error))
        }
        _ => BrokerError::Transient(Box::new(error)),
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn subscribe(
        &self,
        queue: Queue,
        topics: &[Topic<'_>],
        prefetch: u16,
    ) -> Result<Deliveries, BrokerError> {
        let (deliver, incoming) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let bindings = topics.iter().map(|&topic| self.link.topology.binding(topic)).collect();
        let prefetch = self.link.bounds.window(&queue, prefetch);
        let source = Source { link: self.link.clone(), queue, bindings, prefetch };
        let is_intake = source.queue.shard(0).is_some();
        // The first connection is made here, so that what is bound gets everything from now on. A worker needs none
        // for that: it goes on trying.
        let first = match source.open(0).await {
            Ok(session) => Some(session),
            Err(error) if is_intake && error.is_transient() => None,
            Err(error) => return Err(error),
        };
        let interrupted = Arc::default();
        let consumer =
            Supervisor { source, stop: stop.clone(), interrupted: Arc::clone(&interrupted) };
        let consumer = if is_intake {
            let sharded = ShardedConsumer { unsharded: consumer, wanted: self.shards.subscribe() };
            tokio::spawn(sharded.run(first, deliver))
        } else {
            tokio::spawn(consumer.run(first, deliver))
        };
        Ok(Deliveries::new(incoming, stop, consumer, interrupted))
    }

    fn take_shards(&self, shards: &[u16]) {
        self.shards.send_if_modified(|taken| {
            let changes = taken != shards;
            shards.clone_into(taken);
            changes
        });
    }

    async fn publish(&self, messages: &[Message<'_>]) -> Published {
        self.publisher.publish(messages).await
    }

    fn reply(&self, reply: Reply) {
        self.replies.hand_in(reply);
    }

    async fn feed(&self, start: FeedStart) -> Result<FeedReader, FeedError> {
        if self.link.bounds.feed.is_none() {
            return Err(BrokerError::NoQueue.into());
        }
        let reading = self.feed.read(start).await;
        self.link.outage.noted(reading, FeedError::is_transient)
    }

    fn address(&self, queue: &Queue) -> String {
        self.link.topology.queue(queue)
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError> {
        self.depth_of(self.link.topology.queue(&queue)).await
    }

    async fn deferred(&self) -> Result<u64, BrokerError> {
        let mut deferred = 0;
        for delay in Delay::ALL {
            let depth = self.depth_of(self.link.topology.delay(delay)).await?;
            deferred += u64::from(depth.messages);
        }
        Ok(deferred)
    }
}
