//! Redlock over three Redis servers (<https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/>),
//! which the second article weighs for its lock; under it, the incident's own steps.
//!
//! It answers what a better lock would have changed. Nobody deletes another's lock any more, and a
//! server may be lost. A lifetime is still a lifetime.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use redis::{AsyncCommands, Script};
use uuid::Uuid;

use super::owner_token_lock::COMPARE_AND_DELETE;
use super::setnx_lock::{get_and_compare, if_absent};
use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};
use crate::compare::store::Store;

/// What clocks may differ by: a hundredth of the lifetime and this, as the reference implementation has it.
const DRIFT: Duration = Duration::from_millis(2);

pub(super) struct Redlock {
    release: Script,
}

impl Redlock {
    pub(super) fn new() -> Self {
        Self { release: Script::new(COMPARE_AND_DELETE) }
    }

    /// Whether more than half of the servers gave the lock, with some of its life left.
    async fn acquire(&self, shop: &Shop, token: &str) -> bool {
        let (begun, lifetime) = (Instant::now(), shop.times.lock);
        let asking = servers(shop).map(|store| async move {
            let mut redis = store.redis();
            let set = redis.set_options::<_, _, Option<String>>(
                &store.keys.lock,
                token,
                if_absent(lifetime),
            );
            // A server that is away counts as one that refuses.
            set.await.is_ok_and(|set| set.is_some())
        });
        let given = join_all(asking).await.into_iter().filter(|&given| given).count();
        let validity = lifetime.saturating_sub(lifetime / 100 + DRIFT);
        2 * given > servers(shop).count() && begun.elapsed() < validity
    }

    async fn release(&self, shop: &Shop, token: &str) {
        let releasing = servers(shop).map(|store| async move {
            let mut redis = store.redis();
            let mut call = self.release.key(&store.keys.lock);
            // What isn't deleted expires.
            let _ = call.arg(token).invoke_async::<i64>(&mut redis).await;
        });
        join_all(releasing).await;
    }
}

fn servers(shop: &Shop) -> impl Iterator<Item = &Store> {
    std::iter::once(&shop.store).chain(&shop.others)
}

#[async_trait]
impl Design for Redlock {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        let token = Uuid::now_v7().to_string();
        let got = self.acquire(shop, &token).await;
        let since = got.then(|| shop.under_lock());
        let told = if got { get_and_compare(shop, buyer).await } else { Ok(Told::Busy) };
        self.release(shop, &token).await;
        drop(since);
        told
    }
}
