//! Floodgate itself, as one of the designs: the API, workers, queue and ledger.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::rush::{Gateway, SALE};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::client::ApiClient;
use floodgate::cli::process;
use floodgate::cli::server::Server;
use floodgate::config::Settings;
use floodgate::domain::decision::Outcome;
use floodgate::domain::order::{OrderId, OrderKey, SaleId};
use floodgate::domain::sale::Sale;

/// How long anything may take before the sale and after it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is ordered before the sale, so that every process has its connections.
const WARM_UP: &str = "warm-up";
/// Orders of that for each worker.
const WARM_UPS: usize = 8;

/// Where the user service is, and how long it may take.
pub(super) struct Users {
    pub url: String,
    pub limit: Duration,
}

/// What floodgate knows after a sale.
pub(super) struct Closed {
    /// The buyer of each order that was created, by the ledger.
    pub orders: Vec<String>,
    /// The stock left by Redis's counter.
    pub left: i64,
}

/// floodgate in a temporary deployment.
pub(super) struct Intake {
    deployment: TempDeployment,
    api: Server,
    workers: Vec<Child>,
    gateway: Arc<Gateway>,
}

impl Intake {
    /// Starts the API and `workers`, opens the sale, and waits until orders are decided.
    pub(super) async fn start(
        settings: &Settings,
        config: Option<PathBuf>,
        name: &str,
        users: &Users,
        (stock, workers): (u32, usize),
    ) -> anyhow::Result<Self> {
        let deployment = TempDeployment::create(settings, name).await?;
        match Self::launch(&deployment, config, users, stock, workers).await {
            Ok((api, workers)) => {
                let gateway = Arc::new(Gateway::new(vec![api.address()], false));
                Ok(Self { deployment, api, workers, gateway })
            }
            Err(error) => {
                deployment.remove().await?;
                Err(error)
            }
        }
    }

    async fn launch(
        deployment: &TempDeployment,
        config: Option<PathBuf>,
        users: &Users,
        stock: u32,
        workers: usize,
    ) -> anyhow::Result<(Server, Vec<Child>)> {
        let warm_ups = workers * WARM_UPS;
        let sale = |id: &str, stock| {
            anyhow::Ok(Sale {
                id: SaleId::parse(id)?,
                stock,
                per_user_limit: None,
                opens_at: None,
                closes_at: None,
                verification: true,
            })
        };
        let sales = [sale(SALE, stock)?, sale(WARM_UP, u32::try_from(warm_ups)?)?];
        deployment.app.ledger().await?.open(&sales).await?;
        let mut running = Vec::with_capacity(workers);
        for _ in 0..workers {
            let mut command: Command =
                process::floodgate(deployment.app.settings(), config.as_deref())?;
            command
                .arg("worker")
                .env("FLOODGATE_VERIFICATION__URL", &users.url)
                .env("FLOODGATE_VERIFICATION__TIMEOUT_MS", users.limit.as_millis().to_string())
                .stdout(Stdio::null());
            running.push(command.spawn().context("could not start a worker")?);
        }
        let api = Server::api(deployment, config).await?;
        warm_up(api.address(), warm_ups).await?;
        Ok((api, running))
    }

    pub(super) fn gateway(&self) -> Arc<Gateway> {
        self.gateway.clone()
    }

    /// As `kill -9` to a worker. What was in flight goes to the others.
    pub(super) async fn kill_worker(&mut self) -> anyhow::Result<()> {
        self.workers.pop().context("no worker is left")?.kill().await?;
        Ok(())
    }

    /// As `kill -9` to the API, and then a new one at the same address.
    pub(super) async fn kill_api(&mut self) -> anyhow::Result<()> {
        self.api.crash_and_restart().await
    }

    /// Waits until all is quiet, ends every process, reads what was sold to `buyers`, and removes all.
    pub(super) async fn close(self, buyers: u32) -> anyhow::Result<Closed> {
        let closed = Self::finish(&self.deployment, self.api, self.workers, buyers).await;
        self.deployment.remove().await?;
        closed
    }

    /// Removes all, in the middle of whatever is going on.
    pub(super) async fn abandon(self) -> anyhow::Result<()> {
        drop((self.api, self.workers));
        self.deployment.remove().await
    }

    async fn finish(
        deployment: &TempDeployment,
        api: Server,
        workers: Vec<Child>,
        buyers: u32,
    ) -> anyhow::Result<Closed> {
        api.stop().await?;
        futures_util::future::try_join_all(workers.into_iter().map(process::drain)).await?;
        let left = left(deployment).await?;
        let sale_id = SaleId::parse(SALE)?;
        let orders: Vec<OrderKey> = (0..buyers)
            .map(|number| {
                let order_id = OrderId::parse(format!("o-{number}"))?;
                Ok(OrderKey { sale_id: sale_id.clone(), order_id })
            })
            .collect::<anyhow::Result<_>>()?;
        let decisions = deployment.app.ledger().await?.decisions(&orders).await?;
        let created =
            decisions.into_iter().flatten().filter(|decision| decision.outcome == Outcome::Created);
        let orders = created.map(|decision| decision.order.user_id.as_str().to_owned()).collect();
        Ok(Closed { orders, left })
    }
}

/// The stock left. What Redis counts is a hint and sells nothing.
async fn left(deployment: &TempDeployment) -> anyhow::Result<i64> {
    let states = deployment.app.ledger().await?.sales(Some(&[SaleId::parse(SALE)?])).await?;
    Ok(states.first().context("the sale is gone")?.remaining().into())
}

async fn warm_up(api: SocketAddr, orders: usize) -> anyhow::Result<()> {
    let sale = SaleId::parse(WARM_UP)?;
    let mut ordering = JoinSet::new();
    for number in 0..orders {
        let sale = sale.clone();
        ordering.spawn(async move {
            let client = ApiClient::new(api, PATIENCE)?;
            let body = serde_json::json!({ "user_id": format!("w-{number}"), "quantity": 1 });
            let wait_s = u32::try_from(PATIENCE.as_secs())?;
            client.post_order(&sale, body.to_string().as_bytes(), None, Some(wait_s)).await
        });
    }
    while let Some(answer) = ordering.join_next().await {
        let status = answer??.status;
        if status != 200 {
            bail!("an order before the sale was answered {status}");
        }
    }
    Ok(())
}
