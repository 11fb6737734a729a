//! Exchanges and queues: what is declared, and how.

use futures_util::future::try_join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};
use tokio::try_join;

use super::Link;
use crate::broker::topology::DEAD_LETTER_DELIVERY_LIMIT;
use crate::broker::{Delay, Queue};

/// Messages that a private queue holds for a consumer that is slow; the oldest go first.
const PRIVATE_MAX_LENGTH: i64 = 100_000;

/// Binds a queue to everything, in the language of topic exchanges.
pub(super) const EVERY_KEY: &str = "#";

impl Link {
    /// Everything that the namespace needs, but for shards.
    pub(super) async fn declare(
        &self,
        connection: &Connection,
        is_sharded: bool,
    ) -> Result<(), lapin::Error> {
        let channel = &connection.create_channel().await?;
        // Asked for all at once, so that a server that is far away is waited for three times, not thirty.
        let names = &self.topology;
        let exchanges = names.exchanges().into_iter().map(|exchange| {
            let (options, none) = (DURABLE_EXCHANGE, FieldTable::default());
            channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, none)
        });
        try_join_all(exchanges).await?;

        let dead_letters = names.queue(&Queue::DeadLetters);
        let mut dead = quorum(DEAD_LETTER_DELIVERY_LIMIT);
        text(&mut dead, "x-overflow", "reject-publish");
        let delays = Delay::ALL.map(|delay| (names.delay(delay), delay.ms()));
        let waiting = delays.iter().map(|(name, ms)| {
            let mut waiting = FieldTable::default();
            text(&mut waiting, "x-queue-type", "quorum");
            waiting.insert("x-message-ttl".into(), AMQPValue::LongLongInt((*ms).into()));
            dead_letter_to(&mut waiting, &names.returned_exchange());
            declare_queue(channel, name, DURABLE, waiting)
        });
        let intakes = self.intakes();
        let intakes_declared = intakes.iter().map(|(_, queue)| self.declare_intake(channel, queue));
        try_join!(
            declare_queue(channel, &dead_letters, DURABLE, dead),
            try_join_all(waiting),
            try_join_all(intakes_declared),
            self.declare_feed(channel),
        )?;

        let mut bindings = vec![(dead_letters, names.dead_exchange())];
        bindings.extend(delays.into_iter().map(|(name, _)| (name.clone(), name)));
        if !is_sharded {
            bindings.extend(intakes.map(|(exchange, queue)| (names.queue(&queue), exchange)));
        }
        let binding =
            bindings.iter().map(|(queue, exchange)| bind(channel, queue, exchange, EVERY_KEY));
        try_join_all(binding).await?;
        channel.close(200, "declared".into()).await
    }

    /// Makes a queue of intents.
    pub(super) async fn declare_intake(
        &self,
        channel: &Channel,
        queue: &Queue,
    ) -> Result<(), lapin::Error> {
        let mut arguments = quorum(self.bounds.delivery_limit);
        dead_letter_to(&mut arguments, &self.topology.dead_exchange());
        if queue.is_shard() {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        declare_queue(channel, &self.topology.queue(queue), DURABLE, arguments).await
    }

    /// Makes the queue of a subscriber or of one consumer, and binds it to the events.
    pub(super) async fn declare_subscription(
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

/// How an exchange that outlives the server is declared.
pub(super) const DURABLE_EXCHANGE: ExchangeDeclareOptions = ExchangeDeclareOptions {
    passive: false,
    durable: true,
    auto_delete: false,
    internal: false,
    nowait: false,
};

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

pub(super) async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    routing_key: &str,
) -> Result<(), lapin::Error> {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.into(), routing_key.into(), options, none).await
}

fn quorum(delivery_limit: u32) -> FieldTable {
    let mut arguments = FieldTable::default();
    text(&mut arguments, "x-queue-type", "quorum");
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(delivery_limit.into()));
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
