//! What a user service was asked, and what it has answered.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::Answer;
use crate::domain::order::UserId;

/// The most users that are told apart, to bound memory.
const MAX_USERS: usize = 1_000_000;

/// Counts since the start. Each of `calls` is one of `allowed`, `denied`, `failed`, `rate_limited`,
/// `abandoned` and `in_flight`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Well-formed calls, answered or not.
    pub calls: u64,
    /// Different users that were asked about, up to a million.
    pub users: u64,
    /// Answered: allowed.
    pub allowed: u64,
    /// Answered: denied.
    pub denied: u64,
    /// Failed (503).
    pub failed: u64,
    /// Refused for being too many a second (429).
    pub rate_limited: u64,
    /// Calls of which the caller went away before the answer.
    pub abandoned: u64,
    /// Calls that are not answered yet.
    pub in_flight: u64,
    /// The most calls that were in flight at once.
    pub most_in_flight: u64,
    /// Calls that hang or did, whatever became of them.
    pub hung: u64,
    /// Requests that were no question (400), not among `calls`.
    pub malformed: u64,
}

/// Keeps the counts.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// By a hash, which is smaller.
    users: HashSet<u64>,
}

impl Tally {
    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    pub(super) fn malformed(&self) {
        self.lock().counts.malformed += 1;
    }

    pub(super) fn rate_limited(&self, user: &UserId) {
        self.lock().call(user).rate_limited += 1;
    }

    /// Counts a call as in flight, until it is answered or dropped.
    pub(super) fn begin(&self, user: &UserId, hangs: bool) -> InFlight<'_> {
        let mut state = self.lock();
        let counts = state.call(user);
        counts.hung += u64::from(hangs);
        counts.in_flight += 1;
        counts.most_in_flight = counts.most_in_flight.max(counts.in_flight);
        InFlight { tally: self, answer: None }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn call(&mut self, user: &UserId) -> &mut Counts {
        if self.users.len() < MAX_USERS {
            self.users.insert(xxh3_64(user.as_str().as_bytes()));
        }
        self.counts.calls += 1;
        self.counts.users = self.users.len() as u64;
        &mut self.counts
    }
}

/// A call that is not answered yet. Dropped without an answer it was abandoned: the server drops a
/// call when its connection is closed.
pub(super) struct InFlight<'a> {
    tally: &'a Tally,
    answer: Option<Answer>,
}

impl InFlight<'_> {
    pub(super) fn answered(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let counts = &mut self.tally.lock().counts;
        counts.in_flight -= 1;
        *match self.answer {
            Some(Answer::Allowed) => &mut counts.allowed,
            Some(Answer::Denied(_)) => &mut counts.denied,
            Some(Answer::Failed) => &mut counts.failed,
            Some(Answer::RateLimited(_)) => &mut counts.rate_limited,
            None => &mut counts.abandoned,
        } += 1;
    }
}
