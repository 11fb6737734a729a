//! A run, from its first order to its verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::{TimeDelta, Utc};
use floodgate::app::App;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::topology::Topology;
use floodgate::domain::order::AdjustmentId;
use floodgate::operator_log::Operator;
use floodgate_fault_proxy::Faults;
use futures_util::future::join_all;
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::book::Book;
use super::crew::{ClockedWorker, Crew, Role, free_address};
use super::demand::Demand;
use super::noise::Noise;
use super::plan::{Act, Episode, Fault, Ground, episodes};
use super::producers::Producers;
use super::servers::{Links, Servers, each_host};
use super::verdict::{Verdict, judge};

/// The time without a fault at first, in which things become steady and then are measured.
const STEADY_AFTER: Duration = Duration::from_secs(5);
const UNFAULTED: Duration = Duration::from_secs(15);
/// How long the last faults may go on.
const MARGIN: Duration = Duration::from_secs(20);
/// No decision for so long after everything was healed means that it does not go on.
const STALLED: Duration = Duration::from_mins(2);
/// The last part of a run, in percent, that has no restock: what is on offer then is sold.
const WITHOUT_RESTOCKS: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PREFETCH: u16 = 5000;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub length: Duration,
    /// Orders a second.
    pub rate: u32,
    /// Worker processes, beside the one whose clock is stepped.
    pub workers: u32,
    pub ground: Ground,
    /// See [`Servers::control`].
    pub control: PathBuf,
}

/// What became of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub servers: Ground,
    pub minutes: f64,
    pub faults: u32,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Orders decided a second, before the first fault and from then on.
    pub unfaulted_rate: f64,
    pub faulted_rate: f64,
    /// Processes of floodgate that ended although nobody had killed them.
    pub restarts: u32,
    pub worker_peak_mib: f64,
    /// Of each kind, how many, and the longest time without a decision once all that had overlapped was over.
    pub kinds: BTreeMap<Fault, Kind>,
}

/// Faults of one kind.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Kind {
    pub faults: u32,
    pub longest_stall_s: f64,
}

/// A run that goes on.
struct Run {
    demand: Demand,
    book: Arc<Book>,
    servers: Servers,
    links: Links,
    crew: Arc<Crew>,
    clocked: ClockedWorker,
    noise: Noise,
    workers: u32,
    begun: Instant,
}

/// Runs it in a temporary deployment on the servers of `app`.
pub async fn run(app: &App, config: Option<PathBuf>, options: &Options) -> anyhow::Result<Report> {
    let name = format!("floodgate-chaos-{}", std::process::id());
    let deployment = TempDeployment::create(app.settings(), &name).await?;
    let report = Box::pin(run_in(&deployment, config, options)).await?;
    deployment.remove().await?;
    Ok(report)
}

async fn run_in(
    deployment: &TempDeployment,
    config: Option<PathBuf>,
    options: &Options,
) -> anyhow::Result<Report> {
    // More than there is time for.
    let all = STEADY_AFTER + UNFAULTED + options.length + MARGIN;
    let orders = u32::try_from(all.as_secs())?.checked_mul(options.rate);
    let demand = Demand { orders: orders.context("too many orders")? };
    deployment.app.ledger().await?.open(&demand.sales()).await?;
    let run = Run::start(deployment, config, options, demand).await?;
    let settings = &run.links.others;
    let others = TempDeployment::existing(settings, &settings.namespace)?;
    let subscriber = Subscriber::start(&others, run.book.clone()).await?;
    let supervising = AbortOnDropHandle::new(tokio::spawn(run.crew.clone().supervise()));
    let stop = CancellationToken::new();
    let (book, rate) = (run.book.clone(), options.rate);
    let producers = Producers { demand, book, rate, stop: stop.clone() };
    let producing = tokio::spawn(producers.run(others.app.broker().await?, run.crew.api_address()));

    tokio::time::sleep(STEADY_AFTER).await;
    let unfaulted_rate = {
        let begun = Tempo::start(&run.book);
        tokio::time::sleep(UNFAULTED).await;
        begun.rate(&run.book)
    };
    let tempo = Tempo::start(&run.book);
    let mut kinds = BTreeMap::new();
    for episode in episodes(options.seed, options.ground) {
        if tempo.begun.elapsed() >= options.length {
            break;
        }
        run.play(&episode, deployment, options, &mut kinds).await?;
    }
    let faulted_rate = tempo.rate(&run.book);
    stop.cancel();
    producing.await??;
    run.settle().await;
    drop(supervising);
    let mut undrained = run.crew.drain().await;
    if let Err(error) = run.clocked.stop().await {
        tracing::error!(%error, "the worker whose clock is stepped did not end well");
        undrained += 1;
    }
    subscriber.stop().await?;
    let verdict = judge(deployment, demand, &run.book, undrained).await?;
    others.app.close().await;
    Ok(Report {
        seed: options.seed,
        servers: options.ground,
        minutes: options.length.as_secs_f64() / 60.0,
        faults: kinds.values().map(|kind: &Kind| kind.faults).sum(),
        verdict,
        unfaulted_rate,
        faulted_rate,
        restarts: run.crew.restarts.load(Ordering::Relaxed),
        worker_peak_mib: f64::from(run.crew.peak_kib.load(Ordering::Relaxed)) / 1024.0,
        kinds,
    })
}

