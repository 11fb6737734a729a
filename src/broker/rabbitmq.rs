//! The broker on RabbitMQ 3.10 or newer: quorum queues, publisher confirms.
//!
//! Consuming and publishing have connections of their own, because RabbitMQ stops reading from a
//! connection that publishes while it is short of memory or disk, acknowledgements included.

mod consumer;
mod publisher;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::topology::Topology;
use super::{Broker, BrokerError, Deliveries, Message, Published, Queue};
use crate::config::BrokerSettings;
use publisher::Publisher;

/// Dead letters are browsed by taking and giving back, and each giving back counts as an attempt;
/// since RabbitMQ 4.0 a queue without a limit of its own drops messages after 20.
const DEAD_LETTER_DELIVERY_LIMIT: i64 = 1_000_000;

/// What is left out of the logs, in the language of their filter: the client library warns of every
/// event that has no subscriber, with all of its contents; the worker counts them instead.
pub const UNLOGGED: &str = "lapin::returned_messages=off";

/// Binds a queue to everything, in the language of topic exchanges.
const EVERY_KEY: &str = "#";

/// [`Broker`] on RabbitMQ.
pub struct RabbitBroker {
    link: Arc<Link>,
    publisher: Publisher,
}

/// How to reach the server, and what has to be there.
struct Link {
    uri: AMQPUri,
    topology: Topology,
    delivery_limit: u32,
    timeout: Duration,
}

impl RabbitBroker {
    /// A broker at `url`. Connects when it is first used, and declares what it needs then.
    pub fn new(
        url: &SecretString,
        namespace: &str,
        settings: &BrokerSettings,
        delivery_limit: u32,
    ) -> Result<Self, BrokerError> {
        // The parser's own message may repeat the URL with its password.
        let mut uri: AMQPUri = url.expose_secret().parse().map_err(|_| {
            BrokerError::Permanent(
                "the AMQP URL is not amqp://user:password@host:port/vhost".into(),
            )
        })?;
        uri.query.heartbeat.get_or_insert(settings.heartbeat_s);
        let timeout = settings.confirm_timeout();
        uri.query
            .connection_timeout
            .get_or_insert(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        let topology = Topology::new(namespace);
        let link = Arc::new(Link { uri, topology, delivery_limit, timeout });
        Ok(Self { publisher: Publisher::new(link.clone()), link })
    }

    /// Fails unless the server can be reached and everything is declared.
    pub async fn check(&self) -> Result<(), BrokerError> {
        self.publisher.channel().await.map(drop)
    }
}

impl RabbitBroker {
    /// Takes the events that match `routing_key` from a queue of its own, called `name` within
    /// the namespace, made if it isn't there.
    pub async fn subscribe(
        &self,
        name: &str,
        routing_key: &str,
        prefetch: u16,
    ) -> Result<Deliveries, BrokerError> {
        let queue = Queue::Subscriber(name.to_owned());
        let channel = self.publisher.channel().await?;
        let (names, mut arguments) = (&self.link.topology, FieldTable::default());
        text(&mut arguments, "x-queue-type", "quorum");
        let exchange = names.events_exchange();
        let declared = self.link.declare_queue(&channel, &queue, &exchange, routing_key, arguments);
        self.link.within(declared).await?;
        self.consume(queue, prefetch).await
    }

    /// Deletes every queue and exchange of the namespace, and those of `subscribers`.
    pub async fn remove(&self, subscribers: &[&str]) -> Result<(), BrokerError> {
        let channel = self.publisher.channel().await?;
        let names = &self.link.topology;
        let mut queues = vec![Queue::Intents, Queue::DeadLetters];
        queues.extend(subscribers.iter().map(|&name| Queue::Subscriber(name.to_owned())));
        let removing = async {
            for queue in &queues {
                let name = names.queue(queue);
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

impl Link {
    /// A new connection, with everything declared that the namespace needs.
    async fn connect(&self, role: &str) -> Result<Connection, BrokerError> {
        let name = format!("floodgate {role}");
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = async {
            let connection = Connection::connect_uri(self.uri.clone(), properties).await?;
            let channel = connection.create_channel().await?;
            self.declare(&channel).await?;
            channel.close(200, "declared".into()).await?;
            Ok(connection)
        };
        self.within(connecting).await
    }

    /// Waits for an answer of the server, but no longer than the time limit.
    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<T, BrokerError> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(result) => result.map_err(sorted),
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
        self.declare_queue(channel, &Queue::DeadLetters, &dead_exchange, EVERY_KEY, dead).await?;

        // Dead-lettering at least once needs this overflow rule, RabbitMQ's page on quorum queues.
        let mut intents = quorum(i64::from(self.delivery_limit));
        text(&mut intents, "x-dead-letter-exchange", &dead_exchange);
        text(&mut intents, "x-dead-letter-strategy", "at-least-once");
        text(&mut intents, "x-overflow", "reject-publish");
        let exchange = names.intents_exchange();
        self.declare_queue(channel, &Queue::Intents, &exchange, EVERY_KEY, intents).await
    }

    async fn declare_queue(
        &self,
        channel: &Channel,
        queue: &Queue,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) -> Result<(), lapin::Error> {
        let name = self.topology.queue(queue);
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.as_str().into(), durable, arguments).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(name.into(), exchange.into(), routing_key.into(), options, none).await
    }
}

fn quorum(delivery_limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    text(&mut arguments, "x-queue-type", "quorum");
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit));
    arguments
}

fn text(arguments: &mut FieldTable, name: &'static str, value: &str) {
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
}

/// Tells errors that pass from those that stay: a queue that exists with other arguments, and
/// refused credentials or permissions (406 and 403 of AMQP 0-9-1).
fn sorted(error: lapin::Error) -> BrokerError {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) if matches!(refusal.get_id(), 403 | 406) => {
            BrokerError::Permanent(Box::new(error))
        }
        _ => BrokerError::Transient(Box::new(error)),
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn consume(&self, queue: Queue, prefetch: u16) -> Result<Deliveries, BrokerError> {
        let (hand_over, incoming) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        // The first connection is made here, so that a wrong address is known at once.
        let first = consumer::Session::open(&self.link, &queue, prefetch).await?;
        let consumer =
            consumer::Supervisor { link: self.link.clone(), queue, prefetch, stop: stop.clone() };
        let consumer = tokio::spawn(consumer.run(first, hand_over));
        Ok(Deliveries { incoming, stop, consumer })
    }

    async fn publish(&self, messages: &[Message<'_>]) -> Result<Published, BrokerError> {
        self.publisher.publish(messages).await
    }

    async fn depth(&self, queue: Queue) -> Result<u32, BrokerError> {
        let channel = self.publisher.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let name = self.link.topology.queue(&queue);
        let declared = channel.queue_declare(name.into(), passive, FieldTable::default());
        let queue = self.link.within(declared).await?;
        Ok(queue.message_count())
    }
}
