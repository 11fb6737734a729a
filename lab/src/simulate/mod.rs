//! A deterministic simulation: floodgate's worker and its ledger's rule over a broker, a database, an inventory
//! and a user service in memory, which fail as a seed says, in one thread, on tokio's paused time.
//!
//! The same seed gives the same trace. Real are the worker, verification, the recipe of the ledger's transaction
//! and the rule; simulated are the adapters of servers.

mod audit;
mod broker;
mod inventory;
mod ledger;
pub(crate) mod plan;
mod users;
mod world;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::TimeDelta;
use floodgate::broker::EventSettings;
use floodgate::domain::intent::Limits;
use floodgate::domain::order::{AdjustmentId, Quantity, SaleId};
use floodgate::domain::sale::Sale;
use floodgate::inventory::{InventorySettings, WhenUnavailable};
use floodgate::ledger::Change;
use floodgate::traces::Traces;
use floodgate::verification::VerificationSettings;
use floodgate::worker::{Options, Worker, WorkerError, WorkerSettings};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::audit::{Evidence, Posted, audit};
use self::broker::Frozen;
use self::ledger::Database;
use self::plan::{Element, Fault, OrderPlan, Plan, SalePlan, Step};
use self::users::Users;
use self::world::World;

/// How long after the last step the backlog may take to drain once all faults are over. Delays are up to 30 s,
/// and an order may be deferred a few times.
const DRAIN_LIMIT: Duration = Duration::from_mins(10);
/// When the faults end.
const HEALED_AT: Duration = Duration::from_secs(40);

/// What to leave out of a plan, to find out what a violation needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reduction {
    /// The steps to keep, by their number in the plan.
    pub steps: Option<Vec<usize>>,
    pub faults: Option<Vec<Fault>>,
}

/// What came of a simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The same for the same trace.
    pub trace: u64,
    pub events: u64,
    /// The trace, if asked for.
    pub lines: Vec<String>,
    pub violations: Vec<String>,
    /// Steps and faults of the plan that was followed.
    pub steps: usize,
    pub faults: Vec<Fault>,
    pub decided: usize,
}

/// Simulates the plan of `seed`, as far as it is not reduced.
pub(crate) fn simulate(seed: u64, reduction: &Reduction, keeps_lines: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| unreachable!("a runtime without I/O: {error}"));
    floodgate::retry::seed(seed);
    let mut plan = Plan::of(seed);
    if let Some(steps) = &reduction.steps {
        plan.keep(steps);
    }
    if let Some(faults) = &reduction.faults {
        plan.faults.retain(|fault| faults.contains(fault));
    }
    // Logs are about one deployment, and here are thousands.
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        runtime.block_on(async { Box::pin(Simulation::new(plan, keeps_lines).run()).await })
    })
}

struct Simulation {
    plan: Plan,
    world: Arc<World>,
    database: Arc<Database>,
    broker: Arc<broker::Server>,
    inventory: Arc<inventory::Server>,
    users: Arc<Users>,
    workers: Vec<Option<Running>>,
    posted: Vec<Posted>,
    crashes: usize,
}

/// A worker that runs.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
    frozen: Arc<Frozen>,
}

impl Simulation {
    fn new(plan: Plan, keeps_lines: bool) -> Self {
        let faults = plan.faults.iter().copied().collect();
        let world = Arc::new(World::new(plan.seed, faults, keeps_lines));
        let database = Arc::new(Database::new(world.clone()));
        Self {
            broker: Arc::new(broker::Server::new(world.clone(), database.clone())),
            inventory: Arc::new(inventory::Server::new(world.clone())),
            users: Arc::new(Users::new(world.clone())),
            database,
            world,
            workers: Vec::new(),
            posted: Vec::new(),
            crashes: 0,
            plan,
        }
    }

    async fn run(mut self) -> Outcome {
        for sale in &self.plan.sales {
            self.database.open(opened(sale, &self.world));
        }
        for number in 0..self.plan.workers {
            let worker = self.start(number);
            self.workers.push(Some(worker));
        }
        for (at, step) in self.plan.steps.clone() {
            let until = Duration::from_millis(at).saturating_sub(self.world.age());
            tokio::time::sleep(until).await;
            self.follow(step).await;
        }
        tokio::time::sleep(HEALED_AT.saturating_sub(self.world.age())).await;
        self.world.heal();
        for sale in 0..self.plan.sales.len() {
            self.follow(Step::Pause(sale, None)).await;
        }
        self.drain().await;
        self.finish().await
    }