/// Waits until a fault is to end.
async fn over(act: &Act) {
    tokio::time::sleep(Duration::from_millis(act.lasts_ms)).await;
}

/// How fast orders are decided, from some moment on.
struct Tempo {
    begun: Instant,
    decided: u32,
}

impl Tempo {
    fn start(book: &Book) -> Self {
        Self { begun: Instant::now(), decided: book.counts().decided }
    }

    fn rate(&self, book: &Book) -> f64 {
        f64::from(book.counts().decided - self.decided) / self.begun.elapsed().as_secs_f64()
    }
}

/// Who keeps what subscribers are told.
struct Subscriber {
    keeping: JoinHandle<()>,
    stop: CancellationToken,
}

impl Subscriber {
    async fn start(deployment: &TempDeployment, book: Arc<Book>) -> anyhow::Result<Self> {
        let mut events = deployment.events(PREFETCH).await?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let keeping = tokio::spawn(async move {
            tokio::select! {
                () = book.subscribe(&mut events) => {}
                () = stopped.cancelled() => {}
            }
            events.stop();
            events.finished().await;
        });
        Ok(Self { keeping, stop })
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.keeping.await?)
    }
}

impl Run {
    async fn start(
        deployment: &TempDeployment,
        config: Option<PathBuf>,
        options: &Options,
        demand: Demand,
    ) -> anyhow::Result<Self> {
        let settings = deployment.app.settings();
        let users = free_address().await?;
        let links = Links::start(settings, options.ground, users).await?;
        let (workers, api) = (links.workers.clone(), links.api.clone());
        let crew = Crew::start(config, workers.clone(), api, users, options.workers).await?;
        let noise = Noise {
            urls: each_host(links.others.amqp_url.expose_secret()),
            topology: Topology::new(&settings.namespace),
            demand,
        };
        Ok(Self {
            demand,
            book: Arc::new(Book::new(demand)),
            servers: Servers { control: options.control.clone() },
            links,
            crew,
            clocked: ClockedWorker::start(workers),
            noise,
            workers: options.workers,
            begun: Instant::now(),
        })
    }

