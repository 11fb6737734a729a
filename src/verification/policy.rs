//! When users are checked, and what orders do meanwhile.
//!
//! Only orders come here that the ledger answered "unchecked": it would create them. No call is made
//! for an order that is decided already, comes too late or too early, or whose buyer has bought enough.
//! Checks run beside the path of the other orders, which wait for none of them, and orders go on as
//! their checks come back.
//!
//! - No more users of a sale are under check at a time than the ledger said units are left, until their
//!   orders are decided. With several workers, each takes its part.
//! - A check without an answer is no verdict. While the user service is unavailable, or slower than orders
//!   come, they wait on the broker's delay queues, where they keep no other order out of the prefetch
//!   window, and are tried again each time they come back, until they are too old.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::{Answer, Check, Checked};
use super::outcomes::{Limits, Outcomes, Verifiable, Wait};
use super::sale_queue::{NextAction, SaleQueue};
use super::slow_start::SlowStart;
use super::verdict_cache::VerdictCache;
use super::{Breaker, VerificationSettings, Verifier};
use crate::domain::order::{SaleId, UserId};
use crate::fault::crash_point;
use crate::metrics::VerificationMetrics;
use crate::retry::Backoff;

/// Through a pause of up to this, orders wait here; through a longer one on a delay queue.
const SHORT_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause granted to a user service that asks for one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Queues kept although they are empty, for what their breakers know.
const MAX_IDLE_QUEUES: usize = 10_000;

/// Has users checked.
pub struct Verification<E> {
    verifier: Option<Arc<dyn Verifier>>,
    settings: VerificationSettings,
    limits: Limits,
    workers: Arc<AtomicU32>,
    metrics: VerificationMetrics,
    queues: HashMap<SaleId, SaleQueue<E>>,
    /// Sales in whose queues orders wait; the first one is next.
    turns: VecDeque<SaleId>,
    /// Orders in all queues.
    held: usize,
    verdicts: VerdictCache,
    checking: JoinSet<Checked>,
    ending: CancellationToken,
    /// No calls until then.
    pause_until: Option<Instant>,
    pauses: Backoff,
    /// It has asked for a pause, and given no verdict since: one call at a time.
    overloaded: bool,
    /// After the service has asked for a pause.
    slow_start: SlowStart,
    /// It was logged that there is no user service.
    warned: bool,
    outcomes: Outcomes<E>,
}

impl<E: Verifiable> Verification<E> {
    /// Checks users at `verifier`; without one, no order of a sale that wants checks goes on.
    /// `workers` is how many there are on the same queue, as far as is known.
    pub fn new(
        verifier: Option<Arc<dyn Verifier>>,
        settings: &VerificationSettings,
        limits: Limits,
        workers: Arc<AtomicU32>,
        metrics: VerificationMetrics,
    ) -> Self {
        Self {
            verifier,
            settings: settings.clone(),
            limits,
            workers,
            metrics,
            queues: HashMap::new(),
            turns: VecDeque::new(),
            held: 0,
            verdicts: VerdictCache::new(settings.remember),
            checking: JoinSet::new(),
            ending: CancellationToken::new(),
            pause_until: None,
            pauses: Backoff::step(),
            overloaded: false,
            slow_start: SlowStart::none(),
            warned: false,
            outcomes: Outcomes { checked: Vec::new(), deferred: Vec::new() },
        }
    }

    /// The units that are left of sales, by the latest answer of the ledger.
    pub fn update_left(&mut self, left: &HashMap<SaleId, u32>) {
        for (sale, units) in left {
            if let Some(queue) = self.queues.get_mut(sale) {
                queue.left = *units;
            }
        }
    }

    /// An order of `user` that had a verdict is decided.
    pub fn settle(&mut self, sale: &SaleId, user: &UserId) {
        if let Some(queue) = self.queues.get_mut(sale) {
            queue.settle(user);
        }
    }

    /// Takes over an order whose user is to be checked. `left` is what is left of its sale.
    pub fn enter(&mut self, entry: E, left: Option<u32>) {
        let order = entry.order();
        if let Some(verdict) = self.verdicts.get(order) {
            self.outcomes.checked.push((entry, Some(verdict)));
        } else if self.verifier.is_none() {
            if !std::mem::replace(&mut self.warned, true) {
                let sale_id = &order.sale_id;
                tracing::warn!(%sale_id, "its users are to be checked, but verification.url is not set");
            }
            self.defer(vec![entry], Wait::Outage);
        } else if self.is_full(&order.sale_id) {
            self.defer(vec![entry], Wait::ForRoom);
        } else {
            self.enqueue(entry, left);
        }
    }

