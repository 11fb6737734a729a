//! The users of one sale who are to be checked, with their orders.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::breaker::Breaker;
use super::outcomes::Verifiable;
use super::slow_start::SlowStart;
use crate::domain::order::UserId;

/// Users who wait for their check, or are being checked. Each is checked once for all orders that
/// come until the verdict is there.
pub(super) struct SaleQueue<E> {
    /// Units left by the latest answer of the ledger.
    pub left: u32,
    /// Refuses calls for this sale while most of them fail.
    pub breaker: Breaker,
    /// Since when the user service has been unavailable for this sale: one user at a time is tried, and
    /// no other waits here.
    pub unavailable_since: Option<Instant>,
    /// After an outage.
    pub slow_start: SlowStart,
    /// When the last verdict came.
    pub verdict_at: Option<Instant>,
    users: HashMap<UserId, Vec<E>>,
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
pub(super) enum NextAction<'a, E> {
    /// The check begins, for the first order.
    Check(&'a E),
    /// Fewer units are left than are wanted, so a check would be for nothing.
    Propose(Vec<E>),
    /// The user service is unavailable.
    Defer(Vec<E>),
    /// None: it goes on waiting, or the queue is empty.
    Wait,
}

impl<E: Verifiable> SaleQueue<E> {
    pub(super) fn new(breaker: Breaker) -> Self {
        Self {
            left: 0,
            breaker,
            unavailable_since: None,
            slow_start: SlowStart::none(),
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

    /// Whether any check has not begun.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes an order in, behind those that are here.
    pub(super) fn enter(&mut self, entry: E) {
        self.held += 1;
        let user = &entry.order().user_id;
        if let Some(entries) = self.users.get_mut(user) {
            entries.push(entry);
        } else {
            self.queue.push_back(user.clone());
            self.users.insert(user.clone(), vec![entry]);
        }
    }

    /// What to do next, where up to `at_once` may be checked at the same time, and no more than could
    /// get `own_units`, this worker's part of the units left.
    pub(super) fn next_action(&mut self, at_once: usize, own_units: u32) -> NextAction<'_, E> {
        let Some(user) = self.queue.front() else { return NextAction::Wait };
        if self.left == 0 || self.left < self.units_of(user) {
            return NextAction::Propose(self.leave());
        }
        if self.unavailable_since.is_some() && self.checking > 0 {
            return NextAction::Defer(self.leave());
        }
        if self.checking >= at_once || self.units >= u64::from(own_units) {
            return NextAction::Wait;
        }
        let Some(user) = self.queue.pop_front() else { return NextAction::Wait };
        self.checking += 1;
        self.units += u64::from(self.units_of(&user));
        self.users
            .get(&user)
            .and_then(|entries| entries.first())
            .map_or(NextAction::Wait, NextAction::Check)
    }

    /// Takes out the orders of a user who has a verdict. The units they want stay counted until
    /// [`SaleQueue::settle`].
    pub(super) fn pass(&mut self, user: &UserId) -> Vec<E> {
        self.checking -= 1;
        *self.deciding.entry(user.clone()).or_default() += self.units_of(user);
        self.take_out(user)
    }

    /// The order of a user who had a verdict is decided.
    pub(super) fn settle(&mut self, user: &UserId) {
        self.units -= u64::from(self.deciding.remove(user).unwrap_or(0));
    }

    /// Takes out the orders of a user whose check has ended without a verdict.
    pub(super) fn end(&mut self, user: &UserId) -> Vec<E> {
        self.release(user);
        self.take_out(user)
    }

    /// Has a user whose check has ended without an answer wait again, before all others.
    pub(super) fn wait_again(&mut self, user: UserId) {
        self.release(&user);
        self.queue.push_front(user);
    }

    /// Takes out the orders of the first user who waits; none if no user does.
    pub(super) fn leave(&mut self) -> Vec<E> {
        self.queue.pop_front().map(|user| self.take_out(&user)).unwrap_or_default()
    }

    fn take_out(&mut self, user: &UserId) -> Vec<E> {
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
        first.map_or(0, |entry| entry.order().quantity.get())
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;
    use std::time::Duration;

    use super::*;
    use crate::domain::order::{Order, OrderId, Quantity, SaleId};

    impl Verifiable for Order {
        fn order(&self) -> &Order {
            self
        }
    }

    fn order(id: &str, user: &str, quantity: i64) -> Order {
        Order {
            id: OrderId::parse(id).unwrap(),
            sale_id: SaleId::parse("s").unwrap(),
            user_id: UserId::parse(user).unwrap(),
            quantity: Quantity::new(quantity).unwrap(),
        }
    }

    fn queue(left: u32, orders: &[(&str, &str, i64)]) -> SaleQueue<Order> {
        let mut queue = SaleQueue::new(Breaker::new(
            20,
            Duration::from_secs(5),
            Metrics::new().verification(false).breaker(),
        ));
        queue.left = left;
        for (id, user, quantity) in orders {
            queue.enter(order(id, user, *quantity));
        }
        queue
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).unwrap()
    }

    /// Who is checked next, or what happens instead.
    fn next(queue: &mut SaleQueue<Order>, at_once: usize, own_units: u32) -> String {
        match queue.next_action(at_once, own_units) {
            NextAction::Check(order) => order.id.to_string(),
            NextAction::Propose(entries) => format!("propose {}", entries.len()),
            NextAction::Defer(entries) => format!("defer {}", entries.len()),
            NextAction::Wait => "wait".to_owned(),
        }
    }

    #[test]
    fn a_user_is_checked_once_for_all_orders() {
        let mut queue = queue(9, &[("a", "u", 1), ("b", "u", 1), ("c", "v", 1)]);
        assert_eq!(next(&mut queue, 8, 9), "a");
        assert_eq!(next(&mut queue, 8, 9), "c");
        assert_eq!(next(&mut queue, 8, 9), "wait");
        queue.enter(order("d", "u", 1));
        assert_eq!(next(&mut queue, 8, 9), "wait", "the user is being checked");
        assert_eq!(queue.pass(&user("u")).len(), 3);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.end(&user("v")).len(), 1);
        assert!(queue.len() == 0 && !queue.is_idle(), "not decided yet");
        queue.settle(&user("u"));
        assert!(queue.is_idle());
    }

