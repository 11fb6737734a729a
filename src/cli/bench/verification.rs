//! What checking users costs a sale, and what a user service that fails does to it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use super::buyers::{Users, order, publish};
use super::median;
use super::run::{STALLED, SUBSCRIBER_PREFETCH};
use crate::app::scratch::Scratch;
use crate::broker::{Broker, Delay, Deliveries, Queue};
use crate::cli::{output, process};
use crate::event::order_key_of;
use crate::order::{Order, OrderKey, SaleId};
use crate::sale::Sale;
use crate::user_service::{Behaviour, Latency};

/// How long a check takes.
const CHECK: Duration = Duration::from_millis(50);
/// Units that everybody wants.
const RARE: u32 = 100;
/// The share of buyers that are denied in the rush for them.
const DENIED: f64 = 0.1;
/// Orders of the sale that goes on while another one hangs: with a check for each, and without.
const CHECKED: u32 = 10_000;
const PLAIN: u32 = 60_000;
/// One order of the sale that hangs comes with so many of the other one.
const PER_HANGING: u32 = 10;
/// Orders a second while the user service goes away and comes back.
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
struct Rates {
    alone: Vec<f64>,
    beside_healthy: Vec<f64>,
    beside_hanging: Vec<f64>,
    /// Beside one that hangs, over beside one that doesn't.
    ratio: f64,
}

/// How another sale fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    None,
    Healthy,
    Hanging,
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
    /// How long the user service is away, in seconds. Orders expire after half as much again.
    pub outage_s: u32,
}

struct Setup<'a> {
    scratch: &'a Scratch,
    config: Option<PathBuf>,
    workers: u32,
    broker: Arc<dyn Broker>,
    events: Deliveries,
}