    fn start(&self, number: usize) -> Running {
        let frozen = Arc::new(Frozen::default());
        let skew = TimeDelta::milliseconds(self.plan.skews_ms[number]);
        let worker = Worker {
            metrics: Arc::default(),
            traces: Traces::off(),
            health: Arc::default(),
            broker: Arc::new(broker::Connection {
                server: self.broker.clone(),
                worker: number,
                frozen: frozen.clone(),
            }),
            inventory: Some(Arc::new(inventory::Connection {
                server: self.inventory.clone(),
                frozen: frozen.clone(),
            })),
            ledger: Arc::new(ledger::Connection {
                database: self.database.clone(),
                frozen: frozen.clone(),
                has_repeats: AtomicBool::new(false),
            }),
            verifier: Some(self.users.clone()),
            clock: self.world.clock(skew),
            shard_map: None,
            options: options(&self.plan),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(worker.run(stop.clone()));
        self.world.note(|| format!("worker {number} starts"));
        Running { stop, task, frozen }
    }

    async fn follow(&mut self, step: Step) {
        match step {
            Step::Post(elements) => self.post(&elements),
            Step::Restock(sale, units) => {
                let adjustment = format!("a{}", self.world.age().as_millis());
                let (Ok(adjustment_id), Some(units)) =
                    (AdjustmentId::parse(adjustment), Quantity::new(i64::from(units)))
                else {
                    return;
                };
                let at = self.world.now();
                self.change(sale, &Change::Restock { adjustment_id, units, at }).await;
            }
            Step::Close(sale) => {
                let at = self.world.now();
                self.change(sale, &Change::Close { at }).await;
            }
            Step::Verification(sale, on) => self.change(sale, &Change::Verify { on }).await,
            Step::Pause(sale, mode) => {
                let at = self.world.now();
                self.change(sale, &Change::Pause { mode, at }).await;
            }
            Step::Crash(worker, away_ms) => self.crash(worker, away_ms).await,
            Step::Stop(worker) => self.stop(worker).await,
            Step::Freeze(worker, ms) => {
                self.world.note(|| format!("worker {worker} stands still for {ms} ms"));
                if let Some(Running { frozen, .. }) = &self.workers[worker] {
                    *frozen.0.lock() = self.world.age() + Duration::from_millis(ms);
                }
            }
            Step::Disconnect(worker) => self.broker.disconnect(worker),
        }
    }

    async fn change(&self, sale: usize, change: &Change) {
        if let Ok(sale) = SaleId::parse(self.plan.sales[sale].id.as_str()) {
            self.database.change(&sale, change).await;
        }
    }

    fn post(&mut self, elements: &[Element]) {
        let now = self.world.now();
        let mut texts = Vec::new();
        for element in elements {
            let (text, order, submitted_at) = match element {
                Element::Malformed(text) => (text.clone(), None, None),
                Element::Order(order) => {
                    let at = order.submitted_ms.map(|ms| now + TimeDelta::milliseconds(ms));
                    (body(order, at), Some(order.clone()), at)
                }
            };
            texts.push(text.clone());
            self.posted.push(Posted { at: now, text, order, submitted_at });
        }
        let body =
            if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(",")) };
        self.broker.post(&body);
    }

    /// Kills a worker as `kill -9` does: nothing that it still has to say is heard.
    async fn crash(&mut self, number: usize, away_ms: u64) {
        self.crashes += 1;
        self.world.note(|| format!("worker {number} is killed"));
        self.broker.disconnect(number);
        if let Some(Running { task, .. }) = self.workers[number].take() {
            task.abort();
            let _ = task.await;
        }
        // What it has connected meanwhile goes too.
        tokio::task::yield_now().await;
        self.broker.disconnect(number);
        tokio::time::sleep(Duration::from_millis(away_ms)).await;
        self.workers[number] = Some(self.start(number));
    }

    async fn stop(&mut self, number: usize) {
        self.world.note(|| format!("worker {number} is told to stop"));
        if let Some(Running { stop, task, .. }) = self.workers[number].take() {
            stop.cancel();
            // Not drained in time is no violation: what it has comes again.
            let _ = task.await;
        }
        self.broker.disconnect(number);
        self.workers[number] = Some(self.start(number));
    }

    /// Waits until nothing is left to do.
    async fn drain(&self) {
        let mut quiet = 0;
        for _ in 0..DRAIN_LIMIT.as_secs() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            quiet = if self.broker.is_quiet() { quiet + 1 } else { 0 };
            // Long enough for what is still owed to subscribers of sales.
            if quiet == 12 {
                return;
            }
        }
        self.world.violation(format!("I8: the backlog does not drain within {DRAIN_LIMIT:?}"));
    }

    async fn finish(mut self) -> Outcome {
        for worker in &mut self.workers {
            if let Some(Running { stop, task, .. }) = worker.take() {
                stop.cancel();
                match task.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        self.world.violation(format!("a worker does not stop: {error}"));
                    }
                    Err(error) => {
                        self.world.violation(format!("a worker panics: {error}"));
                    }
                }
            }
        }
        let (history, sales) = self.database.history();
        let (dead, events) = self.broker.published();
        let evidence = Evidence {
            posted: &self.posted,
            history: &history,
            sales: &sales,
            dead: &dead,
            events: &events,
            users: &self.users,
            max_age: TimeDelta::milliseconds(
                i64::try_from(self.plan.max_age_ms).unwrap_or(i64::MAX),
            ),
            is_one_worker: self.plan.workers == 1 && self.crashes == 0,
        };
        for wrong in audit(&evidence) {
            self.world.violation(wrong);
        }
        let decided = history.iter().map(|committed| match committed {
            ledger::Committed::Batch(decisions) => decisions.len(),
            ledger::Committed::Sale(_) => 0,
        });
        let decided = decided.sum();
        let (trace, events, lines, violations) = self.world.end();
        let (steps, faults) = (self.plan.steps.len(), self.plan.faults.into_iter().collect());
        Outcome { trace, events, lines, violations, steps, faults, decided }
    }
}

