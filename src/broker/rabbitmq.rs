//! The broker on RabbitMQ 3.10 or newer: quorum queues, publisher confirms.
//!
//! Consuming and publishing have connections of their own, because RabbitMQ stops reading from a
//! connection that publishes while it is short of memory or disk, acknowledgements included.

mod bounds;
mod consumer;
mod oversized;
mod publisher;
mod reader;
mod replies;
mod supervisor;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::topology::Topology;
use super::{
    Bounds, Broker, BrokerError, Delay, Deliveries, Depth, Message, Published, Queue, Reply, Topic,
};
use crate::broker::BrokerSettings;
use crate::outage::Outage;
use crate::tls::Tls;
use consumer::Source;
use publisher::Publisher;
use reader::Reader;
use replies::Replies;
use supervisor::Supervisor;

/// Dead letters are browsed by taking and giving back, and each giving back counts as an attempt;
/// since RabbitMQ 4.0 a queue without a limit drops messages after 20.
const DEAD_LETTER_DELIVERY_LIMIT: i64 = 1_000_000;

/// What is left out of the logs, in the language of their filter: the client library logs every event that has
/// no subscriber, with all of its contents, and every lost connection; floodgate counts the former and says the
/// latter once.
pub const UNLOGGED: &str = "lapin=off";

/// Messages that a private queue holds for a consumer that is slow; the oldest go first.
const PRIVATE_MAX_LENGTH: i64 = 100_000;

/// Binds a queue to everything, in the language of topic exchanges.
const EVERY_KEY: &str = "#";

/// [`Broker`] on RabbitMQ.
pub struct RabbitBroker {
    link: Arc<Link>,
    publisher: Publisher,
    replies: Replies,
}

