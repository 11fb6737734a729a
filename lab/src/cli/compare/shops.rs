//! The processes of the designs that are no floodgate.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::ExposeSecret;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::rush::{Gateway, SALE};
use crate::compare::shop::{self, Shop, Stats, Times};
use crate::compare::store::Store;
use crate::compare::{Technique, designs};
use floodgate::app::{App, listen};
use floodgate::cli::client::ApiClient;
use floodgate::domain::order::SaleId;

/// How long a shop may take to finish what is in flight.
const PATIENCE: Duration = Duration::from_mins(1);

/// One process that sells by one of the designs, until its standard input ends.
#[derive(Debug, Args)]
pub(crate) struct ShopArgs {
    #[arg(long)]
    design: Technique,
    #[arg(long)]
    prefix: String,
    #[arg(long)]
    lock_ms: u64,
    #[arg(long)]
    acquire_ms: u64,
    #[arg(long, default_value_t = 0)]
    share: u32,
    #[arg(long)]
    other: Vec<String>,
}

impl ShopArgs {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<()> {
        let url = app.settings().redis_url.expose_secret();
        let redis = Store::connect(url, &self.prefix).await.context("Redis")?;
        let mut others = Vec::with_capacity(self.other.len());
        for url in &self.other {
            others.push(Store::connect(url, &self.prefix).await.context("another Redis")?);
        }
        let design = designs::of(self.design, self.share.into()).context("no design of a shop")?;
        let times = Times {
            lock: Duration::from_millis(self.lock_ms),
            acquire: Duration::from_millis(self.acquire_ms),
        };
        let (users, sale_id) = (app.verifier()?.context("no user service")?, SaleId::parse(SALE)?);
        let longest_under_lock = AtomicU64::new(0);
        let shop = Shop { store: redis, others, users, sale_id, times, longest_under_lock };
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into())?;
        floodgate::cli::output::text(&format!("{}\n", listener.local_addr()?))?;
        let closing = CancellationToken::new();
        let parent_left = closing.clone();
        // Ends with whoever started it, however that ends.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            parent_left.cancel();
        });
        Ok(shop::serve(shop, design, listener, closing).await?)
    }
}

/// What a shop is started with.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub design: Technique,
    /// Of its keys.
    pub prefix: String,
    /// Redis, through its proxy, and the others of Redlock, through theirs.
    pub redis_url: String,
    pub other_urls: Arc<Vec<String>>,
    pub users_url: String,
    pub times: Times,
    /// How long the user service may take.
    pub http: Duration,
}

struct Process {
    child: Child,
    address: SocketAddr,
}

/// The shops of one run.
pub(super) struct Shops {
    surroundings: Surroundings,
    running: Vec<Process>,
    gateway: Arc<Gateway>,
}

impl Shops {
    /// Starts `processes` of them and waits until they sell.
    pub(super) async fn start(
        surroundings: Surroundings,
        stock: u32,
        processes: usize,
    ) -> anyhow::Result<Self> {
        let shares = (0..processes).map(|number| designs::share(stock, processes, number));
        let starting = shares.map(|share| Process::start(&surroundings, share));
        let running = futures_util::future::try_join_all(starting).await?;
        let addresses = running.iter().map(|process| process.address).collect();
        let by_user = surroundings.design == Technique::ShardedStock;
        let gateway = Arc::new(Gateway::new(addresses, by_user));
        Ok(Self { surroundings, running, gateway })
    }

    pub(super) fn gateway(&self) -> Arc<Gateway> {
        self.gateway.clone()
    }

    /// As `kill -9`. Its buyers go to the others.
    pub(super) async fn kill_one(&mut self) -> anyhow::Result<()> {
        let mut process = self.running.pop().context("no process is left")?;
        process.child.kill().await?;
        self.gateway.leave_out(process.address);
        Ok(())
    }

    /// Starts one more, to which nobody is sent yet. It has no share of a stock that is split already.
    pub(super) async fn prepare_one(&mut self) -> anyhow::Result<()> {
        self.running.push(Process::start(&self.surroundings, 0).await?);
        Ok(())
    }

    /// Sends buyers to the one that was started last, too.
    pub(super) fn add_one(&self) {
        if let Some(process) = self.running.last() {
            self.gateway.add(process.address);
        }
    }

    /// Waits until every purchase has ended, and then ends them all.
    pub(super) async fn close(self) -> anyhow::Result<Stats> {
        let mut all = Stats { longest_under_lock_ms: 0.0, left: None };
        for process in self.running {
            let answer = ApiClient::new(process.address, PATIENCE)?.get("/stats").await?;
            let stats: Stats = serde_json::from_slice(&answer.body)?;
            all.longest_under_lock_ms = all.longest_under_lock_ms.max(stats.longest_under_lock_ms);
            // A process that has said "sold out" to many stands below zero: it has none left.
            all.left = match (all.left, stats.left.map(|left| left.max(0))) {
                (Some(one), Some(other)) => Some(one + other),
                (one, other) => one.or(other),
            };
        }
        Ok(all)
    }
}

impl Process {
    async fn start(surroundings: &Surroundings, share: u32) -> anyhow::Result<Self> {
        let Surroundings { design, prefix, redis_url, other_urls, users_url, times, http } =
            surroundings;
        let mut command = Command::new(std::env::current_exe()?);
        let millis = |time: Duration| time.as_millis().to_string();
        command
            .args(["compare-shop", "--design", design.name(), "--prefix", prefix])
            .args(["--lock-ms", &millis(times.lock), "--acquire-ms", &millis(times.acquire)])
            .args(["--share", &share.to_string()])
            .args(other_urls.iter().flat_map(|url| ["--other", url]))
            .env("FLOODGATE_REDIS_URL", redis_url)
            .env("FLOODGATE_VERIFICATION__URL", users_url)
            .env("FLOODGATE_VERIFICATION__TIMEOUT_MS", millis(*http))
            .env("FLOODGATE_LOG__FILTER", "error")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("could not start a shop")?;
        let output = child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let Ok(address) = line.trim().parse() else {
            bail!("a shop did not start; see what it printed above");
        };
        Ok(Self { child, address })
    }
}
