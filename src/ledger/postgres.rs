//! The ledger on PostgreSQL.
//!
//! Every call is one transaction of the same form; see [`transaction`]. Behind PgBouncer it needs
//! version 1.21 or later in transaction mode with `max_prepared_statements` set; migrations connect
//! directly.

mod archive;
mod check;
mod distributed;
mod erasure;
mod one_sale;
mod operator_log;
mod rows;
mod server;
mod shards;
mod transaction;
mod webhooks;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use super::changes::sorted;
use super::{
    Balance, Books, Change, Changed, Decided, Ledger, LedgerError, LedgerSettings, Opening, Outbox,
    Proposed,
};
use super::{books, recipe, statements};
use crate::domain::decision::Decision;
use crate::domain::order::{OrderId, OrderKey, SaleId, UserId};
use crate::domain::sale::{Announcement, Sale, SaleState};
use crate::hosts;
use crate::metrics::{Dependency, Metrics};
use crate::migrations;
use crate::outage::Outage;
use recipe::Transaction as _;
use server::Server;
use transaction::{Begin, Transaction};

/// What is left out of the logs, in the language of their filter: the library logs each connection of its pool
/// that was lost.
pub const UNLOGGED: &str = "sqlx_core::pool=off";

/// [`Ledger`] on PostgreSQL 14 or newer.
#[derive(Debug)]
pub struct PostgresLedger {
    pool: PgPool,
    server: Arc<Server>,
    timeout: Duration,
    begin: Begin,
    /// Transactions are about one sale each.
    distributed: bool,
    outage: Outage,
    /// The latest batch had orders that were decided before, so the next one probably has some too.
    has_repeats: AtomicBool,
}

impl PostgresLedger {
    /// A ledger at `url`. Connects when it is first used.
    pub fn new(
        url: &SecretString,
        settings: &LedgerSettings,
        metrics: &Metrics,
    ) -> Result<Self, LedgerError> {
        let timeout = settings.timeout;
        let server = Server::at(url, |options| {
            options
                .application_name("floodgate")
                // The server has its own log of slow statements, and an audit has some.
                .disable_statement_logging()
                // A setting at start-up, which a pooler would refuse; floodgate reads no floats.
                .extra_float_digits(None)
        });
        let server = Arc::new(server.map_err(permanent)?);
        let mut pool =
            PgPoolOptions::new().max_connections(settings.max_connections).acquire_timeout(timeout);
        if server.has_choice() {
            let server = Arc::clone(&server);
            pool = pool.before_acquire(move |_, connection| {
                let is_current = server.is_of(connection.age);
                Box::pin(async move { Ok(is_current) })
            });
        }
        let pool = pool.connect_lazy_with(server.first());
        // The server gives up a little before the client does, so that the client learns why.
        let begin = Begin::new(timeout * 9 / 10);
        Ok(Self {
            pool,
            server,
            timeout,
            begin,
            distributed: settings.distributed,
            outage: Outage::new(metrics.dependencies.of(Dependency::PostgreSql)),
            has_repeats: AtomicBool::new(false),
        })
    }

    /// Brings the database at `url` to this version's schema. Running it again changes nothing.
    pub async fn migrate(url: &SecretString) -> Result<(), LedgerError> {
        let mut connection = connect(url, |options| options).await?;
        migrations::postgres().run(&mut connection).await.map_err(|error| match error {
            MigrateError::VersionMismatch(_) => permanent(check::OTHER_VERSION),
            other => permanent(other),
        })?;
        connection.close().await.map_err(classify)
    }

    /// Distributes the tables of the database at `url` by sale, which needs the extension Citus. Running it again
    /// changes nothing.
    pub async fn distribute(url: &SecretString) -> Result<(), LedgerError> {
        distributed::distribute(url).await
    }

    /// Makes database `name` on the server of `url`.
    pub async fn create_database(url: &SecretString, name: &str) -> Result<(), LedgerError> {
        execute(url, format!("create database {}", quoted(name))).await
    }

    /// The URL of database `name` on the server of `url`.
    pub fn url_of(url: &SecretString, name: &str) -> Result<SecretString, LedgerError> {
        // The library's own way to write a URL loses the paths of certificates.
        let url = hosts::edited(url.expose_secret(), |url| url.set_path(name));
        Ok(url.map_err(permanent)?.into())
    }

    /// Drops the database at `url`, with all connections to it.
    pub async fn drop_database(url: &SecretString) -> Result<(), LedgerError> {
        let options = Server::at(url, |options| options).map_err(permanent)?.first();
        let name = options.get_database().unwrap_or_default();
        execute(url, format!("drop database if exists {} with (force)", quoted(name))).await
    }

    /// Bytes that the decisions take, with their index, and how many there are.
    pub async fn usage(&self) -> Result<(u64, u64), LedgerError> {
        let (bytes, count): (i64, i64) = self
            .run(async |db| {
                sqlx::query_as(
                    "select pg_total_relation_size('decisions'), count(*) from decisions",
                )
                .fetch_one(db)
                .await
            })
            .await?;
        Ok((bytes.cast_unsigned(), count.cast_unsigned()))
    }

    /// Does `work` in a transaction.
    async fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, LedgerError> {
        self.within(async {
            let mut transaction = Transaction::begin(&self.pool, &self.begin).await?;
            let result = work(transaction.connection()).await?;
            transaction.commit().await?;
            Ok(result)
        })
        .await
    }