    /// Makes the faults of an episode, and measures how long it takes until things go on after it.
    async fn play(
        &self,
        episode: &Episode,
        deployment: &TempDeployment,
        options: &Options,
        kinds: &mut BTreeMap<Fault, Kind>,
    ) -> anyhow::Result<()> {
        let is_late = self.begun.elapsed() > options.length * (100 - WITHOUT_RESTOCKS) / 100;
        let acts = episode.acts.iter().filter(|act| !(is_late && act.fault == Fault::Restock));
        let acts: Vec<&Act> = acts.collect();
        let made = join_all(acts.iter().map(|act| self.make(act, deployment))).await;
        for (act, made) in acts.iter().zip(made) {
            made.with_context(|| format!("{act:?}"))?;
        }
        let decided = self.book.counts().decided;
        self.book.watch();
        let healed = Instant::now();
        while self.book.counts().decided == decided && healed.elapsed() < STALLED {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tokio::time::sleep(Duration::from_millis(episode.rest_ms)).await;
        let stall = self.book.longest_wait().as_secs_f64();
        for act in acts {
            let kind = kinds.entry(act.fault).or_default();
            kind.faults += 1;
            kind.longest_stall_s = kind.longest_stall_s.max(stall);
        }
        Ok(())
    }

    /// Makes a fault, and ends it.
    async fn make(&self, act: &Act, deployment: &TempDeployment) -> anyhow::Result<()> {
        tokio::time::sleep(Duration::from_millis(act.after_ms)).await;
        tracing::info!(fault = %act.fault.name(), act.which, act.lasts_ms, "fault");
        let worker = Role::Worker(act.which % self.workers);
        match act.fault {
            Fault::KillWorker => self.kill(worker, act).await,
            Fault::KillApi => self.kill(Role::Api, act).await,
            Fault::KillUserService => self.kill(Role::UserService, act).await,
            Fault::FreezeWorker => self.freeze(worker, act).await,
            Fault::FreezeApi => self.freeze(Role::Api, act).await,
            Fault::FreezeUserService => self.freeze(Role::UserService, act).await,
            Fault::KillRedis => self.on("redis", &["kill"], "start", act).await,
            Fault::WipeRedis => self.on("redis", &["kill", "wipe"], "start", act).await,
            Fault::FreezeRedis => self.on("redis", &["freeze"], "thaw", act).await,
            Fault::CutRedis => self.on("redis", &["cut"], "start", act).await,
            Fault::KillRabbitmq => self.on("rabbitmq", &["kill"], "start", act).await,
            Fault::FreezeRabbitmq => self.on("rabbitmq", &["freeze"], "thaw", act).await,
            Fault::CutRabbitmq => self.on("rabbitmq", &["cut"], "start", act).await,
            Fault::FullDisk => self.on("rabbitmq", &["fill"], "empty", act).await,
            Fault::KillPostgres => self.on("postgres", &["kill"], "start", act).await,
            Fault::FreezePostgres => self.on("postgres", &["freeze"], "thaw", act).await,
            Fault::CutPostgres => self.on("postgres", &["cut"], "start", act).await,
            Fault::CutLink
            | Fault::ResetLink
            | Fault::SlowLink
            | Fault::StallLink
            | Fault::LostAnswers => {
                self.on_link(act).await;
                Ok(())
            }
            Fault::ClockStep => {
                self.clocked.step(TimeDelta::minutes(i64::from(act.which) - 500));
                over(act).await;
                self.clocked.step(TimeDelta::zero());
                Ok(())
            }
            Fault::Restock => self.restock(act.which, deployment).await,
            Fault::Poison | Fault::ForgedReplyTo | Fault::GiantHeaders => {
                self.noise.send(act, &self.book).await;
                Ok(())
            }
        }
    }

    async fn kill(&self, role: Role, act: &Act) -> anyhow::Result<()> {
        self.crew.kill(role).await?;
        over(act).await;
        self.crew.begin(role)
    }

    async fn freeze(&self, role: Role, act: &Act) -> anyhow::Result<()> {
        self.crew.signal(role, "STOP").await?;
        over(act).await;
        self.crew.signal(role, "CONT").await
    }

    async fn on(&self, server: &str, verbs: &[&str], end: &str, act: &Act) -> anyhow::Result<()> {
        for verb in verbs {
            self.servers.act(verb, server, act.which).await?;
        }
        over(act).await;
        self.servers.act(end, server, act.which).await
    }

    async fn on_link(&self, act: &Act) {
        let proxies = &self.links.proxies;
        let Some(link) = proxies.get(act.which as usize % proxies.len().max(1)) else { return };
        link.set(match act.fault {
            Fault::ResetLink => {
                let reset_after = Some(10_000 + act.which as usize * 100);
                Faults { reset_after, ..Faults::default() }
            }
            Fault::SlowLink => Faults::delay(Duration::from_millis(u64::from(act.which) / 5)),
            Fault::StallLink => Faults::stall(),
            Fault::LostAnswers => Faults::without_answers(),
            _ => Faults::default(),
        });
        over(act).await;
        link.heal();
        // What has lost an answer can't be used again.
        if act.fault != Fault::SlowLink && act.fault != Fault::StallLink {
            link.reset();
        }
    }

    /// Restocks a sale, however often it takes.
    async fn restock(&self, number: u32, deployment: &TempDeployment) -> anyhow::Result<()> {
        let Some((sale, units)) = self.demand.restock(number) else { return Ok(()) };
        let by = Operator { actor: "chaos".into(), origin: "cli".into(), request_id: None };
        let id = AdjustmentId::parse(format!("restock-{number}"))?;
        let begun = Instant::now();
        // A server may be away, also when it is to be connected to.
        let restock = async || {
            let operations = deployment.app.operations().await?;
            anyhow::Ok(operations.restock(&by, &sale, id.clone(), units, Utc::now()).await?)
        };
        while let Err(error) = restock().await {
            ensure!(begun.elapsed() < STALLED, "{error}");
            tokio::time::sleep(LOOK_EVERY * 10).await;
        }
        Ok(())
    }

    /// Waits until every order that was accepted is decided, as long as there is progress.
    async fn settle(&self) {
        let (mut done, mut since) = (0, Instant::now());
        while since.elapsed() < STALLED {
            let counts = self.book.counts();
            if counts.done == counts.accepted {
                return;
            }
            if counts.done > done {
                (done, since) = (counts.done, Instant::now());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
