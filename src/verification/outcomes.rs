//! What verification is given, and what comes of it.

use std::time::Duration;

use super::Verdict;
use crate::domain::order::Order;

/// What waits until its user is checked.
pub trait Verifiable {
    /// The order whose user is checked.
    fn order(&self) -> &Order;
}

/// What an order on a delay queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Others of its sale are being checked.
    ForRoom,
    /// The end of a pause.
    Pause(Duration),
    /// The user service is unavailable.
    Outage,
}

/// Orders that need no more waiting here.
#[derive(Debug)]
pub struct Outcomes<E> {
    /// To be decided, with the verdict on their users. There is none where a check would be for nothing.
    pub checked: Vec<(E, Option<Verdict>)>,
    /// To wait on a delay queue.
    pub deferred: Vec<(E, Wait)>,
}

/// How much is done at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most orders that wait here, of all sales but the one that has the most.
    pub max_waiting: usize,
    /// The most outcomes of each kind at once.
    pub max_batch: usize,
}

impl<E> Outcomes<E> {
    pub(super) fn is_empty(&self) -> bool {
        self.checked.is_empty() && self.deferred.is_empty()
    }

    pub(super) fn split_off_first(&mut self, most: usize) -> Self {
        let checked = self.checked.drain(..self.checked.len().min(most)).collect();
        let deferred = self.deferred.drain(..self.deferred.len().min(most)).collect();
        Self { checked, deferred }
    }
}
