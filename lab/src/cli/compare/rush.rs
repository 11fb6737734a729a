//! Buyers of a comparison, the same for every design: they post orders as to floodgate's API, and ask
//! again until they know.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::compare::designs;
use crate::compare::outcomes::{Answer, Final};
use floodgate::cli::client::{Answer as HttpAnswer, ApiClient};
use floodgate::domain::order::{OrderId, SaleId};

/// What is sold.
pub(super) const SALE: &str = "bottles";
/// How long a buyer waits for a decision in one request, in seconds.
const WAIT_S: u32 = 30;
/// Pauses before asking again, in milliseconds: from, and up to.
const PAUSE_MS: (f64, f64) = (20.0, 100.0);

/// The processes that sell, and which one a buyer is sent to.
pub(super) struct Gateway {
    processes: RwLock<Vec<SocketAddr>>,
    /// By a hash of the user id, instead of in turn.
    by_user: bool,
    turn: AtomicUsize,
}

impl Gateway {
    pub(super) fn new(processes: Vec<SocketAddr>, by_user: bool) -> Self {
        Self { processes: RwLock::new(processes), by_user, turn: AtomicUsize::new(0) }
    }

    fn choose(&self, buyer: &str) -> Option<SocketAddr> {
        let processes = self.processes.read();
        let count = processes.len().max(1);
        let index = if self.by_user {
            designs::index(buyer, count)
        } else {
            self.turn.fetch_add(1, Ordering::Relaxed) % count
        };
        processes.get(index).copied()
    }

    /// Sends nobody there from now on.
    pub(super) fn leave_out(&self, process: SocketAddr) {
        let mut processes = self.processes.write();
        processes.retain(|&other| other != process);
    }

    pub(super) fn add(&self, process: SocketAddr) {
        self.processes.write().push(process);
    }
}

/// People who want a unit each.
pub(super) struct Crowd {
    pub gateway: Arc<Gateway>,
    pub buyers: u32,
    /// How many of them ask at the same time.
    pub at_once: u32,
    /// When they give up.
    pub limit: Duration,
    /// Advances with each buyer who has an answer.
    pub bar: ProgressBar,
}

/// What all buyers share.
struct Shared {
    gateway: Arc<Gateway>,
    begun: Instant,
    limit: Duration,
    buyers: u32,
    next: AtomicU32,
    answers: Mutex<Vec<Answer>>,
    again: AtomicU64,
    bought: watch::Sender<u32>,
    bar: ProgressBar,
}

/// What buyers went through.
pub(super) struct Rushed {
    pub answers: Vec<Answer>,
    /// Tries that had to be repeated.
    pub again: u64,
    pub took: Duration,
}

impl Crowd {
    /// Lets everybody buy, until all have an answer or the limit is reached. Meanwhile `event` may wait
    /// for a number of units to be sold; it is dropped when the rush is over.
    pub(super) async fn rush<T>(
        self,
        event: impl AsyncFnOnce(watch::Receiver<u32>) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Rushed, Option<T>)> {
        let (bought, seen) = watch::channel(0);
        let shared = Arc::new(Shared {
            gateway: self.gateway,
            begun: Instant::now(),
            limit: self.limit,
            buyers: self.buyers,
            next: AtomicU32::new(0),
            answers: Mutex::default(),
            again: AtomicU64::new(0),
            bought,
            bar: self.bar,
        });
        let mut indexes = JoinSet::new();
        for _ in 0..self.at_once.min(self.buyers) {
            indexes.spawn(stand_in_line(shared.clone()));
        }
        let happened = {
            let all = async {
                while let Some(ended) = indexes.join_next().await {
                    ended??;
                }
                anyhow::Ok(())
            };
            let mut all = std::pin::pin!(tokio::time::timeout(self.limit, all));
            tokio::select! {
                ended = &mut all => {
                    ended.unwrap_or(Ok(()))?;
                    None
                }
                happened = event(seen) => {
                    let happened = happened?;
                    all.await.unwrap_or(Ok(()))?;
                    Some(happened)
                }
            }
        };
        let took = shared.begun.elapsed();
        indexes.shutdown().await;
        let mut answers = shared.answers.lock();
        let answers = std::mem::take(&mut *answers);
        Ok((Rushed { answers, again: shared.again.load(Ordering::Relaxed), took }, happened))
    }
}

