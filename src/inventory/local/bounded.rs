//! A map of bounded size.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A map that holds so many entries, and forgets the oldest for a new one.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    capacity: usize,
    entries: HashMap<K, (u64, V)>,
    /// Every insertion, oldest first. Those of entries that were removed since mean nothing.
    insertions: VecDeque<(u64, K)>,
    next: u64,
}

impl<K: Eq + Hash + Clone, V> Bounded<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), insertions: VecDeque::new(), next: 0 }
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|(_, value)| value)
    }

    pub(super) fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Sets the value of `key`. A key that is held keeps its age.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if let Some(held) = self.get_mut(&key) {
            *held = value;
            return;
        }
        if self.insertions.len() == self.capacity {
            self.forget_oldest();
        }
        self.insertions.push_back((self.next, key.clone()));
        self.entries.insert(key, (self.next, value));
        self.next += 1;
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.entries.remove(key);
    }

    fn forget_oldest(&mut self) {
        let Some((number, key)) = self.insertions.pop_front() else { return };
        if self.entries.get(&key).is_some_and(|(inserted, _)| *inserted == number) {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_for_a_new_one() {
        let mut map = Bounded::new(3);
        for n in 0..3 {
            map.insert(n, n);
        }
        map.insert(0, 10);
        map.remove(&1);
        map.insert(3, 3);
        assert_eq!([0, 1, 2, 3].map(|n| map.get(&n).copied()), [None, None, Some(2), Some(3)]);
        for n in 0..1000 {
            map.insert(1, n);
            map.remove(&1);
        }
        assert!(map.insertions.len() <= 3);
        map.insert(1, 1);
        assert_eq!(map.get(&1), Some(&1));
    }
}