fn opened(plan: &SalePlan, world: &World) -> Sale {
    let at = |ms: Option<u64>| {
        ms.map(|ms| world.now() + TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX)))
    };
    Sale {
        id: SaleId::parse(plan.id.as_str()).unwrap_or_else(|error| unreachable!("{error}")),
        stock: plan.stock,
        per_user_limit: plan.per_user_limit,
        opens_at: at(plan.opens_ms),
        closes_at: at(plan.closes_ms),
        verification: plan.verification,
    }
}

fn body(order: &OrderPlan, submitted_at: Option<chrono::DateTime<chrono::Utc>>) -> String {
    let OrderPlan { order_id, sale_id, user_id, quantity, .. } = order;
    let mut body = json!({
        "order_id": order_id, "sale_id": sale_id, "user_id": user_id, "quantity": quantity,
    });
    if let Some(at) = submitted_at {
        body["submitted_at"] = json!(floodgate::domain::event::rfc3339(at));
    }
    body.to_string()
}

fn options(plan: &Plan) -> Options {
    let when_unavailable =
        if plan.waits_for_inventory { WhenUnavailable::Wait } else { WhenUnavailable::Ledger };
    Options {
        worker: WorkerSettings {
            max_batch: plan.max_batch,
            batches_in_flight: plan.batches_in_flight,
            drain_deadline: Duration::from_mins(1),
            listen: None,
        },
        inventory: InventorySettings {
            when_unavailable,
            timeout: Duration::from_secs(1),
            retry_after: Duration::from_millis(500),
            keep_after_close: Duration::from_hours(1),
        },
        verification: VerificationSettings {
            url: String::new(),
            timeout: Duration::from_secs(20),
            attempts: 3,
            max_in_flight_per_sale: 3,
            max_in_flight: 5,
            // More than there are: its library waits in real time.
            breaker_calls: 10_000,
            breaker_pause: Duration::from_secs(1),
            remember: Duration::from_mins(10),
        },
        // Two or three events to a batch.
        events: EventSettings { publish: plan.published_as, max_batch_bytes: 1024 },
        prefetch: plan.prefetch,
        max_age: Duration::from_millis(plan.max_age_ms),
        limits: Limits { max_body_bytes: 1 << 20, max_intents: 100 },
    }
}