    /// Orders that need no more waiting; waits until there are some, for ever if no user is being
    /// checked. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Outcomes<E> {
        loop {
            while let Some(checked) = self.checking.try_join_next() {
                self.end(unwrapped(checked));
            }
            if !self.outcomes.is_empty() {
                return self.outcomes.split_off_first(self.limits.max_batch);
            }
            let pause = self.pause_until;
            tokio::select! {
                biased;
                Some(checked) = self.checking.join_next() => self.end(unwrapped(checked)),
                () = async { tokio::time::sleep_until(pause.unwrap_or_else(Instant::now)).await },
                    if pause.is_some() => self.start(),
                else => std::future::pending().await,
            }
        }
    }

    /// Gives up the orders whose checks have not begun, and returns them. Of the checks that have begun
    /// none is tried again.
    pub fn give_up(&mut self) -> Vec<E> {
        self.ending.cancel();
        let mut given_up = Vec::new();
        while let Some(sale) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&sale) else { continue };
            while queue.is_waiting() {
                given_up.extend(queue.leave());
            }
        }
        self.held -= given_up.len();
        given_up
    }

    /// Whether anything is to come from [`Verification::next`].
    pub fn is_working(&self) -> bool {
        !self.checking.is_empty() || !self.outcomes.is_empty()
    }

    /// Whether a sale has its part of the room: as much as it leaves to all others, and one order in
    /// any case.
    fn is_full(&self, sale: &SaleId) -> bool {
        match self.queues.get(sale).map_or(0, SaleQueue::len) {
            0 => self.held >= 2 * self.limits.max_waiting,
            held => held >= self.limits.max_waiting.saturating_sub(self.held),
        }
    }

    fn enqueue(&mut self, entry: E, left: Option<u32>) {
        let sale = entry.order().sale_id.clone();
        if !self.queues.contains_key(&sale) && self.queues.len() >= MAX_IDLE_QUEUES {
            self.queues.retain(|_, queue| !queue.is_idle());
        }
        let Self { settings, metrics, queues, .. } = self;
        let queue = queues.entry(sale.clone()).or_insert_with(|| {
            let (calls, pause) = (settings.breaker_calls, settings.breaker_pause);
            SaleQueue::new(Breaker::new(calls, pause, metrics.breaker()))
        });
        queue.left = left.unwrap_or(queue.left);
        let waited = queue.is_waiting();
        queue.enter(entry);
        self.held += 1;
        if !waited && queue.is_waiting() {
            self.turns.push_back(sale);
        }
    }

    /// Begins the checks there is room for, sale by sale in turns.
    pub fn start(&mut self) {
        let Some(verifier) = self.verifier.clone() else { return };
        match self.pause_left() {
            pause if pause >= SHORT_PAUSE => return self.defer_all(pause),
            pause if !pause.is_zero() => return,
            _ => self.pause_until = None,
        }
        let most = self.slow_start.of(self.settings.max_in_flight);
        let most = if self.overloaded { 1 } else { most };
        let workers = self.workers.load(Ordering::Relaxed).max(1);
        let mut fruitless = 0;
        while fruitless < self.turns.len()
            && self.outcomes.checked.len() + self.outcomes.deferred.len() < self.limits.max_batch
        {
            let Some(sale) = self.turns.pop_front() else { return };
            let Some(queue) = self.queues.get_mut(&sale) else { continue };
            let has_room = self.checking.len() < most;
            let at_once = queue.slow_start.of(self.settings.max_in_flight_per_sale);
            let at_once = if has_room { at_once } else { 0 };
            fruitless += 1;
            let deferred = match queue.next_action(at_once, queue.left.div_ceil(workers)) {
                NextAction::Check(entry) => {
                    let order = entry.order().clone();
                    let check = Check {
                        verifier: verifier.clone(),
                        breaker: queue.breaker.clone(),
                        metrics: self.metrics.clone(),
                        attempts: self.settings.attempts,
                        ending: self.ending.clone(),
                    };
                    self.checking.spawn(check.of(order));
                    fruitless = 0;
                    Vec::new()
                }
                NextAction::Propose(entries) => {
                    self.held -= entries.len();
                    self.outcomes.checked.extend(entries.into_iter().map(|entry| (entry, None)));
                    fruitless = 0;
                    Vec::new()
                }
                NextAction::Defer(entries) => {
                    self.held -= entries.len();
                    fruitless = 0;
                    entries
                }
                NextAction::Wait => Vec::new(),
            };
            if queue.is_waiting() {
                self.turns.push_back(sale);
            }
            self.defer(deferred, Wait::Outage);
        }
    }

    /// Does what the answer to a check asks for.
    fn end(&mut self, Checked { sale_id, user_id, begun, answer }: Checked) {
        let Some(queue) = self.queues.get_mut(&sale_id) else { return };
        match answer {
            Answer::Verdict(verdict) => {
                queue.verdict_at = Some(Instant::now());
                queue.slow_start.answered();
                self.slow_start.answered();
                // A call that had begun before doesn't tell how it is now.
                if queue.unavailable_since.is_some_and(|since| since <= begun) {
                    queue.unavailable_since = None;
                    queue.slow_start.begin();
                    tracing::info!(%sale_id, "the user service answers again");
                }
                if std::mem::take(&mut self.overloaded) {
                    self.pauses.reset();
                    self.slow_start.begin();
                    tracing::info!("the user service takes calls again");
                }
                let entries = queue.pass(&user_id);
                self.held -= entries.len();
                let checked = entries.into_iter().map(|entry| (entry, Some(verdict)));
                self.outcomes.checked.extend(checked);
                crash_point("verified");
                self.verdicts.insert(sale_id, user_id, verdict);
            }
            Answer::Busy(wanted) => {
                if !queue.is_waiting() {
                    self.turns.push_back(sale_id);
                }
                queue.wait_again(user_id);
                let pause = self.pause(wanted);
                if pause >= SHORT_PAUSE || self.ending.is_cancelled() {
                    self.defer_all(pause);
                }
            }
            Answer::Unanswerable => {
                let entries = queue.end(&user_id);
                self.held -= entries.len();
                self.defer(entries, Wait::Outage);
            }
            Answer::Silence(_) | Answer::Shut(_) => {
                let (unavailable, error) = match answer {
                    Answer::Silence(error) => {
                        (queue.verdict_at.is_none_or(|at| at < begun), Some(error))
                    }
                    Answer::Shut(error) => (true, error),
                    _ => unreachable!("matched above"),
                };
                if unavailable && queue.unavailable_since.is_none() {
                    queue.unavailable_since = Some(Instant::now());
                    let error = error.unwrap_or_default();
                    tracing::warn!(%sale_id, error, "the user service is unavailable: orders wait on delay queues");
                }
                let entries = queue.end(&user_id);
                self.held -= entries.len();
                self.defer(entries, Wait::Outage);
            }
        }
    }

    /// Makes no calls for a while; returns how long that is.
    fn pause(&mut self, wanted: Option<Duration>) -> Duration {
        let left = self.pause_left();
        // Several calls may have been under way together; only the first of them makes the pause longer.
        let least = if left.is_zero() { self.pauses.next_delay() } else { left };
        let pause = wanted.unwrap_or_default().max(least).min(LONGEST_PAUSE);
        if !std::mem::replace(&mut self.overloaded, true) {
            tracing::warn!(?pause, "the user service asks for a pause");
        }
        self.pause_until = Some(Instant::now() + pause);
        pause
    }

    fn pause_left(&self) -> Duration {
        self.pause_until.map_or(Duration::ZERO, |until| until.duration_since(Instant::now()))
    }

    fn defer_all(&mut self, pause: Duration) {
        while let Some(sale) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&sale) else { continue };
            let mut entries = Vec::new();
            while queue.is_waiting() {
                entries.extend(queue.leave());
            }
            self.held -= entries.len();
            self.defer(entries, Wait::Pause(pause));
        }
    }

    fn defer(&mut self, entries: Vec<E>, wait: Wait) {
        self.outcomes.deferred.extend(entries.into_iter().map(|entry| (entry, wait)));
    }
}

/// A check that panicked leaves orders that are never settled: the process ends, and the broker
/// delivers them again.
fn unwrapped(checked: Result<Checked, tokio::task::JoinError>) -> Checked {
    match checked {
        Ok(checked) => checked,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("checks are aborted only with the set that holds them"),
        },
    }
}