/// One index at the counter: serves one buyer after the other.
async fn stand_in_line(shared: Arc<Shared>) -> anyhow::Result<()> {
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.buyers {
            return Ok(());
        }
        let asked = shared.begun.elapsed();
        let (buyer, told) = buy(&shared, number).await?;
        let answer = Answer { buyer, told, asked, answered: shared.begun.elapsed() };
        shared.answers.lock().push(answer);
        if told == Final::Bought {
            shared.bought.send_modify(|bought| *bought += 1);
        }
        shared.bar.inc(1);
    }
}

/// Asks until there is an answer. Every try has the same order id; floodgate alone makes use of it.
async fn buy(shared: &Shared, number: u32) -> anyhow::Result<(String, Final)> {
    let (sale, order) = (SaleId::parse(SALE)?, OrderId::parse(format!("o-{number}"))?);
    let buyer = format!("u-{number}");
    let body = serde_json::json!({ "user_id": buyer, "quantity": 1 }).to_string();
    let mut tries = 0;
    loop {
        if let Some(process) = shared.gateway.choose(&buyer) {
            let client = ApiClient::new(process, shared.limit)?;
            let posting = client.post_order(&sale, body.as_bytes(), Some(&order), Some(WAIT_S));
            // Without an answer it is unknown what became of the order.
            if let Ok(answer) = posting.await
                && let Some(told) = told(&answer)
            {
                return Ok((buyer, told));
            }
        }
        tries += 1;
        shared.again.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(pause(number, tries)).await;
    }
}

/// What an answer says, if it says anything for good.
fn told(answer: &HttpAnswer) -> Option<Final> {
    #[derive(Deserialize)]
    struct Decision {
        outcome: String,
    }
    match answer.status {
        200 => match serde_json::from_slice::<Decision>(&answer.body).ok()?.outcome.as_str() {
            "created" => Some(Final::Bought),
            "sold_out" => Some(Final::SoldOut),
            _ => None,
        },
        410 => Some(Final::SoldOut),
        _ => None,
    }
}

/// As irregular as people are, and the same in every run.
fn pause(number: u32, tries: u32) -> Duration {
    let (from, to) = PAUSE_MS;
    Duration::from_secs_f64((from + (to - from) * irregular(number, tries)) / 1e3)
}

/// From 0 to 1, without a pattern, and always the same for the same numbers.
pub(super) fn irregular(one: u32, other: u32) -> f64 {
    let mut hasher = DefaultHasher::new();
    (one, other).hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buyers_go_to_the_processes_that_are_there() {
        let [one, two, three]: [SocketAddr; 3] =
            [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let in_turn = Gateway::new(vec![one, two], false);
        assert_eq!([0; 3].map(|_| in_turn.choose("u")), [Some(one), Some(two), Some(one)]);
        let by_user = Gateway::new(vec![one, two], true);
        let theirs = by_user.choose("u-7").unwrap();
        assert_eq!(by_user.choose("u-7"), Some(theirs));
        by_user.leave_out(theirs);
        let other = by_user.choose("u-7").unwrap();
        assert_ne!(other, theirs);
        by_user.leave_out(other);
        assert_eq!(by_user.choose("u-7"), None);
        by_user.add(three);
        assert_eq!(by_user.choose("u-7"), Some(three));
    }

    #[test]
    fn pauses_are_irregular_and_within_bounds() {
        let pauses: Vec<Duration> = (0..100).map(|tries| pause(7, tries)).collect();
        let range = Duration::from_millis(20)..=Duration::from_millis(100);
        assert!(pauses.iter().all(|pause| range.contains(pause)), "{pauses:?}");
        assert_eq!(pause(7, 3), pause(7, 3));
        assert!(pauses.iter().any(|&other| other != pauses[0]));
    }
}
