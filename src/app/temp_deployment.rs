//! A temporary deployment for demo, benches and tests that leaves nothing behind: a namespace and a database
//! on the configured servers, or, embedded, a file.

use std::path::PathBuf;

use anyhow::{Context, Result};
use secrecy::SecretString;

use super::App;
use super::check::of_server;
use crate::broker::{Deliveries, Queue, RabbitBroker};
use crate::config::{Server, Settings};
use crate::domain::order::SaleId;
use crate::inventory::RedisInventory;
use crate::ledger::PostgresLedger;
use crate::shards::ShardMap;

/// A deployment that is removed after use.
pub struct TempDeployment {
    /// Builds adapters that work in it.
    pub app: App,
    location: Location,
}

/// Where an embedded deployment called `name` has its file.
fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Where it is.
enum Location {
    Servers(Box<Servers>),
    Folder(PathBuf),
}

struct Servers {
    database_url: SecretString,
    broker: RabbitBroker,
    inventory: RedisInventory,
    ledger: PostgresLedger,
}

impl TempDeployment {
    /// The subscriber that [`events`](Self::events) is for.
    pub const SUBSCRIBER: &str = "deployment";

    /// Makes a deployment called `name`, with the ledger's schema: on the servers of `settings`, or in
    /// the folder for temporary files if there are none.
    pub async fn create(settings: &Settings, name: &str) -> Result<Self> {
        if settings.is_embedded() {
            let folder = folder(name);
            std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        } else {
            settings.require(&[Server::Amqp, Server::Redis, Server::Database])?;
            let created = PostgresLedger::create_database(&settings.database_url, name).await;
            of_server(Server::Database, created)?;
        }
        let deployment = Self::existing(settings, name)?;
        if let Location::Servers(_) = deployment.location {
            deployment.app.migrate().await?;
        }
        Ok(deployment)
    }

    /// The deployment called `name`, which [`create`](Self::create) made, perhaps in another process.
    pub fn existing(settings: &Settings, name: &str) -> Result<Self> {
        let mut inside = settings.clone();
        name.clone_into(&mut inside.namespace);
        if settings.is_embedded() {
            let folder = folder(name);
            inside.embedded.file = folder.join("floodgate.db");
            return Ok(Self { app: App::new(inside), location: Location::Folder(folder) });
        }
        let database_url = PostgresLedger::url_of(&settings.database_url, name);
        inside.database_url = of_server(Server::Database, database_url)?;
        let database_url = inside.database_url.clone();
        let app = App::new(inside);
        let (broker, inventory, ledger) = (app.rabbitmq()?, app.redis(2)?, app.postgres()?);
        let servers = Servers { database_url, broker, inventory, ledger };
        Ok(Self { app, location: Location::Servers(Box::new(servers)) })
    }

    /// What it works on, in one word.
    pub fn mode(&self) -> &'static str {
        match self.location {
            Location::Servers(_) => "servers",
            Location::Folder(_) => "embedded",
        }
    }

    /// Every event of an order published from now on, single or in batches as the settings say.
    pub async fn events(&self, prefetch: u16) -> Result<Deliveries> {
        let queue = Queue::Subscriber(Self::SUBSCRIBER.to_owned());
        let topic = self.app.settings().events.publish.orders();
        Ok(self.app.broker().await?.subscribe(queue, &[topic], prefetch).await?)
    }

    /// Bytes of Redis's memory for `sales`, and the orders that it has deducted for; nothing when there is
    /// no Redis.
    pub async fn redis_usage(&self, sales: &[SaleId]) -> Result<Option<(u64, u64)>> {
        let Location::Servers(servers) = &self.location else { return Ok(None) };
        let (mut bytes, mut orders) = (0, 0);
        for sale in sales {
            let used = servers.inventory.usage(sale).await?;
            bytes += used.0;
            orders += used.1;
        }
        Ok(Some((bytes, orders)))
    }

    /// Bytes on the ledger's disk for all decisions, and how many there are. Embedded, the queues
    /// are in the same file, and are counted with it.
    pub async fn ledger_bytes(&self) -> Result<(u64, u64)> {
        match &self.location {
            Location::Servers(servers) => Ok(servers.ledger.usage().await?),
            Location::Folder(_) => Ok(self.app.embedded().await?.ledger.usage().await?),
        }
    }

    /// Removes everything. Tries all of it, and tells of the first failure.
    pub async fn remove(self) -> Result<()> {
        match self.location {
            Location::Servers(servers) => {
                let redis = servers.inventory.remove().await;
                let roster = servers.ledger.roster().await;
                let shards = roster.map_or(1, |roster| roster.division.most);
                let queues = servers.broker.remove(&[Self::SUBSCRIBER], shards).await;
                let database = PostgresLedger::drop_database(&servers.database_url).await;
                redis?;
                queues?;
                Ok(database?)
            }
            Location::Folder(folder) => {
                drop(self.app);
                std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())
            }
        }
    }
}
