//! `floodgate demo`.

mod buyer;
mod verdicts;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::ApiClient;
use super::output;
use super::server::Server;
use crate::app::App;
use crate::app::temp_deployment::TempDeployment;
use crate::domain::order::SaleId;
use crate::domain::sale::Sale;
use crate::shutdown;
use crate::user_service::{Behaviour, Latency, UserService};
use buyer::{Bought, Buyer};
use verdicts::{Seen, Verdict};

/// What is sold.
const SALE: &str = "bottles";
/// How long a request may take before a buyer takes it for lost.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  floodgate demo --buyers 50000 --user-latency-ms 200\n\n\
    Opens a sale with one bottle for each buyer, lets all buyers order over HTTP at once, some of \
    them twice, some of them impatiently, kills the server with kill -9 when half of the stock is \
    sold, starts it again, and checks the ledger and the events against what buyers were told. Runs \
    embedded, in a temporary file, or, when servers are configured, in a temporary namespace and database. \
    Exits with 1 if anything was broken.")]
pub(super) struct Demo {
    /// Bottles on offer
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    stock: u32,
    /// People who want one
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    buyers: u32,
    /// Buyers who order at the same moment
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    at_once: u32,
    /// How long the user service takes to check a buyer, in milliseconds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    user_latency_ms: u64,
    /// The share of checks that the user service fails, 0 to 0.9
    #[arg(long, default_value_t = 0.02, value_parser = share)]
    user_failures: f64,
    /// Don't kill the server
    #[arg(long)]
    no_crash: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=0.9).contains(share));
    share.ok_or_else(|| "accepted: a number from 0 to 0.9".to_owned())
}

/// What happened.
#[derive(Serialize)]
struct Report {
    mode: &'static str,
    stock: u32,
    buyers: u32,
    sold: u32,
    sold_out: usize,
    rejected: usize,
    /// Second clicks with the same order id.
    duplicates_answered: usize,
    retries: usize,
    user_service_calls: u64,
    crashes: u32,
    seconds: f64,
    buyers_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    verdicts: Vec<Verdict>,
}

/// What buyers went through, all together.
struct Rush {
    bought: Vec<Bought>,
    took: Duration,
    crashes: u32,
}

