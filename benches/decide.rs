//! What deciding costs PostgreSQL's ledger, in batches of 256.
//!
//! - Refusals of a sale that is sold out, against a bare multi-row insert of the same rows into a table
//!   of the same form. They take turns on the same server; the ratio is of the medians.
//! - Decisions of one sale in a fresh table, before `analyze` has ever run: the first, those after
//!   500,000 others, and those after `analyze`. All orders are new in one half of the batches, and in the
//!   other half all are repeats, which are looked up.
//!
//! ```text
//! scripts/services up && eval "$(scripts/services env)" && cargo bench --bench decide
//! ```

use std::time::{Duration, Instant};

use floodgate::app::temp_deployment::TempDeployment;
use floodgate::config::Settings;
use floodgate::domain::decision::Hint;
use floodgate::domain::order::{Candidate, Eligibility, Order, OrderId, Quantity, SaleId, UserId};
use floodgate::domain::rules::Answer;
use floodgate::domain::sale::{MAX_STOCK, Sale};
use floodgate::ledger::{Ledger, Proposed};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};

const BATCH: usize = 256;
const ROUNDS: usize = 400;
/// Rounds that are not counted: files grow for the first time.
const WARM_UP: usize = 40;
/// Decisions in the table when it is called full.
const FULL: usize = 500_000;
/// Batches of each kind that are timed before and after.
const TIMED: usize = 60;
const MAX_AGE: Duration = Duration::from_hours(1);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::load(None)?;
    let name = format!("bench-decide-{}", std::process::id());
    let deployment = TempDeployment::create(&settings, &name).await?;
    let measured = async {
        refusals(&deployment).await?;
        growth(&deployment).await
    };
    let measured = measured.await;
    deployment.remove().await?;
    measured
}

async fn open(ledger: &dyn Ledger, id: &str, stock: u32) -> anyhow::Result<SaleId> {
    let id = SaleId::parse(id)?;
    let sale = Sale {
        id: id.clone(),
        stock,
        per_user_limit: None,
        opens_at: None,
        closes_at: None,
        verification: false,
    };
    ledger.open(&[sale]).await?;
    Ok(id)
}

async fn connect(deployment: &TempDeployment) -> anyhow::Result<PgConnection> {
    let url = deployment.app.settings().database_url.expose_secret();
    Ok(PgConnection::connect(url).await?)
}

async fn refusals(deployment: &TempDeployment) -> anyhow::Result<()> {
    let ledger = deployment.app.ledger().await?;
    let sale = open(ledger.as_ref(), "sold-out", 0).await?;
    let mut bare = connect(deployment).await?;
    sqlx::raw_sql("create table bare (like decisions including all)").execute(&mut bare).await?;
    let (mut decided, mut inserted) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let orders = batch(&sale, round)?;
        let begun = Instant::now();
        decide(ledger.as_ref(), &orders, Hint::Refused).await?;
        let middle = Instant::now();
        insert(&mut bare, &orders).await?;
        if round >= WARM_UP {
            decided.push(middle - begun);
            inserted.push(middle.elapsed());
        }
    }
    bare.close().await?;
    let (decided, inserted) = (median(decided), median(inserted));
    let ratio = decided.as_secs_f64() / inserted.as_secs_f64();
    let (decided, inserted) = (decided.as_micros(), inserted.as_micros());
    println!(
        "{BATCH} refusals: decided in {decided} µs, bare insert {inserted} µs, ratio {ratio:.2}"
    );
    Ok(())
}