/// Takes all measurements.
pub(super) async fn measure(
    scratch: &Scratch,
    config: Option<PathBuf>,
    Size { orders, rounds, workers, outage_s }: Size,
) -> anyhow::Result<Report> {
    let (broker, events) =
        (scratch.app.broker().await?, scratch.events(SUBSCRIBER_PREFETCH).await?);
    let mut setup = Setup { scratch, config, workers, broker, events };
    eprintln!("{orders} buyers, {RARE} units");
    let rush = setup.rush(orders).await?;
    let checked_beside_hanging = setup.beside_hanging("checked", CHECKED, rounds).await?;
    let plain_beside_hanging = setup.beside_hanging("plain", PLAIN, rounds).await?;
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

    /// How fast a sale of which every order is created gets on, alone and beside another one.
    async fn beside_hanging(
        &mut self,
        name: &str,
        orders: u32,
        rounds: u16,
    ) -> anyhow::Result<Rates> {
        let (mut alone, mut beside_healthy, mut beside_hanging) = (vec![], vec![], vec![]);
        for round in 0..rounds {
            eprintln!("a {name} sale beside another: round {} of {rounds}", round + 1);
            for (other, rates) in [
                (Other::None, &mut alone),
                (Other::Healthy, &mut beside_healthy),
                (Other::Hanging, &mut beside_hanging),
            ] {
                let name = format!("{name}-{round}-{other:?}");
                rates.push(self.beside(&name, name.starts_with("checked"), orders, other).await?);
            }
        }
        let ratio = median(&beside_hanging) / median(&beside_healthy);
        Ok(Rates { alone, beside_healthy, beside_hanging, ratio })
    }

    /// How many orders a second of a sale are decided, while another one fares like that.
    async fn beside(
        &mut self,
        name: &str,
        verification: bool,
        orders: u32,
        other: Other,
    ) -> anyhow::Result<f64> {
        let sale = self.open(name, orders, verification).await?;
        let beside = self.open(&format!("{name}-other"), orders, true).await?;
        let hangs = other == Other::Hanging;
        let users = Users::start(Behaviour {
            latency: Latency::Fixed(CHECK),
            hanging_sales: hangs.then(|| beside.clone()).into_iter().collect(),
            hang: Duration::from_mins(5),
            ..Behaviour::default()
        })
        .await?;
        let both = (0..orders).flat_map(|number| {
            let with_other = other != Other::None && number % PER_HANGING == 0;
            let other = with_other.then(|| order(&beside, number));
            other.into_iter().chain([order(&sale, number)])
        });
        self.fill(both).await?;
        let workers = self.start(&users, &[])?;
        let (rate, _) = self.decided(&sale, orders).await?;
        end(workers).await?;
        if other != Other::None {
            // What is left of the other sale is not to be in the way of the next measurement.
            let allowing = Users::start(Behaviour::default()).await?;
            let workers = self.start(&allowing, &[("FLOODGATE_INTENT__MAX_AGE_S", "1")])?;
            self.empty().await?;
            end(workers).await?;
        }
        Ok(rate)
    }

    /// Waits until no intent has been waiting for longer than any of them is deferred.
    async fn empty(&mut self) -> anyhow::Result<()> {
        let longest = Duration::from_millis(Delay::FiveSeconds.ms().into()) * 2;
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < longest {
            for queue in [Queue::Intents, Queue::Returned] {
                if self.broker.depth(queue).await?.messages > 0 {
                    quiet_since = Instant::now();
                }
            }
            while let Ok(Some(event)) =
                tokio::time::timeout(Duration::from_millis(50), self.events.next()).await
            {
                event.ack();
                quiet_since = Instant::now();
            }
        }
        Ok(())
    }

    /// Orders come at a steady pace; after a third of the time the user service hangs, then answers
    /// with failures, and after two thirds it is back.
    async fn outage(&mut self, name: &str, away_s: u32, max_age_s: u32) -> anyhow::Result<Outage> {
        let away = Duration::from_secs(away_s.into());
        let orders = PACE * away_s * 3;
        let sale = self.open(name, orders / 2, true).await?;
        let latency = Latency::Fixed(CHECK);
        let users = Users::start(Behaviour { latency, ..Behaviour::default() }).await?;
        let max_age = max_age_s.to_string();
        let workers = self.start(&users, &[("FLOODGATE_INTENT__MAX_AGE_S", &max_age)])?;
        let service = users.service.clone();
        let failing = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(away).await;
            service.hold();
            tokio::time::sleep(away / 2).await;
            service.set_failing(true);
            service.release();
            tokio::time::sleep(away / 2).await;
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

    async fn open(&self, name: &str, stock: u32, verification: bool) -> anyhow::Result<SaleId> {
        let id = SaleId::parse(name)?;
        let sale = Sale {
            id: id.clone(),
            stock,
            per_user_limit: None,
            opens_at: None,
            closes_at: None,
            verification,
        };
        self.scratch.app.ledger().await?.open(&[sale]).await?;
        Ok(id)
    }

    async fn fill(&self, orders: impl Iterator<Item = Order>) -> anyhow::Result<()> {
        publish(self.broker.as_ref(), orders).await
    }

    fn start(&self, users: &Users, variables: &[(&str, &str)]) -> anyhow::Result<Vec<Child>> {
        (0..self.workers)
            .map(|_| {
                let mut command = process::floodgate(self.scratch, self.config.as_deref())?;
                command.arg("worker").env("FLOODGATE_VERIFICATION__URL", &users.url);
                command.envs(variables.iter().copied());
                command.spawn().context("could not start a worker")
            })
            .collect()
    }

    /// Waits until `orders` orders of `sale` are decided. Returns how many a second there were
    /// between the first and the last, and what became of them, each counted once.
    async fn decided(
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

async fn end(workers: Vec<Child>) -> anyhow::Result<()> {
    for worker in workers {
        process::drain(worker).await?;
    }
    Ok(())
}

pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    let Rush { stock, orders, orders_per_s, sold, calls, denied, calls_per_unit } = &report.rush;
    let beside = |Rates { alone, beside_healthy, beside_hanging, ratio }: &Rates| {
        let [alone, healthy, hanging] = [alone, beside_healthy, beside_hanging].map(|r| median(r));
        format!("{alone:.0} alone, {healthy:.0} beside one, {hanging:.0} as that hangs: {ratio:.2}")
    };
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
            ["checked, orders/s".into(), beside(&report.checked_beside_hanging)],
            ["plain, orders/s".into(), beside(&report.plain_beside_hanging)],
            ["outage".into(), outage(&report.outage)],
            ["long outage".into(), outage(&report.long_outage)],
        ],
    )
}
