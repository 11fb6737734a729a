//! A line: the users of one sale who are to be checked, with their orders.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::batch::Entry;
use crate::domain::order::UserId;
use crate::verification::Breaker;

/// Users who wait for their check, or are being checked. Each is checked once for all orders that
/// come until the verdict is there.
pub(super) struct Line {
    /// Units left by the latest answer of the ledger.
    pub left: u32,
    /// Refuses calls for this sale while most of them fail.
    pub breaker: Breaker,
    /// Since when the user service has been away for this sale: one user at a time is tried, and
    /// nobody waits behind.
    pub shut: Option<Instant>,
    /// When the last verdict came.
    pub verdict_at: Option<Instant>,
    users: HashMap<UserId, Vec<Entry>>,
    /// Orders of all users.
    held: usize,
    /// Users whose check has not begun, first come first.
    queue: VecDeque<UserId>,
    checking: usize,
    /// Units wanted by those who are being checked, and by those whose verdict is there and whose order
    /// is not decided yet.
    units: u64,
    /// The units of the latter.
    deciding: HashMap<UserId, u32>,
}

/// What becomes of the first who waits.
pub(super) enum Step<'a> {
    /// The check begins, for the first order.
    Check(&'a Entry),
    /// Fewer units are left than are wanted, so a check would be for nothing.
    Propose(Vec<Entry>),
    /// The user service is away.
    Defer(Vec<Entry>),
    /// Goes on waiting, or nobody waits.
    Wait,
}

impl Line {
    pub(super) fn new(breaker: Breaker) -> Self {
        Self {
            left: 0,
            breaker,
            shut: None,
            verdict_at: None,
            users: HashMap::new(),
            held: 0,
            queue: VecDeque::new(),
            checking: 0,
            units: 0,
            deciding: HashMap::new(),
        }
    }

    /// Orders in it.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Whether it has nothing to do with any order now.
    pub(super) fn is_idle(&self) -> bool {
        self.held == 0 && self.deciding.is_empty()
    }

    /// Whether anybody's check has not begun.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes an order in, behind those that are here.
    pub(super) fn enter(&mut self, entry: Entry) {
        self.held += 1;
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
        if self.shut.is_some() && self.checking > 0 {
            return Step::Defer(self.leave());
        }
        if self.checking >= at_once || self.units >= u64::from(share) {
            return Step::Wait;
        }
        let Some(user) = self.queue.pop_front() else { return Step::Wait };
        self.checking += 1;
        self.units += u64::from(self.units_of(&user));
        self.users.get(&user).and_then(|entries| entries.first()).map_or(Step::Wait, Step::Check)
    }

    /// Takes out the orders of a user who has a verdict. The units they want stay counted until
    /// [`Line::settle`].
    pub(super) fn pass(&mut self, user: &UserId) -> Vec<Entry> {
        self.checking -= 1;
        *self.deciding.entry(user.clone()).or_default() += self.units_of(user);
        self.take_out(user)
    }

    /// The order of a user who had a verdict is decided.
    pub(super) fn settle(&mut self, user: &UserId) {
        self.units -= u64::from(self.deciding.remove(user).unwrap_or(0));
    }

    /// Takes out the orders of a user whose check has ended without a verdict.
    pub(super) fn end(&mut self, user: &UserId) -> Vec<Entry> {
        self.release(user);
        self.take_out(user)
    }

    /// Has a user whose check has ended without an answer wait again, before all others.
    pub(super) fn wait_again(&mut self, user: UserId) {
        self.release(&user);
        self.queue.push_front(user);
    }

    /// Takes out the orders of the first who waits; none if nobody does.
    pub(super) fn leave(&mut self) -> Vec<Entry> {
        self.queue.pop_front().map(|user| self.take_out(&user)).unwrap_or_default()
    }

    fn take_out(&mut self, user: &UserId) -> Vec<Entry> {
        let entries = self.users.remove(user).unwrap_or_default();
        self.held -= entries.len();
        entries
    }

    fn release(&mut self, user: &UserId) {
        self.checking -= 1;
        self.units -= u64::from(self.units_of(user));
    }

