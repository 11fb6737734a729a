//! `floodgate-lab failover`: a fault in the middle of a steady load, and what it cost.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use tokio::process::{Child, Command};

use super::load::Load;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::app::{App, Audited};
use floodgate::broker::{Broker, Deliveries, Message};
use floodgate::cli::{output, process};
use floodgate::domain::event::{decision_json, order_key_of};
use floodgate::domain::event_batch::data_of;
use floodgate::domain::order::OrderKey;
use floodgate::domain::sale::SaleState;
use floodgate::ledger::Discrepancy;

/// How often a share of the load is sent.
const SHARE: Duration = Duration::from_millis(50);
/// Messages in one publish at most, when there is something to catch up with.
const CHUNK: usize = 1000;
/// No event for so long means that it does not go on.
const STALLED: Duration = Duration::from_mins(2);
/// How long a load runs before its rate is steady.
const WARM_UP: Duration = Duration::from_secs(2);
const PREFETCH: u16 = 5000;

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  floodgate-lab failover 'docker kill redis-1'\n  \
    floodgate-lab failover --name 'no fault'\n\n\
    Sells half as many units as there are orders. `progress` is the longest time without a new decision after the \
    fault began, `caught up` the time until every order posted by then was decided. Uses a temporary namespace and \
    database. Exit code 1: something was lost, doubled, oversold or wrongly refused.")]
pub(super) struct Failover {
    /// Makes the fault; run by the shell. Left out: none
    fault: Option<String>,
    /// What the fault is called
    #[arg(long, default_value = "", value_name = "TEXT")]
    name: String,
    /// Orders posted each second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Orders in all
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    orders: u32,
    /// Sales that they are for
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sales: u32,
    /// Units to a buyer; as many buyers as units order then, twice each
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Worker processes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Seconds of load before the fault
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(3..=3600))]
    after_s: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a fault has cost.
#[derive(Debug, Serialize)]
struct Cost {
    fault: String,
    orders: u32,
    /// Orders without a decision, or without its event.
    lost: u32,
    /// Orders with decisions that differ.
    doubled: u32,
    /// Units sold that were not there.
    oversold: u32,
    /// Units left although there was an order for each.
    wrongly_refused: u32,
    progress_s: f64,
    caught_up_s: f64,
}

impl Cost {
    fn is_none(&self) -> bool {
        (self.lost, self.doubled, self.oversold, self.wrongly_refused) == (0, 0, 0, 0)
    }

    fn print(self) -> anyhow::Result<()> {
        let headings = [
            "fault",
            "orders",
            "lost",
            "doubled",
            "oversold",
            "wrongly refused",
            "progress",
            "caught up",
        ];
        let seconds = |seconds: f64| format!("{seconds:.1} s");
        let row = [
            self.fault,
            self.orders.to_string(),
            self.lost.to_string(),
            self.doubled.to_string(),
            self.oversold.to_string(),
            self.wrongly_refused.to_string(),
            seconds(self.progress_s),
            seconds(self.caught_up_s),
        ];
        output::table(headings, [row])
    }
}

impl Failover {
    /// Whether it cost nothing but time.
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<bool> {
        let name = format!("floodgate-failover-{}", std::process::id());
        let deployment = TempDeployment::create(app.settings(), &name).await?;
        let measured = self.measure(&deployment, config).await;
        let removed = deployment.remove().await;
        let cost = measured?;
        if let Err(error) = removed {
            // What was measured stands; a node that is down can't be tidied.
            eprintln!("the deployment {name} could not be removed: {error:#}");
        }
        let is_none = cost.is_none();
        if self.json {
            output::json(&cost)?;
        } else {
            cost.print()?;
        }
        Ok(is_none)
    }

    async fn measure(
        &self,
        deployment: &TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Cost> {
        let Self { rate, orders, sales, after_s, limit, .. } = *self;
        let stock = orders / sales / 2;
        let load = Arc::new(Load { sales, stock, per_user_limit: limit, ..Load::new(0, orders) });
        load.open_sales(deployment).await?;
        let mut events = deployment.events(PREFETCH).await?;
        let workers = self.start_workers(deployment, config.as_deref())?;
        let begun = Instant::now();
        let broker = deployment.app.broker().await?;
        let posting = tokio::spawn(post(broker, load.clone(), rate));
        let faulty = tokio::spawn(make(self.fault.clone(), begun + Duration::from_secs(after_s)));
        let mut told = Told::default();
        told.receive(&mut events, &load).await?;
        posting.await?.context("posting")?;
        let fault_at = faulty.await??;
        for worker in workers {
            process::drain(worker).await?;
        }
        events.stop();
        events.finished().await;
        // Without a fault, what is usual once the load is steady.
        let since = if self.fault.is_some() { fault_at } else { begun + WARM_UP };
        let posted = due_after(since.duration_since(begun), rate);
        let mut cost = Cost {
            fault: self.name.clone(),
            orders,
            lost: 0,
            doubled: told.doubled,
            oversold: 0,
            wrongly_refused: 0,
            progress_s: told.longest_wait(since).as_secs_f64(),
            caught_up_s: told.decided(posted).saturating_duration_since(since).as_secs_f64(),
        };
        compare(deployment, &load, &told, &mut cost).await?;
        Ok(cost)
    }

    fn start_workers(
        &self,
        deployment: &TempDeployment,
        config: Option<&Path>,
    ) -> anyhow::Result<Vec<Child>> {
        let start = |_| {
            let mut worker = process::floodgate(deployment.app.settings(), config)?;
            worker.arg("worker").spawn().context("could not start a worker")
        };
        (0..self.workers).map(start).collect()
    }
}

/// Posts the orders of `load` at a steady rate. Those that can't be posted at their time are posted as soon as
/// possible.
async fn post(broker: Arc<dyn Broker>, load: Arc<Load>, rate: u32) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (mut due, mut waiting) = (0, VecDeque::new());
    while due < load.orders || !waiting.is_empty() {
        let by_now = due_after(begun.elapsed(), rate).min(load.orders);
        waiting.extend(due..by_now);
        due = by_now;
        let numbers: Vec<u32> = waiting.drain(..waiting.len().min(CHUNK)).collect();
        let bodies: Vec<_> =
            numbers.iter().map(|&n| (load.sale_of(n), load.body(n, n + 1))).collect();
        let messages: Vec<_> =
            bodies.iter().map(|(sale, body)| Message::intent(sale.as_str(), body)).collect();
        let published = broker.publish(&messages).await;
        let again = numbers.into_iter().zip(published.receipts);
        let again = again.filter_map(|(number, receipt)| (!receipt.is_done()).then_some(number));
        for number in again.collect::<Vec<_>>().into_iter().rev() {
            waiting.push_front(number);
        }
        if waiting.len() < CHUNK {
            tokio::time::sleep(SHARE).await;
        }
    }
    Ok(())
}