impl Demo {
    pub(super) async fn run(self, app: &App, config: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        let name = format!("floodgate-demo-{}", std::process::id());
        let deployment = TempDeployment::create(app.settings(), &name).await?;
        let interrupted = shutdown::on_signal()?;
        let shown = tokio::select! {
            shown = self.show(&deployment, config) => shown,
            () = interrupted.cancelled() => Err(anyhow::anyhow!("interrupted")),
        };
        let removed = deployment.remove().await;
        let report = shown?;
        removed?;
        let held = report.verdicts.iter().all(|verdict| verdict.holds);
        if self.json {
            output::json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn show(
        &self,
        deployment: &TempDeployment,
        config: Option<PathBuf>,
    ) -> anyhow::Result<Report> {
        let users = Arc::new(UserService::new(Behaviour {
            latency: Latency::Fixed(Duration::from_millis(self.user_latency_ms)),
            failures: self.user_failures,
            ..Behaviour::default()
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let users_url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(users.clone().serve(listener, stop.clone()));

        let sale = Sale {
            id: SaleId::parse(SALE)?,
            stock: self.stock,
            per_user_limit: Some(1),
            opens_at: None,
            closes_at: None,
            verification: true,
        };
        let seen = Seen::listen(deployment).await?;
        let mut server = Server::up(deployment, config, &users_url).await?;
        deployment.app.ledger().await?.open(std::slice::from_ref(&sale)).await?;
        let rush = self.rush(&mut server, &seen).await?;
        let (decisions, verdicts) = verdicts::check(deployment, &sale, &rush.bought, seen).await?;
        server.stop().await?;
        stop.cancel();
        serving.await??;

        let count = |of: fn(&Bought) -> usize| rush.bought.iter().map(of).sum();
        let seconds = rush.took.as_secs_f64();
        let mut waits: Vec<f64> =
            rush.bought.iter().map(|bought| bought.waited.as_secs_f64() * 1e3).collect();
        waits.sort_by(f64::total_cmp);
        let percentile = |percent| waits[(waits.len() - 1) * percent / 100];
        Ok(Report {
            mode: deployment.mode(),
            stock: self.stock,
            buyers: self.buyers,
            sold: decisions.sold,
            sold_out: decisions.sold_out,
            rejected: decisions.rejected,
            duplicates_answered: count(|bought| bought.duplicates),
            retries: count(|bought| bought.retries),
            user_service_calls: users.calls(),
            crashes: rush.crashes,
            seconds,
            buyers_per_s: f64::from(self.buyers) / seconds,
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            verdicts,
        })
    }

    /// Lets all buyers buy, and has the server crash in the middle of it.
    async fn rush(&self, server: &mut Server, seen: &Seen) -> anyhow::Result<Rush> {
        let bar = ProgressBar::new(self.buyers.into());
        let style = "{wide_bar} {pos} of {len} buyers answered, {per_sec}";
        bar.set_style(ProgressStyle::with_template(style)?);
        let begun = Instant::now();
        let next = Arc::new(AtomicU32::new(0));
        let mut queue = JoinSet::new();
        for _ in 0..self.at_once.min(self.buyers) {
            queue.spawn(buy_in_turn(server.address(), next.clone(), self.buyers, bar.clone()));
        }
        let mut crashes = 0;
        if !self.no_crash && seen.wait_for_created(self.stock.min(self.buyers).div_ceil(2)).await {
            server.crash_and_restart().await?;
            crashes += 1;
        }
        let mut bought = Vec::with_capacity(self.buyers as usize);
        while let Some(some) = queue.join_next().await {
            bought.extend(some??);
        }
        bar.finish_and_clear();
        Ok(Rush { bought, took: begun.elapsed(), crashes })
    }
}

/// Has one buyer after the other buy.
async fn buy_in_turn(
    address: SocketAddr,
    next: Arc<AtomicU32>,
    buyers: u32,
    bar: ProgressBar,
) -> anyhow::Result<Vec<Bought>> {
    let sale = SaleId::parse(SALE)?;
    let client = ApiClient::new(address, REQUEST_LIMIT)?;
    let mut bought = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= buyers {
            return Ok(bought);
        }
        let buyer = Buyer::new(&sale, number)?;
        let result = buyer.buy(&client).await;
        bought.extend(result.with_context(|| format!("buyer {number}"))?);
        bar.inc(1);
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    let crashes = match report.crashes {
        0 => "none".to_owned(),
        count => format!("{count}, by kill -9 while orders were on their way"),
    };
    output::table(
        ["", ""],
        [
            ["mode", report.mode],
            ["sold", &format!("{} of {}", report.sold, report.stock)],
            ["told sold out", &report.sold_out.to_string()],
            ["rejected", &report.rejected.to_string()],
            ["duplicates answered", &report.duplicates_answered.to_string()],
            ["retries", &report.retries.to_string()],
            ["user service calls", &report.user_service_calls.to_string()],
            ["server crashes", &crashes],
            ["time", &format!("{:.1} s", report.seconds)],
            ["buyers answered", &format!("{:.0} a second", report.buyers_per_s)],
            [
                "a buyer waited",
                &format!("p50 {:.0} ms, p99 {:.0} ms", report.p50_ms, report.p99_ms),
            ],
        ]
        .map(|row| row.map(str::to_owned)),
    )?;
    output::text("\n")?;
    for Verdict { holds, invariant, found } in &report.verdicts {
        let word = if *holds { "true " } else { "FALSE" };
        output::text(&format!("{word}  {invariant}: {found}\n"))?;
    }
    Ok(())
}