    /// Waits for `work`, but no longer than the time limit. Work that is given up closes its
    /// connection.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, LedgerError> {
        let begun = Instant::now();
        let work = async {
            self.server.settle(&self.pool, self.timeout / 5).await?;
            work.await
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => {
                if result.as_ref().is_err_and(is_outage) {
                    self.server.failed(begun);
                }
                self.outage.noted(result, is_outage).map_err(classify)
            }
            Err(elapsed) => {
                self.server.failed(begun);
                self.outage.failed(&elapsed);
                Err(LedgerError::Transient(Box::new(elapsed)))
            }
        }
    }
}

/// A connection to the server at `url`, made as `how` has it.
async fn connect(
    url: &SecretString,
    how: impl Fn(PgConnectOptions) -> PgConnectOptions,
) -> Result<PgConnection, LedgerError> {
    let server = Server::at(url, how).map_err(permanent)?;
    let (connection, _) = Box::pin(server.connect()).await.map_err(classify)?;
    Ok(connection)
}

/// Runs a statement about databases, connected to the database that every server has.
async fn execute(url: &SecretString, statement: String) -> Result<(), LedgerError> {
    let mut connection = connect(url, |options| options.database("postgres")).await?;
    connection.execute(AssertSqlSafe(statement)).await.map_err(classify)?;
    connection.close().await.map_err(classify)
}

/// A name as SQL has it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        if self.distributed {
            return self.open_each(sales).await;
        }
        let (new, states) = self
            .run(async |db| {
                let new = statements::insert_sales(db, sales).await?;
                let ids: Vec<&SaleId> = sales.iter().map(|sale| &sale.id).collect();
                Ok((new, rows::sales(db, Some(&ids)).await?.1))
            })
            .await?;
        Opening::all(sales, new, &states)
    }

    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError> {
        if self.distributed {
            return self.change_one(sale, change).await;
        }
        self.run(async |db| {
            let Some(mut state) = rows::lock_sales(db, &[sale]).await?.1.remove(sale) else {
                return Ok(Changed::UnknownSale);
            };
            let first = statements::restock(db, sale, change.adjustment_id()).await?;
            let changed = change.apply(&mut state, first);
            if changed.is_new() {
                statements::update_sale(db, &state).await?;
                statements::announce(db, &changed.owed()).await?;
            }
            Ok(changed)
        })
        .await
    }

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        if self.distributed {
            return Ok(sorted(self.sales_each(ids).await?));
        }
        let ids: Option<Vec<&SaleId>> = ids.map(|ids| ids.iter().collect());
        Ok(sorted(self.run(async |db| rows::sales(db, ids.as_deref()).await).await?.1))
    }

    async fn decide(
        &self,
        orders: &[Proposed<'_>],
        max_age: Duration,
    ) -> Result<Decided, LedgerError> {
        if orders.is_empty() {
            return Ok(Decided::default());
        }
        if self.distributed {
            return self.decide_each(orders, max_age).await;
        }
        let begin = || Transaction::begin(&self.pool, &self.begin);
        self.within(recipe::decide(begin, orders, max_age, &self.has_repeats)).await
    }

    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError> {
        let found = if self.distributed {
            self.decisions_each(orders).await?
        } else {
            let keys: Vec<_> = orders.iter().map(|key| (&key.sale_id, &key.order_id)).collect();
            self.run(async |db| statements::decisions(db, &keys).await).await?
        };
        Ok(orders.iter().map(|key| found.get(key).cloned()).collect())
    }
}

#[async_trait]
impl Outbox for PostgresLedger {
    async fn unpublished(
        &self,
        sales: Option<&[SaleId]>,
    ) -> Result<Vec<Announcement>, LedgerError> {
        if self.distributed {
            return self.unpublished_each(sales).await;
        }
        self.run(async |db| statements::unpublished(db, sales).await).await
    }

    async fn published(&self, announcements: &[Announcement]) -> Result<(), LedgerError> {
        if self.distributed {
            return self.published_each(announcements).await;
        }
        self.run(async |db| statements::published(db, announcements).await).await
    }
}

#[async_trait]
impl Books for PostgresLedger {
    async fn balance(&self, sale: Option<&SaleId>) -> Result<Balance, LedgerError> {
        let ms = |time: &str| format!("cast(extract(epoch from {time}) * 1000 as bigint)");
        if self.distributed {
            return self.balance_each(sale, ms).await;
        }
        self.auditing(async |db| books::balance(db, sale, ms).await).await
    }

    async fn decided(
        &self,
        sale: &SaleId,
        after: Option<&OrderId>,
        limit: u32,
    ) -> Result<Vec<Decision>, LedgerError> {
        self.run(async |db| books::decided(db, sale, after, limit).await).await
    }

    async fn units(
        &self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, LedgerError> {
        if self.distributed {
            return self.units_each(buyers).await;
        }
        self.run(async |db| statements::units(db, buyers).await).await
    }
}

fn permanent(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LedgerError {
    LedgerError::Permanent(error.into())
}

fn sqlstate(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code)
}

/// Whether an error means that the server is unavailable: it can't be reached, or refuses every call (classes
/// 08, 53 and 57P of PostgreSQL's error codes) or every write, as a standby does (25006).
fn is_outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(_) => sqlstate(error).is_some_and(|code| {
            ["08", "53", "57P", "25006"].iter().any(|class| code.starts_with(class))
        }),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut => true,
        _ => false,
    }
}

/// Tells errors that pass from those that stay. SQLSTATE classes, from PostgreSQL's appendix A:
/// 0A feature not supported, 22 data exception, 23 integrity constraint violation.
fn classify(error: sqlx::Error) -> LedgerError {
    let stays = match &error {
        sqlx::Error::Database(_) => sqlstate(&error)
            .is_some_and(|code| ["0A", "22", "23"].iter().any(|class| code.starts_with(class))),
        sqlx::Error::Configuration(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    };
    if stays { permanent(error) } else { LedgerError::Transient(Box::new(error)) }
}
