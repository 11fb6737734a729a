//! The faults of a run, drawn from its seed.

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde::Serialize;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "named after what is done")]
pub enum Fault {
    KillWorker,
    FreezeWorker,
    KillApi,
    FreezeApi,
    KillUserService,
    FreezeUserService,
    KillRedis,
    WipeRedis,
    FreezeRedis,
    KillRabbitmq,
    FreezeRabbitmq,
    KillPostgres,
    FreezePostgres,
    /// RabbitMQ's alarm for a disk with too little room.
    FullDisk,
    CutLink,
    ResetLink,
    SlowLink,
    StallLink,
    LostAnswers,
    ClockStep,
    Restock,
    Poison,
    ForgedReplyTo,
    GiantHeaders,
    CutRedis,
    CutRabbitmq,
    CutPostgres,
}

/// What a run is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ground {
    /// One of each server, behind proxies.
    Services,
    /// Clusters in containers, whose nodes are killed and cut off.
    Containers,
}

const BOTH: &[Ground] = &[Ground::Services, Ground::Containers];
const SERVICES: &[Ground] = &[Ground::Services];
const CONTAINERS: &[Ground] = &[Ground::Containers];

/// Each with its weight, how long it lasts at least and at most, in milliseconds, and where it can be made. One that ends
/// itself lasts no time.
const FAULTS: [(Fault, u32, u64, u64, &[Ground]); 27] = [
    (Fault::KillWorker, 10, 100, 2000, BOTH),
    (Fault::FreezeWorker, 8, 200, 5000, BOTH),
    (Fault::KillApi, 5, 100, 2000, BOTH),
    (Fault::FreezeApi, 4, 200, 4000, BOTH),
    (Fault::KillUserService, 4, 200, 3000, BOTH),
    (Fault::FreezeUserService, 4, 200, 4000, BOTH),
    (Fault::KillRedis, 5, 100, 2000, BOTH),
    (Fault::WipeRedis, 5, 100, 1000, BOTH),
    (Fault::FreezeRedis, 5, 200, 3000, BOTH),
    (Fault::KillRabbitmq, 2, 100, 1000, BOTH),
    (Fault::FreezeRabbitmq, 3, 200, 3000, BOTH),
    (Fault::KillPostgres, 4, 100, 1500, BOTH),
    (Fault::FreezePostgres, 4, 200, 3000, BOTH),
    (Fault::FullDisk, 3, 500, 3000, BOTH),
    (Fault::CutLink, 10, 0, 0, SERVICES),
    (Fault::ResetLink, 8, 500, 2000, SERVICES),
    (Fault::SlowLink, 8, 500, 3000, SERVICES),
    (Fault::StallLink, 6, 200, 3000, SERVICES),
    (Fault::LostAnswers, 8, 200, 2000, SERVICES),
    (Fault::ClockStep, 6, 500, 3000, BOTH),
    (Fault::Restock, 12, 0, 0, BOTH),
    (Fault::Poison, 6, 0, 0, BOTH),
    (Fault::ForgedReplyTo, 6, 0, 0, BOTH),
    (Fault::GiantHeaders, 6, 0, 0, BOTH),
    (Fault::CutRedis, 6, 1000, 8000, CONTAINERS),
    (Fault::CutRabbitmq, 6, 1000, 8000, CONTAINERS),
    (Fault::CutPostgres, 6, 1000, 8000, CONTAINERS),
];

/// The most faults of one episode.
const MOST: u32 = 3;
/// How long an episode takes to begin all of its faults.
const BEGIN_WITHIN_MS: u64 = 500;
/// How long there is no fault between two episodes.
const REST_MS: std::ops::RangeInclusive<u64> = 1500..=3000;

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Act {
    /// Which.
    pub fault: Fault,
    /// Chooses what it happens to, where there are several.
    pub which: u32,
    /// When, from the beginning of its episode.
    pub after_ms: u64,
    /// For how long.
    pub lasts_ms: u64,
}

