//! The composition root: the only place that chooses adapters.

pub mod scratch;

use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::Utc;

use crate::broker::{Broker, RabbitBroker};
use crate::config::{Server, Settings};
use crate::inventory::{Inventory, RedisInventory};
use crate::ledger::{Ledger, PostgresLedger};
use crate::worker::Worker;

/// Connections to Redis besides one for each batch in flight: one to propose, one to reconcile.
const SPARE_REDIS_CONNECTIONS: usize = 2;

/// Builds the parts of a deployment from its settings.
pub struct App {
    settings: Settings,
}

impl App {
    /// An application with `settings`.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Brings the ledger's database to this version's schema.
    pub async fn migrate(&self) -> Result<()> {
        self.settings.require(&[Server::Database])?;
        PostgresLedger::migrate(&self.settings.database_url).await.context("could not migrate")
    }

    /// The ledger, checked to be there.
    pub async fn ledger(&self) -> Result<Arc<dyn Ledger>> {
        self.settings.require(&[Server::Database])?;
        let ledger = PostgresLedger::new(&self.settings.database_url, &self.settings.ledger)?;
        ledger.check().await.context("PostgreSQL (FLOODGATE_DATABASE_URL)")?;
        Ok(Arc::new(ledger))
    }

    /// The broker, checked to be there.
    pub async fn broker(&self) -> Result<Arc<dyn Broker>> {
        self.settings.require(&[Server::Amqp])?;
        let settings = &self.settings;
        let limit = settings.intent.delivery_limit;
        let broker =
            RabbitBroker::new(&settings.amqp_url, &settings.namespace, &settings.broker, limit)?;
        broker.check().await.context("RabbitMQ (FLOODGATE_AMQP_URL)")?;
        Ok(Arc::new(broker))
    }

    /// The inventory. It may be away: the worker knows what to do then.
    pub fn inventory(&self) -> Result<Arc<dyn Inventory>> {
        self.settings.require(&[Server::Redis])?;
        let settings = &self.settings;
        let connections = settings.worker.batches_in_flight + SPARE_REDIS_CONNECTIONS;
        let (url, namespace) = (&settings.redis_url, &settings.namespace);
        let inventory = RedisInventory::new(url, namespace, &settings.inventory, connections)
            .context("Redis (FLOODGATE_REDIS_URL)")?;
        Ok(Arc::new(inventory))
    }

    /// A worker with all its parts.
    pub async fn worker(&self) -> Result<Worker> {
        self.settings.require(&[Server::Amqp, Server::Redis, Server::Database])?;
        Ok(Worker {
            broker: self.broker().await?,
            inventory: self.inventory()?,
            ledger: self.ledger().await?,
            clock: Arc::new(Utc::now),
            settings: self.settings.clone(),
        })
    }
}
