//! A lock that is polled for until a time-out; GET, compare and DECRBY under it: the first article's.
//!
//! SETNX and EXPIRE are two commands: a process that dies between them leaves a lock that never expires.
//! Who doesn't get the lock in time gets the same `False` as who finds no stock, so the shop can't but
//! tell both of them the same. The users are checked before, and the order is created after.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::AsyncCommands;

use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};

/// The pause between two tries, as published. Never scaled: Redis's round trip isn't either.
const POLL_EVERY: Duration = Duration::from_millis(1);

pub(super) struct PollingLock;

#[async_trait]
impl Design for PollingLock {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        shop.check_user(buyer).await?;
        if !decrease(shop).await? {
            return Ok(Told::SoldOut);
        }
        shop.store.create_order(buyer).await?;
        Ok(Told::Bought)
    }
}

/// Whether one unit was taken.
async fn decrease(shop: &Shop) -> Result<bool, ShopError> {
    if !acquire(shop).await? {
        return Ok(false);
    }
    let _since = shop.under_lock();
    let taken = take(shop).await;
    let () = shop.store.redis().del(&shop.store.keys.lock).await?;
    taken
}

async fn acquire(shop: &Shop) -> Result<bool, ShopError> {
    let (mut redis, lock) = (shop.store.redis(), &shop.store.keys.lock);
    let end = Instant::now() + shop.times.acquire;
    while Instant::now() < end {
        if redis.set_nx(lock, "locked").await? {
            let millis = i64::try_from(shop.times.lock.as_millis()).unwrap_or(i64::MAX);
            let () = redis.pexpire(lock, millis).await?;
            return Ok(true);
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(false)
}

async fn take(shop: &Shop) -> Result<bool, ShopError> {
    let (mut redis, key) = (shop.store.redis(), &shop.store.keys.stock);
    let stock: i64 = redis.get(key).await?;
    if stock < 1 {
        return Ok(false);
    }
    let _: i64 = redis.decr(key, 1).await?;
    Ok(true)
}
