//! The ledger on PostgreSQL.
//!
//! Every call is one statement, so that it needs no transaction to be begun, and giving up on it
//! half way leaves no connection in the middle of one.

mod rows;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres};
use tokio::time::error::Elapsed;

use super::{Change, Changed, Ledger, LedgerError, Opening, Proposed, Recording};
use crate::config::LedgerSettings;
use crate::decision::Decision;
use crate::order::{OrderKey, SaleId};
use crate::sale::{Sale, SaleState};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

const RECORD: &str = "select * from record_decisions($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// [`Ledger`] on PostgreSQL 14 or newer.
#[derive(Debug)]
pub struct PostgresLedger {
    pool: PgPool,
    timeout: Duration,
}

impl PostgresLedger {
    /// A ledger at `url`. Connects when it is first used.
    pub fn new(url: &SecretString, settings: &LedgerSettings) -> Result<Self, LedgerError> {
        let timeout = settings.timeout();
        // The server gives up a little before the client does, so that a statement that waits for
        // a lock is not left behind.
        let server_ms = (timeout.as_millis() * 9 / 10).max(1).to_string();
        let options = url
            .expose_secret()
            .parse::<PgConnectOptions>()
            .map_err(permanent)?
            .application_name("floodgate")
            .options([
                ("statement_timeout", server_ms.as_str()),
                ("lock_timeout", server_ms.as_str()),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(timeout)
            .connect_lazy_with(options);
        Ok(Self { pool, timeout })
    }

    /// Brings the database at `url` to this version's schema. Running it again changes nothing.
    pub async fn migrate(url: &SecretString) -> Result<(), LedgerError> {
        let options = url.expose_secret().parse::<PgConnectOptions>().map_err(permanent)?;
        let mut connection = PgConnection::connect_with(&options).await.map_err(sorted)?;
        MIGRATIONS.run(&mut connection).await.map_err(permanent)?;
        connection.close().await.map_err(sorted)
    }

    /// Makes database `name` on the server of `url`, and returns its URL.
    pub async fn create_database(
        url: &SecretString,
        name: &str,
    ) -> Result<SecretString, LedgerError> {
        let options = url.expose_secret().parse::<PgConnectOptions>().map_err(permanent)?;
        execute(&options, format!("create database \"{name}\"")).await?;
        Ok(options.database(name).to_url_lossy().to_string().into())
    }

    /// Drops database `name` on the server of `url`, whoever is connected to it.
    pub async fn drop_database(url: &SecretString, name: &str) -> Result<(), LedgerError> {
        let options = url.expose_secret().parse::<PgConnectOptions>().map_err(permanent)?;
        execute(&options, format!("drop database if exists \"{name}\" with (force)")).await
    }

    /// Bytes that the decisions take, with their index, and how many there are.
    pub async fn usage(&self) -> Result<(u64, u64), LedgerError> {
        let mut connection = self.connection().await?;
        let query =
            sqlx::query_as("select pg_total_relation_size('decisions'), count(*) from decisions");
        let query = query.fetch_one(&mut *connection);
        let (bytes, count): (i64, i64) =
            settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        Ok((bytes.cast_unsigned(), count.cast_unsigned()))
    }

    /// Fails unless the database can be reached and has this version's schema.
    pub async fn check(&self) -> Result<(), LedgerError> {
        let mut connection = self.connection().await?;
        let query = sqlx::query_scalar("select to_regproc('record_decisions') is not null");
        let query = query.fetch_one(&mut *connection);
        let migrated: bool = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        if migrated {
            Ok(())
        } else {
            Err(LedgerError::Permanent(
                "the database has no ledger yet; run: floodgate migrate".into(),
            ))
        }
    }

    async fn connection(&self) -> Result<PoolConnection<Postgres>, LedgerError> {
        self.pool.acquire().await.map_err(sorted)
    }
}

/// Runs one statement, with a name in it that can't be bound, on a connection of its own.
async fn execute(options: &PgConnectOptions, statement: String) -> Result<(), LedgerError> {
    let mut connection = PgConnection::connect_with(options).await.map_err(sorted)?;
    let run = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await;
    run.map_err(sorted)?;
    connection.close().await.map_err(sorted)
}

/// Takes the result of a statement and its connection. A connection whose answer didn't come in
/// time is closed: what it says later is of no use.
fn settle<T>(
    result: Result<Result<T, sqlx::Error>, Elapsed>,
    connection: PoolConnection<Postgres>,
) -> Result<T, LedgerError> {
    match result {
        Ok(result) => result.map_err(sorted),
        Err(elapsed) => {
            drop(connection.detach());
            Err(LedgerError::Transient(Box::new(elapsed)))
        }
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn open(&self, sales: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        let mut connection = self.connection().await?;
        let ids: Vec<&str> = sales.iter().map(|sale| sale.id.as_str()).collect();
        let stocks: Vec<i64> = sales.iter().map(|sale| sale.stock.into()).collect();
        let limits: Vec<Option<i64>> =
            sales.iter().map(|sale| sale.per_user_limit.map(i64::from)).collect();
        let opens: Vec<_> = sales.iter().map(|sale| sale.opens_at).collect();
        let closes: Vec<_> = sales.iter().map(|sale| sale.closes_at).collect();
        let verification: Vec<bool> = sales.iter().map(|sale| sale.verification).collect();
        let query = sqlx::query_scalar(
            "insert into sales (sale_id, stock, per_user_limit, opens_at, closes_at, verification)
             select * from unnest($1, $2, $3, $4, $5, $6)
                 as i (sale_id, stock, lim, opens, closes, verification)
             order by sale_id
             on conflict (sale_id) do nothing returning sale_id",
        )
        .bind(&ids)
        .bind(stocks)
        .bind(limits)
        .bind(opens)
        .bind(closes)
        .bind(verification)
        .fetch_all(&mut *connection);
        let opened: Vec<String> =
            settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        let mut opened: HashSet<String> = opened.into_iter().collect();
        let ids: Vec<SaleId> = sales.iter().map(|sale| sale.id.clone()).collect();
        let states = self.sales(Some(&ids)).await?;
        let states: HashMap<&str, &SaleState> =
            states.iter().map(|state| (state.sale.id.as_str(), state)).collect();
        sales
            .iter()
            .map(|sale| match states.get(sale.id.as_str()) {
                // Only its first mention opened it, should the same sale be asked for twice.
                _ if opened.remove(sale.id.as_str()) => Ok(Opening::Opened),
                Some(state) if state.sale == *sale => Ok(Opening::Unchanged),
                Some(state) => Ok(Opening::Differs((*state).clone())),
                None => Err(LedgerError::Permanent(format!("sale {} is gone", sale.id).into())),
            })
            .collect()
    }

    async fn change(&self, sale: &SaleId, change: &Change) -> Result<Changed, LedgerError> {
        let restock = match change {
            Change::Restock { adjustment_id, units, at } => {
                let mut connection = self.connection().await?;
                let query = sqlx::query("select * from restock_sale($1, $2, $3, $4)")
                    .bind(adjustment_id.as_str())
                    .bind(sale.as_str())
                    .bind(i64::from(units.get()))
                    .bind(at)
                    .fetch_optional(&mut *connection);
                let row = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
                let Some(row) = row else { return Ok(Changed::UnknownSale) };
                let restock = rows::restock(&row, adjustment_id).map_err(permanent)?;
                if restock.sale_id != *sale || restock.units != *units {
                    return Ok(Changed::Conflict(restock));
                }
                Some(restock)
            }
            Change::Close { at } => {
                let mut connection = self.connection().await?;
                let query = sqlx::query(
                    "update sales set closes_at = greatest($2, opens_at), version = version + 1
                     where sale_id = $1 and (closes_at is null or closes_at > greatest($2, opens_at))",
                )
                .bind(sale.as_str())
                .bind(at)
                .execute(&mut *connection);
                settle(tokio::time::timeout(self.timeout, query).await, connection)?;
                None
            }
            Change::Verify { on } => {
                let mut connection = self.connection().await?;
                let query = sqlx::query(
                    "update sales set verification = $2, version = version + 1
                     where sale_id = $1 and verification <> $2",
                )
                .bind(sale.as_str())
                .bind(on)
                .execute(&mut *connection);
                settle(tokio::time::timeout(self.timeout, query).await, connection)?;
                None
            }
        };
        let states = self.sales(Some(std::slice::from_ref(sale))).await?;
        Ok(match states.into_iter().next() {
            Some(state) => Changed::Done { state, restock },
            None => Changed::UnknownSale,
        })
    }

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        let mut connection = self.connection().await?;
        let ids: Option<Vec<&str>> = ids.map(|ids| ids.iter().map(SaleId::as_str).collect());
        let query = sqlx::query(
            "select sale_id, stock, sold, per_user_limit, opens_at, closes_at, version,
                    sold_out_at, verification
             from sales where $1::text[] is null or sale_id = any ($1) order by sale_id",
        )
        .bind(ids)
        .fetch_all(&mut *connection);
        let rows = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        rows.iter().map(rows::sale_state).collect::<Result<_, _>>().map_err(permanent)
    }

    async fn record(&self, proposals: &[Proposed<'_>]) -> Result<Recording, LedgerError> {
        let Some(first) = proposals.first() else {
            return Ok(Recording { answers: Vec::new(), sold_out: Vec::new() });
        };
        let mut columns = rows::Columns::default();
        for proposal in proposals {
            columns.push(proposal);
        }
        let mut connection = self.connection().await?;
        let query = sqlx::query(RECORD)
            .bind(columns.order_ids)
            .bind(columns.sale_ids)
            .bind(columns.user_ids)
            .bind(columns.quantities)
            .bind(columns.submitted_at)
            .bind(columns.outcomes)
            .bind(columns.reasons)
            .bind(first.decision.decided_at)
            .bind(columns.expected)
            .fetch_all(&mut *connection);
        let rows = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        rows::recording(&rows, proposals).map_err(permanent)
    }

    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError> {
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        let query = sqlx::query(
            "select order_id as r_order_id, sale_id as r_sale_id, user_id as r_user_id,
                    quantity as r_quantity, outcome as r_outcome, reason as r_reason,
                    decided_at as r_decided_at
             from decisions where order_id = any ($1)",
        )
        .bind(orders.iter().map(|order| order.order_id.as_str()).collect::<Vec<_>>())
        .fetch_all(&mut *connection);
        let rows = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        rows::decisions(&rows, orders).map_err(permanent)
    }
}

fn permanent(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LedgerError {
    LedgerError::Permanent(error.into())
}

/// Tells errors that pass from those that stay. SQLSTATE classes, from PostgreSQL's appendix A:
/// 22 data exception, 23 integrity constraint violation, P0 raised by a function.
fn sorted(error: sqlx::Error) -> LedgerError {
    let stays = match &error {
        sqlx::Error::Database(database) => database
            .code()
            .is_some_and(|code| ["22", "23", "P0"].iter().any(|class| code.starts_with(class))),
        sqlx::Error::Configuration(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    };
    if stays { permanent(error) } else { LedgerError::Transient(Box::new(error)) }
}
