//! One sale by one design.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::intake::{Intake, Users};
use super::rush::{self, Crowd, Gateway, Rushed};
use super::shops::{Shops, Surroundings};
use crate::compare::Technique;
use crate::compare::outcomes::{Sold, count};
use crate::compare::report::{Conditions, HTTP, LOCK, Run, Scenario, lost};
use crate::compare::shop::Times;
use crate::compare::store::Store;
use floodgate::app::listen;
use floodgate::config::Settings;
use floodgate::user_service::{Behaviour, Latency, UserService};

/// Time of the user service when all is well, and when it is slow.
const FAST: Duration = Duration::from_millis(2);
const SLOW: Duration = Duration::from_millis(50);
/// How long the user service hangs in the incident, in lifetimes of a lock.
const HANGS: f64 = 2.5;
/// How long it works between, at the least and at the most: no rhythm that a design could fall into.
const WORKS: (f64, f64) = (0.5, 2.0);
/// With an event in the middle of a sale, no more than this part of the stock is asked for at once. Else
/// a quick design has sold everything before anything can happen.
const WAVES: u32 = 5;

/// What all sales of a comparison have in common.
pub(super) struct Stage<'a> {
    /// Of floodgate, with Redis through its proxy.
    pub settings: Settings,
    pub config: Option<PathBuf>,
    pub redis_url: String,
    pub other_urls: Arc<Vec<String>>,
    pub store: &'a Store,
    pub prefix: String,
    pub conditions: Conditions,
    pub interrupted: CancellationToken,
}

/// The processes that sell.
enum Sellers {
    Shops(Shops),
    Floodgate(Box<Intake>),
}

/// What the sellers know afterwards.
struct Closed {
    orders: Vec<String>,
    left: Option<i64>,
    longest_under_lock_ms: Option<f64>,
}