async fn growth(deployment: &TempDeployment) -> anyhow::Result<()> {
    let ledger = deployment.app.ledger().await?;
    let mut connection = connect(deployment).await?;
    sqlx::raw_sql("truncate decisions; alter table decisions set (autovacuum_enabled = off)")
        .execute(&mut connection)
        .await?;
    let sale = open(ledger.as_ref(), "hot", MAX_STOCK).await?;
    let mut round = 0;
    let first = timed(ledger.as_ref(), &sale, &mut round).await?;
    while round * BATCH < FULL {
        decide(ledger.as_ref(), &batch(&sale, round)?, Hint::Granted).await?;
        round += 1;
    }
    let full = timed(ledger.as_ref(), &sale, &mut round).await?;
    sqlx::raw_sql("analyze decisions").execute(&mut connection).await?;
    let analyzed = timed(ledger.as_ref(), &sale, &mut round).await?;
    connection.close().await?;
    for (when, (new, repeats)) in
        [("first", first), ("after 500,000, never analyzed", full), ("after analyze", analyzed)]
    {
        let (new, repeats) = (new.as_micros(), repeats.as_micros());
        println!("{BATCH} orders of one sale, {when}: new {new} µs, repeats {repeats} µs");
    }
    Ok(())
}

/// Times batches of new orders and of repeats, in turns.
async fn timed(
    ledger: &dyn Ledger,
    sale: &SaleId,
    round: &mut usize,
) -> anyhow::Result<(Duration, Duration)> {
    let (mut new, mut repeats) = (Vec::new(), Vec::new());
    for _ in 0..TIMED {
        let orders = batch(sale, *round)?;
        *round += 1;
        for times in [&mut new, &mut repeats] {
            let begun = Instant::now();
            decide(ledger, &orders, Hint::Granted).await?;
            times.push(begun.elapsed());
        }
    }
    Ok((median(new), median(repeats)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Order ids as random as a client's: their leading part is scattered.
fn batch(sale: &SaleId, round: usize) -> anyhow::Result<Vec<Candidate>> {
    (0..BATCH)
        .map(|n| {
            let number = (round * BATCH + n) as u64;
            let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let order = Order {
                id: OrderId::parse(format!("{scattered:016x}-0000-7000-{number:012x}"))?,
                sale_id: sale.clone(),
                user_id: UserId::parse(format!("user-{number:08}"))?,
                quantity: Quantity::ONE,
            };
            Ok(Candidate { order, submitted_at: None, eligibility: Eligibility::Unchecked })
        })
        .collect()
}

async fn decide(ledger: &dyn Ledger, orders: &[Candidate], hint: Hint) -> anyhow::Result<()> {
    let orders: Vec<_> = orders
        .iter()
        .map(|candidate| Proposed {
            candidate,
            hint: Some(hint),
            redelivered: false,
            watermark: None,
        })
        .collect();
    let decided = ledger.decide(&orders, MAX_AGE).await?;
    let expected = hint == Hint::Granted;
    anyhow::ensure!(decided.answers.iter().all(|answer| answer.is_granted() == expected));
    anyhow::ensure!(decided.answers.iter().all(|a| matches!(a, Answer::Decided { .. })));
    Ok(())
}

async fn insert(connection: &mut PgConnection, orders: &[Candidate]) -> anyhow::Result<()> {
    let column = |of: fn(&Order) -> &str| {
        orders.iter().map(|candidate| of(&candidate.order)).collect::<Vec<&str>>()
    };
    let numbers = |number: i32| vec![number; orders.len()];
    let times = vec![chrono::Utc::now(); orders.len()];
    sqlx::query(
        "insert into bare (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at,
                version, sold)
         select sale_id, order_id, user_id, quantity, outcome::\"char\", waited_ms, decided_at,
                version, sold
         from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::integer[],
                $7::timestamptz[], $8::integer[], $9::integer[])
             as i (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at, version, sold)",
    )
    .bind(column(|order| order.sale_id.as_str()))
    .bind(column(|order| order.id.as_str()))
    .bind(column(|order| order.user_id.as_str()))
    .bind(numbers(1))
    .bind(vec!["s"; orders.len()])
    .bind(numbers(0))
    .bind(&times)
    .bind(numbers(1))
    .bind(numbers(0))
    .execute(connection)
    .await?;
    Ok(())
}
