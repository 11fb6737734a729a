//! What recording costs: a batch of 256 sold-out decisions through the ledger, against a bare
//! multi-row insert of the same rows into a table of the same form. They take turns on the same
//! server; the ratio is of the medians.
//!
//! ```text
//! scripts/services up && eval "$(scripts/services env)" && cargo bench --bench record
//! ```

use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};
use floodgate::app::scratch::Scratch;
use floodgate::config::Settings;
use floodgate::decision::{Decision, Outcome};
use floodgate::ledger::{Ledger, Proposed, Recorded};
use floodgate::order::{Order, OrderId, Quantity, SaleId, UserId};
use floodgate::sale::Sale;
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};

const BATCH: usize = 256;
const ROUNDS: usize = 400;
/// Rounds that are not counted: plans are made, and files grow for the first time.
const WARM_UP: usize = 40;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::load(None)?;
    let scratch =
        Scratch::create(&settings, &format!("bench-record-{}", std::process::id())).await?;
    let measured = measure(&scratch).await;
    scratch.remove().await?;
    let (ledger, bare) = measured?;
    let ratio = ledger.as_secs_f64() / bare.as_secs_f64();
    let (ledger, bare) = (ledger.as_micros(), bare.as_micros());
    println!(
        "{BATCH} sold-out decisions: recorded in {ledger} µs, bare insert {bare} µs, ratio {ratio:.2}"
    );
    Ok(())
}

async fn measure(scratch: &Scratch) -> anyhow::Result<(Duration, Duration)> {
    let ledger = scratch.app.ledger().await?;
    let id = SaleId::parse("s")?;
    let sale = Sale {
        id,
        stock: 0,
        per_user_limit: None,
        opens_at: None,
        closes_at: None,
        verification: false,
    };
    ledger.open(&[sale]).await?;
    let url = scratch.app.settings().database_url.expose_secret();
    let mut bare = PgConnection::connect(url).await?;
    sqlx::raw_sql("create table bare (like decisions including all)").execute(&mut bare).await?;
    let (mut recorded, mut inserted) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let decisions = batch(round)?;
        let begun = Instant::now();
        record(ledger.as_ref(), &decisions).await?;
        let middle = Instant::now();
        insert(&mut bare, &decisions).await?;
        if round >= WARM_UP {
            recorded.push(middle - begun);
            inserted.push(middle.elapsed());
        }
    }
    bare.close().await?;
    Ok((median(recorded), median(inserted)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Order ids as random as a client's: their leading part is scattered.
fn batch(round: usize) -> anyhow::Result<Vec<Decision>> {
    (0..BATCH)
        .map(|n| {
            let number = (round * BATCH + n) as u64;
            let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let order = Order {
                id: OrderId::parse(format!("{scattered:016x}-0000-7000-{number:012x}"))?,
                sale_id: SaleId::parse("s")?,
                user_id: UserId::parse(format!("user-{number:08}"))?,
                quantity: Quantity::new(1).ok_or_else(|| anyhow::anyhow!("a quantity"))?,
            };
            let decided_at = Utc::now().trunc_subsecs(3);
            Ok(Decision { order, outcome: Outcome::SoldOut, decided_at })
        })
        .collect()
}

async fn record(ledger: &dyn Ledger, decisions: &[Decision]) -> anyhow::Result<()> {
    let submitted_at = decisions[0].decided_at;
    let proposals: Vec<_> = decisions
        .iter()
        .map(|decision| Proposed { decision, submitted_at, repeat: false })
        .collect();
    let recording = ledger.record(&proposals).await?;
    anyhow::ensure!(recording.answers.iter().all(|answer| *answer == Recorded::AsProposed));
    Ok(())
}

async fn insert(connection: &mut PgConnection, decisions: &[Decision]) -> anyhow::Result<()> {
    let column = |of: fn(&Decision) -> &str| decisions.iter().map(of).collect::<Vec<&str>>();
    let quantities: Vec<i32> =
        decisions.iter().map(|decision| decision.order.quantity.get().cast_signed()).collect();
    let times: Vec<DateTime<Utc>> = decisions.iter().map(|decision| decision.decided_at).collect();
    let reasons: Vec<Option<&str>> = vec![None; decisions.len()];
    sqlx::query(
        "insert into bare (order_id, sale_id, user_id, quantity, outcome, reason, decided_at)
         select * from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[],
                              $6::text[], $7::timestamptz[])",
    )
    .bind(column(|decision| decision.order.id.as_str()))
    .bind(column(|decision| decision.order.sale_id.as_str()))
    .bind(column(|decision| decision.order.user_id.as_str()))
    .bind(quantities)
    .bind(column(|decision| decision.outcome.name()))
    .bind(reasons)
    .bind(times)
    .execute(connection)
    .await?;
    Ok(())
}