impl Stage<'_> {
    /// Opens a sale, lets everybody buy, and counts.
    pub(super) async fn sell(
        &self,
        design: Technique,
        scenario: Scenario,
        (name, round): (&str, u32),
        bar: ProgressBar,
    ) -> anyhow::Result<Run> {
        let latency = match scenario {
            Scenario::Slow => SLOW,
            Scenario::Incident => SLOW.mul_f64(self.conditions.scale),
            _ => FAST,
        };
        let latency = Latency::Fixed(latency);
        let users = Arc::new(UserService::new(Behaviour { latency, ..Behaviour::default() }));
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let users_url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let _serving = AbortOnDropHandle::new(tokio::spawn(users.clone().serve(listener, stop)));

        self.store.open(self.conditions.stock).await?;
        let mut sellers = self.open(design, scenario, name, users_url).await?;
        let before = users.calls();
        let hanging = (scenario == Scenario::Incident).then(|| self.hang(users.clone(), round));
        let rushed = self.rush(&mut sellers, scenario, bar).await;
        drop(hanging);
        users.release();
        let (rushed, event_happened) = match rushed {
            Ok(rushed) => rushed,
            Err(error) => {
                sellers.abandon().await?;
                return Err(error);
            }
        };
        let closed = self.close(sellers, design).await?;
        self.store.remove().await?;
        let counts = count(Sold {
            stock: self.conditions.stock,
            buyers: self.conditions.buyers,
            answers: &rushed.answers,
            orders: &closed.orders,
            took: rushed.took,
        });
        Ok(Run {
            design,
            scenario,
            user_service_calls: users.calls() - before,
            longest_under_lock_ms: closed.longest_under_lock_ms,
            left: closed.left,
            lost: closed.left.map(|left| lost(self.conditions.stock, counts.sold, left)),
            tries_again: rushed.again,
            event_happened,
            counts,
        })
    }

    async fn open(
        &self,
        design: Technique,
        scenario: Scenario,
        name: &str,
        users_url: String,
    ) -> anyhow::Result<Sellers> {
        let scale = if scenario.is_scaled() { self.conditions.scale } else { 1.0 };
        let (lock, http) = (LOCK.mul_f64(scale), HTTP.mul_f64(scale));
        if design == Technique::Floodgate {
            let mut settings = self.settings.clone();
            settings.redis_url = SecretString::from(self.redis_url.clone());
            let (config, size) =
                (self.config.clone(), (self.conditions.stock, self.conditions.processes as usize));
            let users = Users { url: users_url, limit: http };
            let intake = Intake::start(&settings, config, name, &users, size).await?;
            return Ok(Sellers::Floodgate(Box::new(intake)));
        }
        let surroundings = Surroundings {
            design,
            prefix: self.prefix.clone(),
            redis_url: self.redis_url.clone(),
            other_urls: self.other_urls.clone(),
            users_url,
            times: Times { lock, acquire: lock },
            http,
        };
        let Conditions { stock, processes, .. } = self.conditions;
        Ok(Sellers::Shops(Shops::start(surroundings, stock, processes as usize).await?))
    }

    /// Has the user service hang from the opening on, for longer than a lock lives but not so long that
    /// the shop gives up on it, work for a while, hang again, and so on; in the same way for every design
    /// of one `round`.
    fn hang(&self, users: Arc<UserService>, round: u32) -> AbortOnDropHandle<()> {
        let lock = LOCK.mul_f64(self.conditions.scale);
        AbortOnDropHandle::new(tokio::spawn(async move {
            for number in 0_u32.. {
                users.hold();
                tokio::time::sleep(lock.mul_f64(HANGS)).await;
                users.release();
                let share = rush::irregular(round, number);
                let works = WORKS.0 + (WORKS.1 - WORKS.0) * share;
                tokio::time::sleep(lock.mul_f64(works)).await;
            }
        }))
    }

    /// Lets everybody buy, and has happen what the scenario says. Says whether it did.
    async fn rush(
        &self,
        sellers: &mut Sellers,
        scenario: Scenario,
        bar: ProgressBar,
    ) -> anyhow::Result<(Rushed, bool)> {
        let (gateway, half) = (sellers.gateway(), self.conditions.stock.div_ceil(2));
        let Conditions { buyers, at_once, limit_s, .. } = self.conditions;
        let limit = Duration::from_secs(limit_s);
        let has_event = !matches!(scenario, Scenario::Fast | Scenario::Slow | Scenario::Incident);
        let wave = self.conditions.stock.div_ceil(WAVES);
        let at_once = if has_event { at_once.min(wave) } else { at_once };
        // Starting it takes longer than a quick design takes to sell everything.
        if let (Scenario::Added, Sellers::Shops(shops)) = (scenario, &mut *sellers) {
            shops.prepare_one().await?;
        }
        let crowd = Crowd { gateway, buyers, at_once, limit, bar };
        let event = async |mut bought: watch::Receiver<u32>| {
            if !has_event {
                return std::future::pending().await;
            }
            bought.wait_for(|&bought| bought >= half).await.context("nobody buys any more")?;
            match (scenario, sellers) {
                (Scenario::Kill, Sellers::Shops(shops)) => shops.kill_one().await,
                (Scenario::Added, Sellers::Shops(shops)) => {
                    shops.add_one();
                    Ok(())
                }
                (Scenario::Kill, Sellers::Floodgate(intake)) => intake.kill_worker().await,
                (Scenario::KillApi, Sellers::Floodgate(intake)) => intake.kill_api().await,
                _ => Ok(()),
            }
        };
        let (rushed, happened) = tokio::select! {
            rushed = crowd.rush(event) => rushed?,
            () = self.interrupted.cancelled() => bail!("interrupted"),
        };
        Ok((rushed, happened.is_some()))
    }

    async fn close(&self, sellers: Sellers, design: Technique) -> anyhow::Result<Closed> {
        match sellers {
            Sellers::Shops(shops) => {
                let stats = shops.close().await?;
                let left = self.store.left(design).await?.or(stats.left);
                let longest = stats.longest_under_lock_ms;
                let longest_under_lock_ms = (longest > 0.0).then_some(longest);
                Ok(Closed { orders: self.store.orders().await?, left, longest_under_lock_ms })
            }
            Sellers::Floodgate(intake) => {
                let closed = intake.close(self.conditions.buyers).await?;
                let left = Some(closed.left);
                Ok(Closed { orders: closed.orders, left, longest_under_lock_ms: None })
            }
        }
    }
}

impl Sellers {
    fn gateway(&self) -> Arc<Gateway> {
        match self {
            Self::Shops(shops) => shops.gateway(),
            Self::Floodgate(intake) => intake.gateway(),
        }
    }

    async fn abandon(self) -> anyhow::Result<()> {
        match self {
            Self::Shops(_) => Ok(()),
            Self::Floodgate(intake) => intake.abandon().await,
        }
    }
}
