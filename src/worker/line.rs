//! A line: the users of one sale who are to be checked, with their orders.

use std::collections::{HashMap, VecDeque};

use super::batch::Entry;
use crate::order::UserId;
use crate::verification::Breaker;

/// Users who wait for their check, or are being checked. Each is checked once for all orders that
/// come until the verdict is there.
pub(super) struct Line {
    /// Units left by the latest answer of the inventory.
    pub left: u32,
    /// Refuses calls for this sale while most of them fail.
    pub breaker: Breaker,
    /// The breaker has refused a call, and none has succeeded since: one user at a time is tried,
    /// and nobody waits behind.
    pub shut: bool,
    users: HashMap<UserId, Vec<Entry>>,
    /// Users whose check has not begun, first come first.
    queue: VecDeque<UserId>,
    checking: usize,
    /// Units wanted by those who are being checked.
    units: u32,
}

/// What becomes of the first who waits.
pub(super) enum Step<'a> {
    /// The check begins, for the first order.
    Check(&'a Entry),
    /// Fewer units are left than are wanted, so a check would be for nothing.
    Propose(Vec<Entry>),
    /// The user service is away.
    PutOff(Vec<Entry>),
    /// Goes on waiting, or nobody waits.
    Wait,
}

impl Line {
    pub(super) fn new(breaker: Breaker) -> Self {
        Self {
            left: 0,
            breaker,
            shut: false,
            users: HashMap::new(),
            queue: VecDeque::new(),
            checking: 0,
            units: 0,
        }
    }

    /// Whether there is nobody in it.
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether anybody's check has not begun.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes an order in, behind those that are here.
    pub(super) fn enter(&mut self, entry: Entry) {
        let user = &entry.candidate.order.user_id;
        if let Some(entries) = self.users.get_mut(user) {
            entries.push(entry);
        } else {
            self.queue.push_back(user.clone());
            self.users.insert(user.clone(), vec![entry]);
        }
    }

    /// The next step, where up to `at_once` may be checked at the same time, and no more than could
    /// get `share` units.
    pub(super) fn step(&mut self, at_once: usize, share: u32) -> Step<'_> {
        let Some(user) = self.queue.front() else { return Step::Wait };
        if self.left == 0 || self.left < self.units_of(user) {
            return Step::Propose(self.leave());
        }
        if self.shut && self.checking > 0 {
            return Step::PutOff(self.leave());
        }
        if self.checking >= at_once || self.units >= share {
            return Step::Wait;
        }
        let Some(user) = self.queue.pop_front() else { return Step::Wait };
        self.checking += 1;
        self.units += self.units_of(&user);
        self.users.get(&user).and_then(|entries| entries.first()).map_or(Step::Wait, Step::Check)
    }

    /// Takes out the orders of a user whose check has ended.
    pub(super) fn end(&mut self, user: &UserId) -> Vec<Entry> {
        self.release(user);
        self.users.remove(user).unwrap_or_default()
    }

    /// Has a user whose check has ended without an answer wait again, before all others.
    pub(super) fn wait_again(&mut self, user: UserId) {
        self.release(&user);
        self.queue.push_front(user);
    }

    /// Takes out the orders of the first who waits; none if nobody does.
    pub(super) fn leave(&mut self) -> Vec<Entry> {
        self.queue.pop_front().and_then(|user| self.users.remove(&user)).unwrap_or_default()
    }

    fn release(&mut self, user: &UserId) {
        self.checking -= 1;
        self.units -= self.units_of(user);
    }

    /// What counts for a user is the first order, which stays the first until the check ends.
    fn units_of(&self, user: &UserId) -> u32 {
        let first = self.users.get(user).and_then(|entries| entries.first());
        first.map_or(0, |entry| entry.candidate.order.quantity.get())
    }
}
