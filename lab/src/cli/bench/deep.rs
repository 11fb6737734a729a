//! A ledger that has many decisions already.

use std::path::PathBuf;

use anyhow::Context;
use secrecy::ExposeSecret;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::report::{PER_SECOND, Report};
use super::run::{Runner, WORKER};
use super::{Size, needs_servers};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;

/// The decisions of a ledger that is as good as empty.
const FEW: i64 = 10_000;
/// Decisions of a sale that fills the ledger.
const OF_SALE: i64 = 10_000;
/// Decisions filled in at once.
const PART: i64 = 500_000;

const SALES: &str = "
    insert into sales (sale_id, stock, sold, version)
    select 'deep-' || n, $3, $3, 1 from generate_series($1, $2) n";
const DECISIONS: &str = "
    insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold)
    select 'deep-' || n / $3, md5(n::text)::uuid::text, 'user-' || n, 1, 'c', 1, now(), 1, n % $3
    from generate_series($1, $2) n";

const SIZES: &str = "
    select pg_table_size('decisions')::float8 / count(*), pg_relation_size('decisions_pkey')::float8 / count(*),
           (select sum(n_dead_tup)::float8 from pg_stat_user_tables)
    from decisions";
const BYTES: &str = "bytes a decision";

pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
    decisions: i64,
) -> anyhow::Result<Report> {
    needs_servers(deployment, "--deep")?;
    let settings = deployment.app.settings();
    let deep = TempDeployment::create(settings, &format!("{}-deep", settings.namespace)).await?;
    let measured = both(deployment, &deep, config, size, decisions).await;
    let removed = deep.remove().await;
    let report = measured?;
    removed?;
    Ok(report)
}

async fn both(
    shallow: &TempDeployment,
    deep: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
    decisions: i64,
) -> anyhow::Result<Report> {
    let mut report = Report::of_path(shallow, size).await?;
    let (orders, per_message, rounds) = size;
    fill(shallow, FEW).await?;
    fill(deep, decisions).await?;
    let mut runners =
        [Runner::new(shallow, config.clone()).await?, Runner::new(deep, config).await?];
    let mut measured = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let load = Load::new(round, orders);
        for ((deployment, runner), rates) in
            [shallow, deep].into_iter().zip(&mut runners).zip(&mut measured)
        {
            load.open_sales(deployment).await?;
            let rate = runner.throughput(&load, per_message.into(), WORKER).await?.orders_per_s;
            rates.push(rate);
        }
    }
    for runner in runners {
        runner.end().await;
    }
    let [few, many] = measured;
    for (deployment, name) in [(shallow, "few"), (deep, "many")] {
        let Sizes { table, index, dead } = sizes(deployment).await?;
        report.figure(format!("{name} decisions: the table"), BYTES, &[table]);
        report.figure(format!("{name} decisions: their index"), BYTES, &[index]);
        report.figure(format!("{name} decisions: dead rows of all tables"), "rows", &[dead]);
    }
    report.figure(format!("a ledger of {FEW} decisions"), PER_SECOND, &few);
    report.figure(format!("a ledger of {decisions} decisions"), PER_SECOND, &many);
    report.ratio("many decisions / few", &many, &few);
    Ok(report)
}

/// What the ledger takes.
struct Sizes {
    /// Bytes a decision.
    table: f64,
    /// The same, of the index.
    index: f64,
    /// Rows that vacuum has not removed yet.
    dead: f64,
}

async fn sizes(deployment: &TempDeployment) -> anyhow::Result<Sizes> {
    let url = deployment.app.settings().database_url.expose_secret();
    let mut database = PgConnection::connect(url).await.context("the ledger")?;
    let (table, index, dead) = sqlx::query_as(SIZES).fetch_one(&mut database).await?;
    database.close().await?;
    Ok(Sizes { table, index, dead })
}

/// Puts sold-out sales with so many decisions in all into the ledger.
async fn fill(deployment: &TempDeployment, decisions: i64) -> anyhow::Result<()> {
    let url = deployment.app.settings().database_url.expose_secret();
    let mut database = PgConnection::connect(url).await.context("the ledger")?;
    let sales = decisions / OF_SALE + 1;
    let stock = i32::try_from(OF_SALE)?;
    sqlx::query(SALES).bind(0_i64).bind(sales).bind(stock).execute(&mut database).await?;
    let mut from = 0;
    while from < decisions {
        let to = (from + PART).min(decisions);
        eprintln!("filling: {to} of {decisions} decisions");
        let filling = sqlx::query(DECISIONS).bind(from).bind(to - 1).bind(OF_SALE);
        filling.execute(&mut database).await?;
        from = to;
    }
    sqlx::query("vacuum analyze").execute(&mut database).await?;
    database.close().await?;
    Ok(())
}