/// How many orders are due after `elapsed`.
fn due_after(elapsed: Duration, rate: u32) -> u32 {
    u32::try_from(elapsed.as_millis() * u128::from(rate) / 1000).unwrap_or(u32::MAX)
}

/// Makes a fault, and says when that began.
async fn make(fault: Option<String>, at: Instant) -> anyhow::Result<Instant> {
    let Some(fault) = fault else { return Ok(at) };
    tokio::time::sleep_until(at.into()).await;
    let begun = Instant::now();
    let status = Command::new("sh").arg("-c").arg(&fault).status().await?;
    ensure!(status.success(), "`{fault}` ended with {status}");
    Ok(begun)
}

/// What subscribers were told.
#[derive(Default)]
struct Told {
    /// Of each order at first.
    decisions: BTreeMap<u32, Vec<u8>>,
    /// When each order was first told of, in the order of these times.
    times: Vec<Instant>,
    doubled: u32,
}

impl Told {
    /// Takes events until each order of `load` has one.
    async fn receive(&mut self, events: &mut Deliveries, load: &Load) -> anyhow::Result<()> {
        while self.decisions.len() < load.orders as usize {
            let Ok(Some(delivery)) = tokio::time::timeout(STALLED, events.next()).await else {
                // What is missing is what was lost.
                return Ok(());
            };
            for data in data_of(&delivery.body)? {
                let order = order_key_of(data).context("an event that is about no order")?;
                let number = load.number(&order).context("an event of another run")?;
                match self.decisions.get(&number) {
                    Some(first) if first != data => self.doubled += 1,
                    Some(_) => {}
                    None => {
                        self.decisions.insert(number, data.to_vec());
                        self.times.push(Instant::now());
                    }
                }
            }
            delivery.ack();
        }
        Ok(())
    }

    /// The longest time between two decisions, the latter of which came after `since`.
    fn longest_wait(&self, since: Instant) -> Duration {
        let waits = self.times.windows(2).filter(|pair| pair[1] > since);
        waits.map(|pair| pair[1] - pair[0].max(since)).max().unwrap_or_default()
    }

    /// When as many orders as `posted` were decided.
    fn decided(&self, posted: u32) -> Instant {
        let at = (posted as usize).min(self.times.len().saturating_sub(1));
        self.times.get(at).copied().unwrap_or_else(Instant::now)
    }
}

/// What the ledger says of it all, into `cost`.
async fn compare(
    deployment: &TempDeployment,
    load: &Load,
    told: &Told,
    cost: &mut Cost,
) -> anyhow::Result<()> {
    let Audited { books, ledger, .. } = deployment.app.audited().await?;
    let balance = books.balance(None).await?;
    for Discrepancy { sale_id, about, detail, .. } in &balance.discrepancies {
        eprintln!("{sale_id} {about}: {detail}");
    }
    ensure!(balance.discrepancies.is_empty(), "the ledger's books do not balance");
    cost.lost = load.orders - u32::try_from(told.decisions.len())?;
    let decisions: Vec<(OrderKey, &[u8])> = told
        .decisions
        .values()
        .filter_map(|data| Some((order_key_of(data)?, data.as_slice())))
        .collect();
    for page in decisions.chunks(CHUNK) {
        let orders: Vec<OrderKey> = page.iter().map(|(order, _)| order.clone()).collect();
        for ((_, told), stored) in page.iter().zip(ledger.decisions(&orders).await?) {
            match stored {
                Some(decision) if decision_json(&decision) == *told => {}
                Some(_) => cost.doubled += 1,
                None => cost.lost += 1,
            }
        }
    }
    for SaleState { sale, sold, .. } in ledger.sales(None).await? {
        cost.oversold += sold.saturating_sub(sale.stock);
        cost.wrongly_refused += sale.stock.saturating_sub(sold);
    }
    Ok(())
}
