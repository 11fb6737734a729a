//! How many of something each client has at once, up to a limit.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// Counts what is held by each key. Keys that hold nothing take no memory.
pub(super) struct Permits<K> {
    limit: usize,
    held: Mutex<HashMap<K, usize>>,
}

/// One of the things that its key holds. Dropped, it is given back.
pub(super) struct Permit<K: Hash + Eq> {
    permits: Arc<Permits<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Permits<K> {
    /// Up to `limit` for each key.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default() })
    }

    /// The most that one key may hold.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// One more for `key`, unless it holds all it may.
    pub(super) fn take(self: &Arc<Self>, key: &K) -> Option<Permit<K>> {
        let mut held = lock(&self.held);
        let count = held.entry(key.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Permit { permits: self.clone(), key: key.clone() })
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = lock(&self.permits.held);
        // The key moves out with its last permit, so that the table holds those only who hold something.
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

fn lock<K>(held: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    held.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_limit_and_what_is_dropped_is_free_again() {
        let permits = Permits::new(2);
        let first = permits.take(&"a");
        let second = permits.take(&"a");
        assert!(first.is_some() && second.is_some());
        assert!(permits.take(&"a").is_none());
        assert!(permits.take(&"b").is_some(), "another key");
        drop(first);
        assert!(permits.take(&"a").is_some());
        drop(second);
        assert!(lock(&permits.held).is_empty());
    }
}
