//! What checking users costs a sale, and what a user service that fails does to it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use super::beside::{CHECKED, Deferred, PLAIN, Rates};
use super::buyers::{Users, order, publish};
use super::run::{STALLED, SUBSCRIBER_PREFETCH};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::{Broker, Deliveries, Queue};
use floodgate::cli::{output, process};
use floodgate::domain::event::order_key_of;
use floodgate::domain::order::{Order, OrderKey, SaleId};
use floodgate::domain::sale::Sale;
use floodgate::user_service::{Behaviour, Latency};

/// How long a check takes.
pub(super) const CHECK: Duration = Duration::from_millis(50);
/// Units that all buyers want.
const RARE: u32 = 100;
/// The share of buyers that are denied in the rush for them.
const DENIED: f64 = 0.1;
/// Orders a second while the user service is unavailable and available again.
const PACE: u32 = 500;

/// What was measured.
#[derive(Serialize)]
pub(super) struct Report {
    workers: u32,
    check_ms: u128,
    rush: Rush,
    /// Decisions a second of a sale, and what another sale whose every check hangs does to them.
    checked_beside_hanging: Rates,
    plain_beside_hanging: Rates,
    plain_beside_deferred: Deferred,
    outage: Outage,
    /// The same, when orders expire before it ends.
    long_outage: Outage,
}

/// Many buyers, few units.
#[derive(Serialize)]
struct Rush {
    stock: u32,
    orders: u32,
    orders_per_s: f64,
    sold: usize,
    calls: u64,
    denied: usize,
    /// Calls but for those that ended in a denial, for each unit sold.
    calls_per_unit: f64,
}

#[derive(Serialize)]
struct Outage {
    orders: u32,
    away_s: u32,
    max_age_s: u32,
    outcomes: HashMap<String, usize>,
    dead_letters: u32,
}

/// How much is measured.
pub(super) struct Size {
    /// Orders in the rush.
    pub orders: u32,
    /// Rounds of what rates are taken of.
    pub rounds: u16,
    /// Workers on the queue.
    pub workers: u32,
    /// How long the user service is unavailable, in seconds. Orders expire after half as much again.
    pub outage_s: u32,
}

pub(super) struct Setup<'a> {
    deployment: &'a TempDeployment,
    config: Option<PathBuf>,
    workers: u32,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) events: Deliveries,
}

/// Takes all measurements.
pub(super) async fn measure(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    Size { orders, rounds, workers, outage_s }: Size,
) -> anyhow::Result<Report> {
    let (broker, events) =
        (deployment.app.broker().await?, deployment.events(SUBSCRIBER_PREFETCH).await?);
    let mut setup = Setup { deployment, config, workers, broker, events };
    eprintln!("{orders} buyers, {RARE} units");
    let rush = setup.rush(orders).await?;
    let checked_beside_hanging = setup.beside_hanging("checked", CHECKED, rounds).await?;
    let plain_beside_hanging = setup.beside_hanging("plain", PLAIN, rounds).await?;
    let plain_beside_deferred = setup.beside_deferred(orders, rounds).await?;
    eprintln!("an outage");
    let outage = setup.outage("outage", outage_s, outage_s * 3 / 2).await?;
    eprintln!("an outage in which orders expire");
    let long_outage = setup.outage("long-outage", outage_s, outage_s.div_ceil(2)).await?;
    setup.events.stop();
    setup.events.finished().await;
    let check_ms = CHECK.as_millis();
    Ok(Report {
        workers,
        check_ms,
        rush,
        checked_beside_hanging,
        plain_beside_hanging,
        plain_beside_deferred,
        outage,
        long_outage,
    })
}

