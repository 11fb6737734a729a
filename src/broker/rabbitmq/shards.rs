//! A divided intake: consistent-hash exchanges, and the consumers of the shards that this process takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, ErrorKind, ExchangeKind};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::consumer::{Session, Source};
use super::declare::{DURABLE_EXCHANGE, EVERY_KEY, bind};
use super::supervisor::Supervisor;
use super::{Frames, Link};
use crate::broker::{BrokerError, Delivery, Queue};

/// Of the plugin `rabbitmq_consistent_hash_exchange`. Its bindings are numbered in the order in which they are made,
/// so queues that are bound in the same order to two exchanges get the same share of the routing keys.
const CONSISTENT_HASH: &str = "x-consistent-hash";
/// Buckets of each shard, which the exchange takes as the routing key of a binding.
const WEIGHT: &str = "1";

/// How long a process may take from looking for the mark to binding.
pub(super) const LATE_BINDING: Duration = Duration::from_secs(1);

/// Consumes a queue of intents, and besides those of its shards that this process takes.
pub(super) struct ShardedConsumer {
    pub unsharded: Supervisor,
    /// The shards to take.
    pub wanted: watch::Receiver<Vec<u16>>,
}

impl ShardedConsumer {
    pub(super) async fn run(mut self, first: Option<Session>, deliver: UnboundedSender<Delivery>) {
        let stop = self.unsharded.stop.clone();
        let Source { link, queue, prefetch, .. } = &self.unsharded.source;
        let (link, queue, prefetch) = (link.clone(), queue.clone(), *prefetch);
        let mut consumers = JoinSet::new();
        consumers.spawn(self.unsharded.run(first, deliver.clone()));
        let mut taken: BTreeMap<u16, CancellationToken> = BTreeMap::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            taken.retain(|shard, stop| {
                let keeps = wanted.contains(shard);
                if !keeps {
                    stop.cancel();
                }
                keeps
            });
            let share = u16::try_from(wanted.len()).unwrap_or(u16::MAX).max(1);
            for shard in wanted {
                let Some(queue) = queue.shard(shard).filter(|_| !taken.contains_key(&shard)) else {
                    continue;
                };
                let prefetch = (prefetch / share).max(1);
                let source = Source { link: link.clone(), queue, bindings: Vec::new(), prefetch };
                let stop = stop.child_token();
                taken.insert(shard, stop.clone());
                let supervisor =
                    Supervisor { source, stop, interrupted: Arc::<AtomicBool>::default() };
                consumers.spawn(supervisor.run(None, deliver.clone()));
            }
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
                // One that was to stop has ended.
                Some(_) = consumers.join_next(), if consumers.len() > taken.len() + 1 => {}
            }
        }
        drop(deliver);
        while consumers.join_next().await.is_some() {}
    }
}

impl Link {
    /// Whether the intake is divided, by [`sharded_mark`](crate::broker::topology::Topology::sharded_mark). Asks on a
    /// connection that is used for nothing else: a negative answer closes the channel, and the client library may hand
    /// that to the next channel of the connection.
    pub(super) async fn is_sharded(&self) -> Result<bool, lapin::Error> {
        let connection = self.open("asking", Frames::Small).await?;
        let channel = connection.create_channel().await?;
        let (mark, none) = (self.topology.sharded_mark(), FieldTable::default());
        let passive = ExchangeDeclareOptions { passive: true, ..DURABLE_EXCHANGE };
        let found = match channel
            .exchange_declare(mark.into(), ExchangeKind::Fanout, passive, none)
            .await
        {
            Ok(()) => true,
            Err(error) => match error.kind() {
                ErrorKind::ProtocolError(refusal) if refusal.get_id() == 404 => false,
                _ => return Err(error),
            },
        };
        connection.close(200, "asked".into()).await?;
        Ok(found)
    }

    /// The exchange and the queue of intents, and those of returned ones.
    pub(super) fn intakes(&self) -> [(String, Queue); 2] {
        let names = &self.topology;
        [(names.intents_exchange(), Queue::Intents), (names.returned_exchange(), Queue::Returned)]
    }

