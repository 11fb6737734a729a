//! Verify: have the users checked of those sales that want it, before they get anything.
//!
//! Only orders come here that the ledger answered "unchecked": it would create them. No call is made
//! for an order that is decided already, comes too late or too early, or whose buyer has bought enough.
//! Checks run beside the path of the other orders, which wait for none of them, and orders go on as
//! their checks come back.
//!
//! - No more users of a sale are under check at a time than the ledger said units are left, until their
//!   orders are decided. With several workers, each takes its share.
//! - That nobody answers is no verdict. While the user service is away, or slower than orders come,
//!   they wait on the broker's delay queues, where they keep no other order out of the prefetch
//!   window, and are taken up again each time they come back, until they are too old.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Deferred, Entry};
use super::check::{Answer, Check, Checked};
use super::decide::Seen;
use super::line::{Line, Step};
use super::wait::Wait;
use crate::clock::Clock;
use crate::config::{Settings, VerificationSettings};
use crate::domain::order::{Eligibility, SaleId};
use crate::fault::crash_point;
use crate::retry::Backoff;
use crate::verification::{Breaker, Memory, Verdict, Verifier};

/// Through a pause of up to this, orders wait in the worker; through a longer one on a delay queue.
const SHORT_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause granted to a user service that asks for patience.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Lines kept although nobody is in them, for what their breakers know.
const MAX_IDLE_LINES: usize = 10_000;

/// Has users checked.
pub(super) struct Verification {
    verifier: Option<Arc<dyn Verifier>>,
    settings: VerificationSettings,
    clock: Clock,
    max_waiting: usize,
    max_batch: usize,
    workers: Arc<AtomicU32>,
    lines: HashMap<SaleId, Line>,
    /// Sales in whose lines somebody waits; the first one is next.
    turns: VecDeque<SaleId>,
    /// Orders in all lines.
    held: usize,
    memory: Memory,
    checking: JoinSet<Checked>,
    ending: CancellationToken,
    /// No calls until then.
    pause_until: Option<Instant>,
    patience: Backoff,
    /// It has asked for patience, and given no verdict since: one call at a time.
    overloaded: bool,
    /// It was said that there is no user service.
    warned: bool,
    /// What needs no more waiting here.
    ready: Batch,
}

impl Verification {
    /// Checks users at `verifier`; without one, no order of a sale that wants checks goes on.
    /// `workers` is how many there are on the same queue, as far as is known.
    pub(super) fn new(
        verifier: Option<Arc<dyn Verifier>>,
        settings: &Settings,
        clock: Clock,
        workers: Arc<AtomicU32>,
    ) -> Self {
        Self {
            verifier,
            settings: settings.verification.clone(),
            clock,
            // The other half is for the orders that need no check.
            max_waiting: usize::from(settings.broker.prefetch / 2).max(1),
            max_batch: settings.worker.max_batch,
            workers,
            lines: HashMap::new(),
            turns: VecDeque::new(),
            held: 0,
            memory: Memory::new(settings.verification.remember()),
            checking: JoinSet::new(),
            ending: CancellationToken::new(),
            pause_until: None,
            patience: Backoff::step(),
            overloaded: false,
            warned: false,
            ready: Batch::default(),
        }
    }

    /// Takes over the orders whose users are to be checked, and begins checks. To be called after each
    /// batch that the ledger has seen, even if there are none: it brings what is left of the sales.
    pub(super) fn take(&mut self, Seen { unchecked, left, settled, .. }: Seen) {
        for (sale, user) in settled {
            if let Some(line) = self.lines.get_mut(&sale) {
                line.settle(&user);
            }
        }
        for (sale, units) in &left {
            if let Some(line) = self.lines.get_mut(sale) {
                line.left = *units;
            }
        }
        for mut entry in unchecked {
            let order = &entry.candidate.order;
            if let Some(verdict) = self.memory.of(order) {
                entry.candidate.eligibility = eligibility(verdict);
                self.ready.entries.push(entry);
            } else if self.verifier.is_none() {
                if !std::mem::replace(&mut self.warned, true) {
                    let sale_id = &order.sale_id;
                    tracing::warn!(%sale_id, "its users are to be checked, but verification.url is not set");
                }
                self.defer(vec![entry], Wait::Outage);
            } else if self.is_full(&order.sale_id) {
                self.defer(vec![entry], Wait::ForRoom);
            } else {
                self.enter(entry, &left);
            }
        }
        self.start();
        crash_point("verifying");
    }

