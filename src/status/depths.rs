//! What waits in the queues.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::broker::{Broker, BrokerError, Queue};
use crate::metrics::BrokerMetrics;
use crate::shards::{Division, ShardMap};

/// What waits in the queues of a deployment, without what consumers hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Depths {
    /// Queues with orders.
    pub shards: Vec<ShardDepth>,
    /// Orders on delay queues, in messages.
    pub deferred: u64,
    /// Dead letters.
    pub dead_letters: u32,
}

/// What waits in the queues of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardDepth {
    /// `None`: the queues without a number.
    pub shard: Option<u16>,
    /// Messages with orders.
    pub intents: u32,
    /// Messages with orders whose delay has passed.
    pub returned: u32,
    /// Consumers of the former.
    pub consumers: u32,
}

impl Depths {
    /// Looks at every queue of a deployment whose intake is divided like `division`.
    pub async fn look(broker: &dyn Broker, division: Division) -> Result<Self, BrokerError> {
        let mut shards = Vec::new();
        for shard in division.queues() {
            let intents = broker.depth(shard.map_or(Queue::Intents, Queue::IntentsShard)).await?;
            let returned =
                broker.depth(shard.map_or(Queue::Returned, Queue::ReturnedShard)).await?;
            let (consumers, returned) = (intents.consumers, returned.messages);
            shards.push(ShardDepth { shard, intents: intents.messages, returned, consumers });
        }
        let deferred = broker.deferred().await?;
        let dead_letters = broker.depth(Queue::DeadLetters).await?.messages;
        Ok(Self { shards, deferred, dead_letters })
    }

    /// Messages with new orders.
    pub fn intents(&self) -> u64 {
        self.shards.iter().map(|shard| u64::from(shard.intents)).sum()
    }

    /// Messages with orders whose delay has passed.
    pub fn returned(&self) -> u64 {
        self.shards.iter().map(|shard| u64::from(shard.returned)).sum()
    }

    /// Workers that are connected to the broker: each takes from the queues without a number.
    pub fn workers(&self) -> u32 {
        let unsharded = self.shards.iter().find(|shard| shard.shard.is_none());
        unsharded.map_or(0, |shard| shard.consumers)
    }

    /// Messages by the role of their queue, with all shards together.
    pub fn by_queue(&self) -> [(&'static str, u64); 4] {
        [
            ("intents", self.intents()),
            ("returned", self.returned()),
            ("deferred", self.deferred),
            ("dead_letters", self.dead_letters.into()),
        ]
    }
}

/// Looks at the queues of a deployment again and again, tells and counts what is there, for as long as it is polled. What is told stays
/// while the broker does not answer.
pub async fn watch_depths(
    broker: Arc<dyn Broker>,
    shard_map: Option<Arc<dyn ShardMap>>,
    metrics: BrokerMetrics,
    every: Duration,
    told: watch::Sender<Depths>,
) {
    let division = Mutex::new(Division::NONE);
    let reading = async {
        let Some(map) = shard_map else { return std::future::pending().await };
        loop {
            match map.roster().await {
                Ok(roster) => *division.lock() = roster.division,
                Err(error) => tracing::debug!(%error, "can't read the shards"),
            }
            tokio::time::sleep(every).await;
        }
    };
    let looking = async {
        loop {
            let now = *division.lock();
            match Depths::look(broker.as_ref(), now).await {
                Ok(depths) => {
                    metrics.depths(&depths.by_queue());
                    told.send_replace(depths);
                }
                Err(error) => tracing::debug!(%error, "can't look at the queues"),
            }
            tokio::time::sleep(every).await;
        }
    };
    // A database that does not answer must not keep the queues from being looked at.
    let ((), ()) = tokio::join!(reading, looking);
}