    /// Divides the intake into `shards` instead of `before`. At every moment each message goes to a queue that is
    /// consumed, and for a moment to two of them, which gives a repeat.
    pub(super) async fn divide(
        &self,
        channel: &Channel,
        before: u16,
        shards: u16,
    ) -> Result<(), lapin::Error> {
        let mark = self.topology.sharded_mark();
        if shards == 1 {
            for (exchange, queue) in self.intakes() {
                bind(channel, &self.topology.queue(&queue), &exchange, EVERY_KEY).await?;
            }
            let mark = channel.exchange_delete(mark.into(), ExchangeDeleteOptions::default());
            mark.await?;
            for (exchange, _) in self.intakes() {
                let sharded = self.topology.sharded(&exchange);
                let options = ExchangeUnbindOptions::default();
                let none = FieldTable::default();
                let unbinding = channel.exchange_unbind(
                    sharded.clone().into(),
                    exchange.into(),
                    EVERY_KEY.into(),
                    options,
                    none,
                );
                unbinding.await?;
                channel.exchange_delete(sharded.into(), ExchangeDeleteOptions::default()).await?;
            }
            return Ok(());
        }
        for (exchange, queue) in self.intakes() {
            self.shard(channel, &exchange, &queue, before, shards).await?;
        }
        let none = FieldTable::default();
        channel.exchange_declare(mark.into(), ExchangeKind::Fanout, DURABLE_EXCHANGE, none).await?;
        self.unbind_unsharded(channel).await
    }

    /// No message gets to the queues without a number any more.
    pub(super) async fn unbind_unsharded(&self, channel: &Channel) -> Result<(), lapin::Error> {
        for (exchange, queue) in self.intakes() {
            self.unbind(channel, &exchange, &queue, EVERY_KEY).await?;
        }
        Ok(())
    }

    /// Has every message of `exchange` go to one of `shards` queues.
    async fn shard(
        &self,
        channel: &Channel,
        exchange: &str,
        queue: &Queue,
        before: u16,
        shards: u16,
    ) -> Result<(), lapin::Error> {
        let sharded = self.topology.sharded(exchange);
        let kind = ExchangeKind::Custom(CONSISTENT_HASH.into());
        let none = FieldTable::default();
        channel.exchange_declare(sharded.clone().into(), kind, DURABLE_EXCHANGE, none).await?;
        for number in 0..shards {
            let Some(shard) = queue.shard(number) else { continue };
            self.declare_intake(channel, &shard).await?;
            bind(channel, &self.topology.queue(&shard), &sharded, WEIGHT).await?;
        }
        // From the last one on, so that the others keep their numbers.
        for number in (shards..before).rev() {
            let Some(shard) = queue.shard(number) else { continue };
            self.unbind(channel, &sharded, &shard, WEIGHT).await?;
        }
        let (options, none) = (ExchangeBindOptions::default(), FieldTable::default());
        channel
            .exchange_bind(sharded.into(), exchange.into(), EVERY_KEY.into(), options, none)
            .await
    }

    async fn unbind(
        &self,
        channel: &Channel,
        exchange: &str,
        queue: &Queue,
        key: &str,
    ) -> Result<(), lapin::Error> {
        let name = self.topology.queue(queue);
        let none = FieldTable::default();
        let unbinding = channel.queue_unbind(name.into(), exchange.into(), key.into(), none);
        unbinding.await
    }
}

/// Says what to do about a broker that does not know the kind of exchange.
pub(super) fn explain(error: BrokerError) -> BrokerError {
    let BrokerError::Transient(source) = &error else { return error };
    let is_unknown = source.downcast_ref::<lapin::Error>().is_some_and(|error| {
        // AMQP 0-9-1 calls it `command-invalid`.
        matches!(error.kind(), ErrorKind::ProtocolError(refusal) if refusal.get_id() == 503)
    });
    if !is_unknown {
        return error;
    }
    let remedy = "it has no consistent-hash exchanges; enable them on every node: rabbitmq-plugins enable \
                  rabbitmq_consistent_hash_exchange";
    BrokerError::Permanent(remedy.into())
}