/// Faults that overlap. When all are over, things must go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Episode {
    /// The time without a fault before it.
    pub rest_ms: u64,
    /// Its faults, each of another kind.
    pub acts: Vec<Act>,
}

/// The episodes of `seed`, without an end. Restocks are numbered.
pub fn episodes(seed: u64, ground: Ground) -> impl Iterator<Item = Episode> + Send {
    let mut random = StdRng::seed_from_u64(seed);
    let mut restocks = 0..;
    std::iter::from_fn(move || {
        let rest_ms = random.random_range(REST_MS);
        let mut acts: Vec<Act> = Vec::new();
        for _ in 0..random.random_range(1..=MOST) {
            let mut act = draw(&mut random, ground);
            if acts.iter().any(|other| excludes(other.fault, act.fault)) {
                continue;
            }
            if act.fault == Fault::Restock {
                act.which = restocks.next()?;
            }
            acts.push(act);
        }
        Some(Episode { rest_ms, acts })
    })
}

fn draw(random: &mut impl Rng, ground: Ground) -> Act {
    let faults: Vec<_> = FAULTS.iter().filter(|fault| fault.4.contains(&ground)).collect();
    let total = faults.iter().map(|(_, weight, ..)| weight).sum();
    let mut left: u32 = random.random_range(0..total);
    let chosen = faults.iter().find(|(_, weight, ..)| {
        let is_it = left < *weight;
        left = left.saturating_sub(*weight);
        is_it
    });
    let (fault, _, least, most, _) = **chosen.unwrap_or(&faults[0]);
    Act {
        fault,
        which: random.random_range(0..1000),
        after_ms: random.random_range(0..BEGIN_WITHIN_MS),
        lasts_ms: random.random_range(least..=most),
    }
}

/// Whether two faults are about the same thing, so that the end of one would be the end of the other.
fn excludes(one: Fault, other: Fault) -> bool {
    one == other || (one.subject().is_some() && one.subject() == other.subject())
}

/// What faults happen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Worker,
    Api,
    UserService,
    Redis,
    Rabbitmq,
    Postgres,
    Link,
}

impl Fault {
    fn subject(self) -> Option<Subject> {
        Some(match self {
            Self::KillWorker | Self::FreezeWorker => Subject::Worker,
            Self::KillApi | Self::FreezeApi => Subject::Api,
            Self::KillUserService | Self::FreezeUserService => Subject::UserService,
            Self::KillRedis | Self::WipeRedis | Self::FreezeRedis | Self::CutRedis => {
                Subject::Redis
            }
            Self::KillRabbitmq | Self::FreezeRabbitmq | Self::FullDisk | Self::CutRabbitmq => {
                Subject::Rabbitmq
            }
            Self::KillPostgres | Self::FreezePostgres | Self::CutPostgres => Subject::Postgres,
            Self::ResetLink | Self::SlowLink | Self::StallLink | Self::LostAnswers => Subject::Link,
            Self::CutLink
            | Self::ClockStep
            | Self::Restock
            | Self::Poison
            | Self::ForgedReplyTo
            | Self::GiantHeaders => return None,
        })
    }

    /// Its name, as in the report.
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_owned()))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_again_and_every_kind_comes_soon() {
        for ground in [Ground::Services, Ground::Containers] {
            let of = |seed| episodes(seed, ground).take(200).collect::<Vec<_>>();
            assert_eq!(of(1), of(1));
            assert_ne!(of(1), of(2));
            let possible = FAULTS.iter().filter(|fault| fault.4.contains(&ground)).count();
            for seed in 1..20 {
                let acts: Vec<Act> =
                    of(seed).into_iter().flat_map(|episode| episode.acts).collect();
                assert!(acts.len() > 250, "{}", acts.len());
                let kinds: BTreeSet<Fault> = acts.iter().map(|act| act.fault).collect();
                assert_eq!(kinds.len(), possible, "seed {seed}");
                let restocks = acts.iter().filter(|act| act.fault == Fault::Restock);
                assert!(restocks.map(|act| act.which).zip(0..).all(|(number, n)| number == n));
            }
        }
    }
}
