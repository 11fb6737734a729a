//! What a user service was asked, and what it has answered.

use std::collections::HashSet;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::Answer;
use crate::domain::order::UserId;

/// The most users that are told apart, to bound memory.
const MAX_USERS: usize = 1_000_000;

/// Counts since the start. Each of `calls` is one of `allowed`, `denied`, `failed`, `abandoned`
/// and `in_flight`.
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
    /// Calls of which the caller went away before the answer.
    pub abandoned: u64,
    /// Calls that are not answered yet.
    pub in_flight: u64,
    /// The most calls that were in flight at once.
    pub most_in_flight: u64,
    /// Requests that were no question (400), not among `calls`.
    pub malformed: u64,
}

/// Counts calls.
#[derive(Debug, Default)]
pub(super) struct CallCounts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// By a hash, which is smaller.
    users: HashSet<u64>,
}

impl CallCounts {
    pub(super) fn get(&self) -> Counts {
        self.lock().counts
    }

    pub(super) fn malformed(&self) {
        self.lock().counts.malformed += 1;
    }

    /// Counts a call as in flight, until it is answered or dropped.
    pub(super) fn begin(&self, user: &UserId) -> InFlight<'_> {
        let mut state = self.lock();
        let counts = state.call(user);
        counts.in_flight += 1;
        counts.most_in_flight = counts.most_in_flight.max(counts.in_flight);
        InFlight { counts: self, answer: None }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
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
    counts: &'a CallCounts,
    answer: Option<Answer>,
}

impl InFlight<'_> {
    pub(super) fn answered(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let counts = &mut self.counts.lock().counts;
        counts.in_flight -= 1;
        *match self.answer {
            Some(Answer::Allowed) => &mut counts.allowed,
            Some(Answer::Denied(_)) => &mut counts.denied,
            Some(Answer::Failed) => &mut counts.failed,
            None => &mut counts.abandoned,
        } += 1;
    }
}