impl Setup<'_> {
    async fn rush(&mut self, orders: u32) -> anyhow::Result<Rush> {
        let sale = self.open("rush", RARE, true).await?;
        let latency = Latency::Fixed(CHECK);
        let users =
            Users::start(Behaviour { latency, denials: DENIED, ..Behaviour::default() }).await?;
        self.fill((0..orders).map(|number| order(&sale, number))).await?;
        let workers = self.start(&users, &[])?;
        let (rate, outcomes) = self.decided(&sale, orders).await?;
        end(workers).await?;
        let count = |outcome: &str| outcomes.get(outcome).copied().unwrap_or(0);
        let (sold, denied, calls) = (count("created"), count("user_denied"), users.counts().calls);
        Ok(Rush {
            stock: RARE,
            orders,
            orders_per_s: rate,
            sold,
            calls,
            denied,
            calls_per_unit: (calls as f64 - denied as f64) / sold as f64,
        })
    }

    /// Orders come at a steady pace; after a third of the time the user service hangs, then answers
    /// with failures, and after two thirds it is back.
    async fn outage(&mut self, name: &str, away_s: u32, max_age_s: u32) -> anyhow::Result<Outage> {
        let outage = Duration::from_secs(away_s.into());
        let orders = PACE * away_s * 3;
        let sale = self.open(name, orders / 2, true).await?;
        let latency = Latency::Fixed(CHECK);
        let users = Users::start(Behaviour { latency, ..Behaviour::default() }).await?;
        let max_age = max_age_s.to_string();
        let workers = self.start(&users, &[("FLOODGATE_INTENT__MAX_AGE_S", &max_age)])?;
        let service = users.service.clone();
        let failing = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(outage).await;
            service.hold();
            tokio::time::sleep(outage / 2).await;
            service.set_failing(true);
            service.release();
            tokio::time::sleep(outage / 2).await;
            service.set_failing(false);
        }));
        let (broker, ordered) = (self.broker.clone(), sale.clone());
        let sending = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            for first in (0..orders).step_by(PACE as usize / 10) {
                ticks.tick().await;
                let share = (first..first + PACE / 10).map(|number| order(&ordered, number));
                publish(broker.as_ref(), share).await?;
            }
            anyhow::Ok(())
        }));
        let (_, outcomes) = self.decided(&sale, orders).await?;
        sending.await??;
        failing.await?;
        end(workers).await?;
        let dead_letters = self.broker.depth(Queue::DeadLetters).await?.messages;
        Ok(Outage { orders, away_s, max_age_s, outcomes, dead_letters })
    }

    pub(super) async fn open(
        &self,
        name: &str,
        stock: u32,
        verification: bool,
    ) -> anyhow::Result<SaleId> {
        let id = SaleId::parse(name)?;
        let sale = Sale {
            id: id.clone(),
            stock,
            per_user_limit: None,
            opens_at: None,
            closes_at: None,
            verification,
        };
        self.deployment.app.ledger().await?.open(&[sale]).await?;
        Ok(id)
    }

    pub(super) async fn fill(&self, orders: impl Iterator<Item = Order>) -> anyhow::Result<()> {
        publish(self.broker.as_ref(), orders).await
    }

    pub(super) fn start(
        &self,
        users: &Users,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Vec<Child>> {
        (0..self.workers)
            .map(|_| {
                let mut command =
                    process::floodgate(self.deployment.app.settings(), self.config.as_deref())?;
                command.arg("worker").env("FLOODGATE_VERIFICATION__URL", &users.url);
                command.envs(variables.iter().copied());
                command.spawn().context("could not start a worker")
            })
            .collect()
    }

    /// Waits until `orders` orders of `sale` are decided. Returns how many a second there were
    /// between the first and the last, and what became of them, each counted once.
    pub(super) async fn decided(
        &mut self,
        sale: &SaleId,
        orders: u32,
    ) -> anyhow::Result<(f64, HashMap<String, usize>)> {
        let mut outcomes: HashMap<OrderKey, String> = HashMap::new();
        let mut begun = None;
        while outcomes.len() < orders as usize {
            let Ok(Some(event)) = tokio::time::timeout(STALLED, self.events.next()).await else {
                bail!("{} of {orders} orders have no decision", orders as usize - outcomes.len());
            };
            let order = order_key_of(&event.body).context("an event that is about no order")?;
            let data: serde_json::Value = serde_json::from_slice(&event.body)?;
            event.ack();
            let text = |name: &str| data[name].as_str().map(str::to_owned);
            if order.sale_id == *sale {
                begun.get_or_insert_with(Instant::now);
                let outcome = text("reason").or_else(|| text("outcome")).context("no outcome")?;
                outcomes.insert(order, outcome);
            }
        }
        let elapsed = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let rate = f64::from(orders - 1) / elapsed.as_secs_f64();
        let mut counts = HashMap::new();
        for outcome in outcomes.into_values() {
            *counts.entry(outcome).or_default() += 1;
        }
        Ok((rate, counts))
    }
}

pub(super) async fn end(workers: Vec<Child>) -> anyhow::Result<()> {
    for worker in workers {
        process::drain(worker).await?;
    }
    Ok(())
}

pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    let Rush { stock, orders, orders_per_s, sold, calls, denied, calls_per_unit } = &report.rush;
    let outage = |Outage { orders, away_s, max_age_s, outcomes, dead_letters }: &Outage| {
        let mut counts: Vec<_> = outcomes.iter().collect();
        counts.sort();
        let counts: Vec<String> =
            counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        format!(
            "{away_s} s, expiry {max_age_s} s; of {orders}: {}; {dead_letters} dead letters",
            counts.join(", ")
        )
    };
    output::table(
        ["measured", ""],
        [
            ["workers, check".into(), format!("{}, {} ms", report.workers, report.check_ms)],
            [
                "rush".into(),
                format!("{orders} buyers, {sold} of {stock} sold, {orders_per_s:.0} orders/s"),
            ],
            [
                "calls".into(),
                format!("{calls}, {denied} denied: {calls_per_unit:.2} others a unit"),
            ],
            ["checked, orders/s".into(), report.checked_beside_hanging.to_string()],
            ["plain, orders/s".into(), report.plain_beside_hanging.to_string()],
            ["beside deferred, orders/s".into(), report.plain_beside_deferred.to_string()],
            ["outage".into(), outage(&report.outage)],
            ["long outage".into(), outage(&report.long_outage)],
        ],
    )
}