    /// What counts for a user is the first order, which stays the first until the check ends.
    fn units_of(&self, user: &UserId) -> u32 {
        let first = self.users.get(user).and_then(|entries| entries.first());
        first.map_or(0, |entry| entry.candidate.order.quantity.get())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::broker::{Delivery, Properties};
    use crate::domain::order::{Candidate, Eligibility, Order, OrderId, Quantity, SaleId};
    use crate::worker::batch::Ticket;

    fn entry(id: &str, user: &str, quantity: i64) -> Entry {
        let order = Order {
            id: OrderId::parse(id).unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: UserId::parse(user).unwrap(),
            quantity: Quantity::new(quantity).unwrap(),
        };
        let delivery = Delivery::new(Vec::new(), Properties::default(), false, Box::new(|_| ()));
        Entry {
            candidate: Candidate { order, submitted_at: None, eligibility: Eligibility::Unchecked },
            ticket: Ticket::new(delivery),
            place: 0..0,
            has_ledger_time: false,
        }
    }

    fn line(left: u32, entries: &[(&str, &str, i64)]) -> Line {
        let mut line = Line::new(Breaker::new(20, Duration::from_secs(5)));
        line.left = left;
        for (id, user, quantity) in entries {
            line.enter(entry(id, user, *quantity));
        }
        line
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).unwrap()
    }

    /// Who is checked next, or what happens instead.
    fn step(line: &mut Line, at_once: usize, share: u32) -> String {
        match line.step(at_once, share) {
            Step::Check(entry) => entry.candidate.order.id.to_string(),
            Step::Propose(entries) => format!("propose {}", entries.len()),
            Step::Defer(entries) => format!("defer {}", entries.len()),
            Step::Wait => "wait".to_owned(),
        }
    }

    #[test]
    fn a_user_is_checked_once_for_all_orders() {
        let mut line = line(9, &[("a", "u", 1), ("b", "u", 1), ("c", "v", 1)]);
        assert_eq!(step(&mut line, 8, 9), "a");
        assert_eq!(step(&mut line, 8, 9), "c");
        assert_eq!(step(&mut line, 8, 9), "wait");
        line.enter(entry("d", "u", 1));
        assert_eq!(step(&mut line, 8, 9), "wait", "the user is being checked");
        assert_eq!(line.pass(&user("u")).len(), 3);
        assert_eq!(line.len(), 1);
        assert_eq!(line.end(&user("v")).len(), 1);
        assert!(line.len() == 0 && !line.is_idle(), "not decided yet");
        line.settle(&user("u"));
        assert!(line.is_idle());
    }

    #[test]
    fn no_more_are_checked_than_there_are_units_and_places() {
        let mut line = line(3, &[("a", "u", 2), ("b", "v", 1), ("c", "w", 1), ("d", "x", 1)]);
        assert_eq!(step(&mut line, 8, 3), "a");
        assert_eq!(step(&mut line, 1, 3), "wait", "no place");
        assert_eq!(step(&mut line, 8, 2), "wait", "another worker's units");
        assert_eq!(step(&mut line, 8, 3), "b");
        assert_eq!(step(&mut line, 8, 3), "wait", "no unit");
        line.pass(&user("u"));
        assert_eq!(step(&mut line, 8, 3), "wait", "its units may go to u");
        line.settle(&user("u"));
        assert_eq!(step(&mut line, 8, 3), "c", "u was denied");
        line.left = 0;
        assert_eq!(step(&mut line, 8, 0), "propose 1", "a check would be for nothing");
    }

    #[test]
    fn who_wants_more_than_is_left_is_not_checked() {
        let mut line = line(3, &[("a", "u", 4), ("b", "v", 3)]);
        assert_eq!(step(&mut line, 8, 3), "propose 1");
        assert_eq!(step(&mut line, 8, 3), "b");
    }

    #[test]
    fn a_shut_line_tries_one_and_keeps_nobody_waiting() {
        let mut line = line(9, &[("a", "u", 1), ("b", "v", 1), ("c", "w", 1)]);
        line.shut = Some(Instant::now());
        assert_eq!(step(&mut line, 8, 9), "a");
        assert_eq!(step(&mut line, 8, 9), "defer 1");
        assert_eq!(step(&mut line, 8, 9), "defer 1");
        assert_eq!(step(&mut line, 8, 9), "wait");
    }

    #[test]
    fn who_got_no_answer_waits_before_all_others() {
        let mut line = line(9, &[("a", "u", 1), ("b", "v", 1)]);
        assert_eq!(step(&mut line, 8, 9), "a");
        line.wait_again(user("u"));
        assert_eq!(step(&mut line, 8, 9), "a");
        assert_eq!(step(&mut line, 8, 9), "b");
    }
}