    /// Orders whose users are checked, and others that need not wait for it any more; waits until
    /// there are some, for ever if nobody is being checked. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Batch {
        loop {
            while let Some(checked) = self.checking.try_join_next() {
                self.end(unwrapped(checked));
            }
            if !self.ready.is_empty() {
                return self.ready.split_off_first(self.max_batch);
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

    /// Lets go of the orders whose checks have not begun: they go back to the queue. Of those that
    /// have begun none is tried again.
    pub(super) fn give_up(&mut self) {
        self.ending.cancel();
        while let Some(sale) = self.turns.pop_front() {
            let Some(line) = self.lines.get_mut(&sale) else { continue };
            while line.is_waiting() {
                let entries = line.leave();
                self.held -= entries.len();
                for entry in entries {
                    entry.ticket.give_back();
                }
            }
        }
    }

    /// Whether anything is to come from [`Verification::next`].
    pub(super) fn is_working(&self) -> bool {
        !self.checking.is_empty() || !self.ready.is_empty()
    }

    /// Whether the line of a sale has its share of the room: as much as it leaves to all others, and
    /// one order in any case.
    fn is_full(&self, sale: &SaleId) -> bool {
        match self.lines.get(sale).map_or(0, Line::len) {
            0 => self.held >= 2 * self.max_waiting,
            held => held >= self.max_waiting.saturating_sub(self.held),
        }
    }

    fn enter(&mut self, entry: Entry, left: &HashMap<SaleId, u32>) {
        let sale = entry.candidate.order.sale_id.clone();
        if !self.lines.contains_key(&sale) && self.lines.len() >= MAX_IDLE_LINES {
            self.lines.retain(|_, line| !line.is_idle());
        }
        let line = self.lines.entry(sale.clone()).or_insert_with(|| {
            let breaker = Breaker::new(self.settings.breaker_calls, self.settings.breaker_pause());
            Line::new(breaker)
        });
        line.left = left.get(&sale).copied().unwrap_or(line.left);
        let waited = line.is_waiting();
        line.enter(entry);
        self.held += 1;
        if !waited && line.is_waiting() {
            self.turns.push_back(sale);
        }
    }

    /// Begins the checks there is room for, sale by sale in turns.
    fn start(&mut self) {
        let Some(verifier) = self.verifier.clone() else { return };
        match self.pause_left() {
            pause if pause >= SHORT_PAUSE => return self.defer_all(pause),
            pause if !pause.is_zero() => return,
            _ => self.pause_until = None,
        }
        let most = if self.overloaded { 1 } else { self.settings.max_in_flight };
        let workers = self.workers.load(Ordering::Relaxed).max(1);
        let mut fruitless = 0;
        while fruitless < self.turns.len() && self.ready.len() < self.max_batch {
            let Some(sale) = self.turns.pop_front() else { return };
            let Some(line) = self.lines.get_mut(&sale) else { continue };
            let has_room = self.checking.len() < most;
            let at_once = if has_room { self.settings.max_in_flight_per_sale } else { 0 };
            fruitless += 1;
            let deferred = match line.step(at_once, line.left.div_ceil(workers)) {
                Step::Check(entry) => {
                    let order = entry.candidate.order.clone();
                    let check = Check {
                        verifier: verifier.clone(),
                        breaker: line.breaker.clone(),
                        attempts: self.settings.attempts,
                        ending: self.ending.clone(),
                    };
                    self.checking.spawn(check.of(order));
                    fruitless = 0;
                    Vec::new()
                }
                Step::Propose(entries) => {
                    self.held -= entries.len();
                    self.ready.entries.extend(entries);
                    fruitless = 0;
                    Vec::new()
                }
                Step::Defer(entries) => {
                    self.held -= entries.len();
                    fruitless = 0;
                    entries
                }
                Step::Wait => Vec::new(),
            };
            if line.is_waiting() {
                self.turns.push_back(sale);
            }
            self.defer(deferred, Wait::Outage);
        }
    }

    /// Does what the answer to a check asks for.
    fn end(&mut self, Checked { sale_id, user_id, begun, answer }: Checked) {
        let Some(line) = self.lines.get_mut(&sale_id) else { return };
        match answer {
            Answer::Verdict(verdict) => {
                line.verdict_at = Some(Instant::now());
                // A call that had begun before doesn't tell how it is now.
                if line.shut.is_some_and(|since| since <= begun) {
                    line.shut = None;
                    tracing::info!(%sale_id, "the user service answers again");
                }
                if std::mem::take(&mut self.overloaded) {
                    self.patience.reset();
                    tracing::info!("the user service takes calls again");
                }
                let mut entries = line.pass(&user_id);
                self.held -= entries.len();
                for entry in &mut entries {
                    entry.candidate.eligibility = eligibility(verdict);
                }
                self.ready.entries.extend(entries);
                crash_point("verified");
                self.memory.note(sale_id, user_id, verdict);
            }
            Answer::Busy(wanted) => {
                if !line.is_waiting() {
                    self.turns.push_back(sale_id);
                }
                line.wait_again(user_id);
                let pause = self.pause(wanted);
                if pause >= SHORT_PAUSE || self.ending.is_cancelled() {
                    self.defer_all(pause);
                }
            }
            Answer::Unanswerable => {
                let entries = line.end(&user_id);
                self.held -= entries.len();
                self.defer(entries, Wait::Outage);
            }
            Answer::Silence(_) | Answer::Shut(_) => {
                let (away, error) = match answer {
                    Answer::Silence(error) => {
                        (line.verdict_at.is_none_or(|at| at < begun), Some(error))
                    }
                    Answer::Shut(error) => (true, error),
                    _ => unreachable!("matched above"),
                };
                if away && line.shut.is_none() {
                    line.shut = Some(Instant::now());
                    let error = error.unwrap_or_default();
                    tracing::warn!(%sale_id, error, "the user service is away: orders wait on delay queues");
                }
                let entries = line.end(&user_id);
                self.held -= entries.len();
                self.defer(entries, Wait::Outage);
            }
        }
    }

    /// Makes no calls for a while; returns how long that is.
    fn pause(&mut self, wanted: Option<Duration>) -> Duration {
        let left = self.pause_left();
        // Several calls may have been under way together; only the first of them tries the patience.
        let least = if left.is_zero() { self.patience.next_delay() } else { left };
        let pause = wanted.unwrap_or_default().max(least).min(LONGEST_PAUSE);
        if !std::mem::replace(&mut self.overloaded, true) {
            tracing::warn!(?pause, "the user service asks for patience");
        }
        self.pause_until = Some(Instant::now() + pause);
        pause
    }

    fn pause_left(&self) -> Duration {
        self.pause_until.map_or(Duration::ZERO, |until| until.duration_since(Instant::now()))
    }

    fn defer_all(&mut self, pause: Duration) {
        while let Some(sale) = self.turns.pop_front() {
            let Some(line) = self.lines.get_mut(&sale) else { continue };
            let mut entries = Vec::new();
            while line.is_waiting() {
                entries.extend(line.leave());
            }
            self.held -= entries.len();
            self.defer(entries, Wait::Pause(pause));
        }
    }

    /// Defers orders: they wait on a delay queue.
    fn defer(&mut self, entries: Vec<Entry>, wait: Wait) {
        let now = (self.clock)();
        self.ready.deferred.extend(entries.into_iter().map(|entry| {
            let delay = wait.delay(age(&entry, now));
            Deferred::order(entry, delay)
        }));
    }
}

/// How long ago an order was submitted, by the clock of this worker: it only chooses a delay.
fn age(entry: &Entry, now: DateTime<Utc>) -> Duration {
    let submitted_at = entry.candidate.submitted_at.unwrap_or(now);
    now.signed_duration_since(submitted_at).to_std().unwrap_or_default()
}

fn eligibility(verdict: Verdict) -> Eligibility {
    match verdict {
        Verdict::Allowed => Eligibility::Eligible,
        Verdict::Denied => Eligibility::Denied,
    }
}

/// A check that panicked leaves orders that nobody settles: the process ends, and the broker
/// delivers to somebody else.
fn unwrapped(checked: Result<Checked, tokio::task::JoinError>) -> Checked {
    match checked {
        Ok(checked) => checked,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("checks are aborted only with the set that holds them"),
        },
    }
}