/// How to reach the server, and what has to be there.
struct Link {
    uri: AMQPUri,
    topology: Topology,
    bounds: Bounds,
    timeout: Duration,
    outage: Outage,
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
    ) -> Result<Self, BrokerError> {
        // The parser's own message may repeat the URL with its password.
        let mut uri: AMQPUri = url.expose_secret().parse().map_err(|_| {
            BrokerError::Permanent(
                "the AMQP URL is not amqp://user:password@host:port/vhost".into(),
            )
        })?;
        uri.query.heartbeat.get_or_insert(settings.heartbeat_s);
        let timeout = settings.confirm_timeout;
        uri.query
            .connection_timeout
            .get_or_insert(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let topology = Topology::new(namespace);
        let link = Arc::new(Link {
            uri,
            topology,
            bounds,
            timeout,
            outage: Outage::new("RabbitMQ"),
            tls: tls_config(tls),
        });
        let (publisher, replies) = (Publisher::new(link.clone()), Replies::new(link.clone()));
        Ok(Self { link, publisher, replies })
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
        let channel = self.publisher.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(name.into(), passive, FieldTable::default());
        let queue = self.link.within(declared).await?;
        Ok(Depth { messages: queue.message_count(), consumers: queue.consumer_count() })
    }

    /// Deletes every queue and exchange of the namespace, and those of `subscribers`.
    pub async fn remove(&self, subscribers: &[&str]) -> Result<(), BrokerError> {
        let channel = self.publisher.channel().await?;
        let names = &self.link.topology;
        let mut queues = [Queue::Intents, Queue::Returned, Queue::DeadLetters]
            .map(|queue| names.queue(&queue))
            .to_vec();
        queues.extend(Delay::ALL.map(|delay| names.delay(delay)));
        queues.extend(
            subscribers.iter().map(|&name| names.queue(&Queue::Subscriber(name.to_owned()))),
        );
        let removing = async {
            for name in queues {
                channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
            }
            for exchange in names.exchanges() {
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

impl Link {
    /// A new connection, with everything declared that the namespace needs.
    async fn connect(&self, role: &str) -> Result<Connection, BrokerError> {
        let name = format!("floodgate {role}");
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = async {
            let (uri, tls) = (self.uri.clone(), self.tls.clone());
            let runtime = lapin::runtime::default_runtime()?;
            let connection =
                Connection::connect_uri_with_config(uri, properties, tls, runtime).await?;
            let channel = connection.create_channel().await?;
            self.declare(&channel).await?;
            channel.close(200, "declared".into()).await?;
            Ok(connection)
        };
        self.outage.noted(self.within(connecting).await, BrokerError::is_transient)
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

    async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let names = &self.topology;
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        for exchange in names.exchanges() {
            channel
                .exchange_declare(
                    exchange.into(),
                    ExchangeKind::Topic,
                    durable,
                    FieldTable::default(),
                )
                .await?;
        }

        let mut dead = quorum(DEAD_LETTER_DELIVERY_LIMIT);
        text(&mut dead, "x-overflow", "reject-publish");
        let dead_exchange = names.dead_exchange();
        let dead_letters = names.queue(&Queue::DeadLetters);
        declare_queue(channel, &dead_letters, DURABLE, dead).await?;
        bind(channel, &dead_letters, &dead_exchange, EVERY_KEY).await?;

        let returned_exchange = names.returned_exchange();
        for (queue, exchange) in
            [(Queue::Intents, &names.intents_exchange()), (Queue::Returned, &returned_exchange)]
        {
            let name = names.queue(&queue);
            let mut arguments = quorum(i64::from(self.bounds.delivery_limit));
            dead_letter_to(&mut arguments, &dead_exchange);
            declare_queue(channel, &name, DURABLE, arguments).await?;
            bind(channel, &name, exchange, EVERY_KEY).await?;
        }

        for delay in Delay::ALL {
            let name = names.delay(delay);
            let mut waiting = FieldTable::default();
            text(&mut waiting, "x-queue-type", "quorum");
            waiting.insert("x-message-ttl".into(), AMQPValue::LongLongInt(delay.ms().into()));
            dead_letter_to(&mut waiting, &returned_exchange);
            declare_queue(channel, &name, DURABLE, waiting).await?;
            bind(channel, &name, &name, EVERY_KEY).await?;
        }
        Ok(())
    }

    /// Makes the queue of a subscriber or of one consumer, and binds it to the events.
    async fn declare_subscription(
        &self,
        channel: &Channel,
        queue: &Queue,
        bindings: &[(String, String)],
    ) -> Result<(), lapin::Error> {
        let mut arguments = FieldTable::default();
        let options = if let Queue::Private(_) = queue {
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(PRIVATE_MAX_LENGTH));
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() }
        } else {
            text(&mut arguments, "x-queue-type", "quorum");
            DURABLE
        };
        let name = self.topology.queue(queue);
        declare_queue(channel, &name, options, arguments).await?;
        for (exchange, routing_key) in bindings {
            bind(channel, &name, exchange, routing_key).await?;
        }
        Ok(())
    }
}

/// How a queue that outlives the server is declared.
const DURABLE: QueueDeclareOptions = QueueDeclareOptions {
    passive: false,
    durable: true,
    exclusive: false,
    auto_delete: false,
    nowait: false,
};

async fn declare_queue(
    channel: &Channel,
    name: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<(), lapin::Error> {
    channel.queue_declare(name.into(), options, arguments).await.map(drop)
}

async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    routing_key: &str,
) -> Result<(), lapin::Error> {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.into(), routing_key.into(), options, none).await
}

fn quorum(delivery_limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    text(&mut arguments, "x-queue-type", "quorum");
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit));
    arguments
}

/// Dead-letters at least once, which needs this overflow rule (RabbitMQ's page on quorum queues).
fn dead_letter_to(arguments: &mut FieldTable, exchange: &str) {
    text(arguments, "x-dead-letter-exchange", exchange);
    text(arguments, "x-dead-letter-strategy", "at-least-once");
    text(arguments, "x-overflow", "reject-publish");
}

fn text(arguments: &mut FieldTable, name: &'static str, value: &str) {
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
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
        // The first connection is made here, so that a wrong address is known at once.
        let first = source.open(0).await?;
        let interrupted = Arc::default();
        let consumer =
            Supervisor { source, stop: stop.clone(), interrupted: Arc::clone(&interrupted) };
        let consumer = tokio::spawn(consumer.run(first, deliver));
        Ok(Deliveries::new(incoming, stop, consumer, interrupted))
    }

    async fn publish(&self, messages: &[Message<'_>]) -> Published {
        self.publisher.publish(messages).await
    }

    fn reply(&self, reply: Reply) {
        self.replies.hand_in(reply);
    }

    fn dropped_replies(&self) -> u64 {
        self.replies.dropped()
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
