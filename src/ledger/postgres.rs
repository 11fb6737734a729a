//! The ledger on PostgreSQL.
//!
//! Every call is one statement, so that it needs no transaction to be begun, and giving up on it
//! half way leaves no connection in the middle of one.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres, Row};
use tokio::time::error::Elapsed;

use super::{Ledger, LedgerError, Opening, Proposed, Recorded};
use crate::config::LedgerSettings;
use crate::decision::{Decision, Outcome, Reason};
use crate::order::{Order, OrderId, Quantity, SaleId, UserId};
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
        let query = sqlx::query_scalar(
            "insert into sales (sale_id, stock, per_user_limit, opens_at, closes_at)
             select * from unnest($1, $2, $3, $4, $5) as i (sale_id, stock, lim, opens, closes)
             order by sale_id
             on conflict (sale_id) do nothing returning sale_id",
        )
        .bind(&ids)
        .bind(stocks)
        .bind(limits)
        .bind(opens)
        .bind(closes)
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

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        let mut connection = self.connection().await?;
        let ids: Option<Vec<&str>> = ids.map(|ids| ids.iter().map(SaleId::as_str).collect());
        let query = sqlx::query(
            "select sale_id, stock, sold, per_user_limit, opens_at, closes_at from sales
             where $1::text[] is null or sale_id = any ($1) order by sale_id",
        )
        .bind(ids)
        .fetch_all(&mut *connection);
        let rows = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        rows.iter().map(sale_state).collect::<Result<_, _>>().map_err(permanent)
    }

    async fn record(&self, proposals: &[Proposed<'_>]) -> Result<Vec<Recorded>, LedgerError> {
        let Some(first) = proposals.first() else { return Ok(Vec::new()) };
        let mut columns = Columns::default();
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
        let mut answers = vec![Recorded::AsProposed; proposals.len()];
        for row in &rows {
            let place: i64 = row.try_get("r_place").map_err(permanent)?;
            let place = usize::try_from(place - 1).map_err(permanent)?;
            let proposal = proposals.get(place).ok_or_else(|| {
                permanent(format!("an answer for place {place} of {}", proposals.len()))
            })?;
            answers[place] = instead(row, &proposal.decision.order.id).map_err(permanent)?;
        }
        Ok(answers)
    }

    async fn decision(&self, id: &OrderId) -> Result<Option<Decision>, LedgerError> {
        let mut connection = self.connection().await?;
        let query = sqlx::query(
            "select sale_id as r_sale_id, user_id as r_user_id, quantity as r_quantity,
                    outcome as r_outcome, reason as r_reason, decided_at as r_decided_at
             from decisions where order_id = $1",
        )
        .bind(id.as_str())
        .fetch_optional(&mut *connection);
        let row = settle(tokio::time::timeout(self.timeout, query).await, connection)?;
        row.map(|row| decision(&row, id)).transpose().map_err(permanent)
    }
}

/// A batch, turned from rows into the arrays that `record_decisions` takes.
#[derive(Default)]
struct Columns<'a> {
    order_ids: Vec<&'a str>,
    sale_ids: Vec<&'a str>,
    user_ids: Vec<&'a str>,
    quantities: Vec<i32>,
    submitted_at: Vec<DateTime<Utc>>,
    outcomes: Vec<&'a str>,
    reasons: Vec<Option<&'a str>>,
    expected: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, proposal: &Proposed<'a>) {
        let Decision { order, outcome, .. } = proposal.decision;
        self.order_ids.push(order.id.as_str());
        self.sale_ids.push(order.sale_id.as_str());
        self.user_ids.push(order.user_id.as_str());
        self.quantities.push(order.quantity.get().cast_signed());
        self.submitted_at.push(proposal.submitted_at);
        self.outcomes.push(outcome.name());
        self.reasons.push(outcome.reason().map(Reason::name));
        if proposal.repeat {
            self.expected.push(order.id.as_str());
        }
    }
}

/// A value in the database that this version can't have written.
fn unexpected(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the ledger holds {what} that is not valid").into())
}

fn sale_state(row: &PgRow) -> Result<SaleState, sqlx::Error> {
    let units = |units: i64| u32::try_from(units).map_err(|_| unexpected("a number of units"));
    let limit: Option<i64> = row.try_get("per_user_limit")?;
    let id: String = row.try_get("sale_id")?;
    let sale = Sale {
        id: SaleId::parse(id).map_err(|_| unexpected("a sale id"))?,
        stock: units(row.try_get("stock")?)?,
        per_user_limit: limit.map(units).transpose()?,
        opens_at: row.try_get("opens_at")?,
        closes_at: row.try_get("closes_at")?,
    };
    Ok(SaleState { sale, sold: units(row.try_get("sold")?)? })
}

fn decision(row: &PgRow, id: &OrderId) -> Result<Decision, sqlx::Error> {
    let sale_id: String = row.try_get("r_sale_id")?;
    let user_id: String = row.try_get("r_user_id")?;
    let quantity: i32 = row.try_get("r_quantity")?;
    let outcome: &str = row.try_get("r_outcome")?;
    let reason: Option<&str> = row.try_get("r_reason")?;
    Ok(Decision {
        order: Order {
            id: id.clone(),
            sale_id: SaleId::parse(sale_id).map_err(|_| unexpected("a sale id"))?,
            user_id: UserId::parse(user_id).map_err(|_| unexpected("a user id"))?,
            quantity: Quantity::new(quantity.into()).ok_or_else(|| unexpected("a quantity"))?,
        },
        outcome: Outcome::from_names(outcome, reason).ok_or_else(|| unexpected("an outcome"))?,
        decided_at: row.try_get("r_decided_at")?,
    })
}

fn instead(row: &PgRow, id: &OrderId) -> Result<Recorded, sqlx::Error> {
    let remaining: Option<i64> = row.try_get("r_remaining")?;
    Ok(Recorded::Instead {
        decision: decision(row, id)?,
        known: row.try_get("r_known")?,
        remaining: u32::try_from(remaining.unwrap_or(0)).map_err(|_| unexpected("a stock"))?,
    })
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
