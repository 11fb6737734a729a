//! A place apart on the configured servers, for benches and tests: a namespace and a database of
//! their own, that leave nothing behind.

use anyhow::{Context, Result};

use super::App;
use crate::broker::{Broker, Deliveries, Queue, RabbitBroker};
use crate::config::{Server, Settings};
use crate::inventory::RedisInventory;
use crate::ledger::PostgresLedger;
use crate::order::SaleId;

/// The queue of [`Scratch::events`].
const SUBSCRIBER: &str = "scratch";

/// Servers with a place apart on them.
pub struct Scratch {
    /// Builds parts that work in that place.
    pub app: App,
    outside: Settings,
    name: String,
    broker: RabbitBroker,
    inventory: RedisInventory,
    ledger: PostgresLedger,
}

impl Scratch {
    /// Makes a place called `name` on the servers of `settings`, with the ledger's schema.
    pub async fn create(settings: &Settings, name: &str) -> Result<Self> {
        settings.require(&[Server::Amqp, Server::Redis, Server::Database])?;
        let (outside, mut inside) = (settings.clone(), settings.clone());
        name.clone_into(&mut inside.namespace);
        inside.database_url = PostgresLedger::create_database(&settings.database_url, name)
            .await
            .context("PostgreSQL (FLOODGATE_DATABASE_URL)")?;
        let limit = inside.intent.delivery_limit;
        let broker = RabbitBroker::new(&inside.amqp_url, name, &inside.broker, limit)?;
        let inventory = RedisInventory::new(&inside.redis_url, name, &inside.inventory, 2)?;
        let ledger = PostgresLedger::new(&inside.database_url, &inside.ledger)?;
        let app = App::new(inside);
        app.migrate().await?;
        Ok(Self { app, outside, name: name.to_owned(), broker, inventory, ledger })
    }

    /// Every event published from now on.
    pub async fn events(&self, prefetch: u16) -> Result<Deliveries> {
        let queue = Queue::Subscriber(SUBSCRIBER.to_owned());
        Ok(self.broker.subscribe(queue, &["order.#"], prefetch).await?)
    }

    /// Bytes of Redis's memory for the decisions of `sale`.
    pub async fn redis_bytes(&self, sale: &SaleId) -> Result<u64> {
        Ok(self.inventory.usage(sale).await?)
    }

    /// Bytes of PostgreSQL's disk for all decisions, and how many there are.
    pub async fn ledger_bytes(&self) -> Result<(u64, u64)> {
        Ok(self.ledger.usage().await?)
    }

    /// Removes everything. Tries all of it, and tells of the first failure.
    pub async fn remove(self) -> Result<()> {
        let redis = self.inventory.remove().await;
        let queues = self.broker.remove(&[SUBSCRIBER]).await;
        let database = PostgresLedger::drop_database(&self.outside.database_url, &self.name).await;
        redis?;
        queues?;
        Ok(database?)
    }
}