    #[test]
    fn no_more_are_checked_than_there_are_units_and_calls() {
        let mut queue = queue(3, &[("a", "u", 2), ("b", "v", 1), ("c", "w", 1), ("d", "x", 1)]);
        assert_eq!(next(&mut queue, 8, 3), "a");
        assert_eq!(next(&mut queue, 1, 3), "wait", "no span");
        assert_eq!(next(&mut queue, 8, 2), "wait", "another worker's units");
        assert_eq!(next(&mut queue, 8, 3), "b");
        assert_eq!(next(&mut queue, 8, 3), "wait", "no unit");
        queue.pass(&user("u"));
        assert_eq!(next(&mut queue, 8, 3), "wait", "its units may go to u");
        queue.settle(&user("u"));
        assert_eq!(next(&mut queue, 8, 3), "c", "u was denied");
        queue.left = 0;
        assert_eq!(next(&mut queue, 8, 0), "propose 1", "a check would be for nothing");
    }

    #[test]
    fn who_wants_more_than_is_left_is_not_checked() {
        let mut queue = queue(3, &[("a", "u", 4), ("b", "v", 3)]);
        assert_eq!(next(&mut queue, 8, 3), "propose 1");
        assert_eq!(next(&mut queue, 8, 3), "b");
    }

    #[test]
    fn while_the_service_is_unavailable_one_is_tried_and_the_others_are_deferred() {
        let mut queue = queue(9, &[("a", "u", 1), ("b", "v", 1), ("c", "w", 1)]);
        queue.unavailable_since = Some(Instant::now());
        assert_eq!(next(&mut queue, 8, 9), "a");
        assert_eq!(next(&mut queue, 8, 9), "defer 1");
        assert_eq!(next(&mut queue, 8, 9), "defer 1");
        assert_eq!(next(&mut queue, 8, 9), "wait");
    }

    #[test]
    fn who_got_no_answer_waits_before_all_others() {
        let mut queue = queue(9, &[("a", "u", 1), ("b", "v", 1)]);
        assert_eq!(next(&mut queue, 8, 9), "a");
        queue.wait_again(user("u"));
        assert_eq!(next(&mut queue, 8, 9), "a");
        assert_eq!(next(&mut queue, 8, 9), "b");
    }
}
