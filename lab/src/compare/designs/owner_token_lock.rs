//! A lock that only its owner deletes, and an atomic decrement that decides: the second article's repair.
//!
//! The lock still expires under a slow check, but nothing depends on it any more than the load on the
//! user service. It still lets one buyer at a time pass. The counter goes below zero by one for each
//! buyer who came too late.

use async_trait::async_trait;
use redis::{AsyncCommands, Script};
use uuid::Uuid;

use super::setnx_lock::if_absent;
use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};
use crate::compare::store::FIELD;

/// Deletes the lock `KEYS[1]` if its value is `ARGV[1]`.
pub(super) const COMPARE_AND_DELETE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then \
     return redis.call('del', KEYS[1]) end return 0";

pub(super) struct OwnerTokenLock {
    release: Script,
}

impl OwnerTokenLock {
    pub(super) fn new() -> Self {
        Self { release: Script::new(COMPARE_AND_DELETE) }
    }
}

#[async_trait]
impl Design for OwnerTokenLock {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        let (mut redis, lock) = (shop.store.redis(), &shop.store.keys.lock);
        let (token, options) = (Uuid::now_v7().to_string(), if_absent(shop.times.lock));
        let got = redis.set_options::<_, _, Option<String>>(lock, &token, options).await?.is_some();
        let since = got.then(|| shop.under_lock());
        let told = if got { decrement(shop, buyer).await } else { Ok(Told::Busy) };
        // In a `finally` block there too: for who didn't get the lock it does nothing.
        let _: i64 = self.release.key(lock).arg(&token).invoke_async(&mut redis).await?;
        drop(since);
        told
    }
}

async fn decrement(shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
    shop.check_user(buyer).await?;
    let left: i64 = shop.store.redis().hincr(&shop.store.keys.info, FIELD, -1).await?;
    if left < 0 {
        return Ok(Told::SoldOut);
    }
    shop.store.create_order(buyer).await?;
    Ok(Told::Bought)
}
