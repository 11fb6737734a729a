//! A sale beside another one that the user service holds up.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::disruption::Disruption;

use super::buyers::{Users, order};
use super::median;
use super::verification::{CHECK, Setup, end};
use floodgate::broker::{Delay, Queue};
use floodgate::user_service::{Behaviour, Latency};

/// Orders of the sale that goes on while another one hangs: with a check for each, and without.
pub(super) const CHECKED: u32 = 10_000;
pub(super) const PLAIN: u32 = 60_000;
/// One order of the sale that hangs comes with so many of the other one.
const PER_HANGING: u32 = 10;
#[derive(Serialize)]
pub(super) struct Rates {
    alone: Vec<f64>,
    beside_healthy: Vec<f64>,
    beside_hanging: Vec<f64>,
    /// Beside one that hangs, over beside one that doesn't.
    ratio: f64,
}

/// A sale beside another one of which so many orders wait on delay queues and come back.
#[derive(Serialize)]
pub(super) struct Deferred {
    orders: u32,
    alone: Vec<f64>,
    beside: Vec<f64>,
    ratio: f64,
}

/// How another sale fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    None,
    Healthy,
    Hanging,
    /// It hangs, and so many of its orders were deferred before.
    Deferred(u32),
}

impl Display for Rates {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { alone, beside_healthy, beside_hanging, ratio } = self;
        let [alone, healthy, hanging] = [alone, beside_healthy, beside_hanging].map(|r| median(r));
        write!(
            f,
            "{alone:.0} alone, {healthy:.0} beside one, {hanging:.0} as that hangs: {ratio:.2}"
        )
    }
}

impl Display for Deferred {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { orders, alone, beside, ratio } = self;
        let [alone, beside] = [alone, beside].map(|rates| median(rates));
        write!(f, "{alone:.0} alone, {beside:.0} beside {orders}: {ratio:.2}")
    }
}

impl Setup<'_> {
    /// How fast a sale of which every order is created gets on, alone and beside another one.
    pub(super) async fn beside_hanging(
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

    /// How fast a sale without checks gets on, alone and beside one of which `deferred` orders wait.
    pub(super) async fn beside_deferred(
        &mut self,
        deferred: u32,
        rounds: u16,
    ) -> anyhow::Result<Deferred> {
        let (mut alone, mut beside) = (vec![], vec![]);
        for round in 0..rounds {
            eprintln!("a plain sale beside {deferred} deferred: round {} of {rounds}", round + 1);
            for (kind, other, rates) in [
                ("alone", Other::None, &mut alone),
                ("deferred", Other::Deferred(deferred), &mut beside),
            ] {
                rates.push(self.beside(&format!("{kind}-{round}"), false, PLAIN, other).await?);
            }
        }
        let ratio = median(&beside) / median(&alone);
        Ok(Deferred { orders: deferred, alone, beside, ratio })
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
        let hangs = matches!(other, Other::Hanging | Other::Deferred(_));
        let behaviour = Behaviour { latency: Latency::Fixed(CHECK), ..Behaviour::default() };
        let disruption = Disruption {
            hanging_sales: hangs.then(|| beside.clone()).into_iter().collect(),
            hang: Duration::from_mins(5),
            ..Disruption::default()
        };
        let users = Users::disrupted(behaviour, disruption).await?;
        if let Other::Deferred(deferred) = other {
            self.fill((0..deferred).map(|number| order(&beside, number))).await?;
            let workers = self.start(&users, &[])?;
            while self.broker.depth(Queue::Intents).await?.messages > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            end(workers).await?;
        }
        let both = (0..orders).flat_map(|number| {
            let with_other =
                matches!(other, Other::Healthy | Other::Hanging) && number % PER_HANGING == 0;
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
}
