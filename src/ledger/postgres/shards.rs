//! The division of the intake and its workers on PostgreSQL.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection};

use super::PostgresLedger;
use crate::ledger::LedgerError;
use crate::ledger::row::row;
use crate::migrations;
use crate::shards::{Division, Roster, ShardMap, ShardMapError, WorkerId};

/// A worker that has not shown itself for so long does not run. It does every second.
const ALIVE: &str = "interval '5 seconds'";
/// It is forgotten after so long.
const KEPT: &str = "interval '1 minute'";

row! {
    /// The row of `division`.
    struct DivisionRow {
        shards: i16,
        most: i16,
    }
}

impl From<DivisionRow> for Division {
    fn from(DivisionRow { shards, most }: DivisionRow) -> Self {
        // The table allows 1 to 64.
        Self { shards: shards.unsigned_abs(), most: most.unsigned_abs() }
    }
}

#[async_trait]
impl ShardMap for PostgresLedger {
    async fn roster(&self) -> Result<Roster, ShardMapError> {
        self.run(async |db| roster(db).await).await.map_err(failed)
    }

    async fn divide(&self, shards: u16) -> Result<(), ShardMapError> {
        let shards = i16::try_from(shards).unwrap_or(i16::MAX);
        let written = self.run(async |db| {
            let dividing =
                sqlx::query("update division set shards = $1, most = greatest(most, $1)");
            dividing.bind(shards).execute(db).await.map(drop)
        });
        written.await.map_err(failed)
    }

    async fn beat(&self, worker: WorkerId) -> Result<Roster, ShardMapError> {
        let beating = self.run(async |db| {
            sqlx::query(
                "insert into workers (worker_id, seen_at, knows) values ($1, clock_timestamp(), $2)
                 on conflict (worker_id) do update set seen_at = excluded.seen_at",
            )
            .bind(worker.to_string())
            .bind(migrations::postgres_version())
            .execute(&mut *db)
            .await?;
            let forget = format!("delete from workers where seen_at < clock_timestamp() - {KEPT}");
            sqlx::query(AssertSqlSafe(forget)).execute(&mut *db).await?;
            roster(db).await
        });
        beating.await.map_err(failed)
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), ShardMapError> {
        let leaving = self.run(async |db| {
            let deleting = sqlx::query("delete from workers where worker_id = $1");
            deleting.bind(worker.to_string()).execute(db).await.map(drop)
        });
        leaving.await.map_err(failed)
    }
}

fn failed(error: LedgerError) -> ShardMapError {
    match error {
        LedgerError::Transient(error) => ShardMapError::Unavailable(error),
        LedgerError::Permanent(error) => ShardMapError::Refused(error),
    }
}

async fn roster(db: &mut PgConnection) -> Result<Roster, sqlx::Error> {
    let alive = format!(
        "select worker_id from workers
         where seen_at > clock_timestamp() - {ALIVE} order by worker_id"
    );
    let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(alive)).fetch_all(&mut *db).await?;
    let workers: Result<_, _> = ids.iter().map(|id| id.parse().map(WorkerId)).collect();
    let workers = workers.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    let division = sqlx::query_as::<_, DivisionRow>("select shards, most from division");
    Ok(Roster { division: division.fetch_one(db).await?.into(), workers })
}
