//! A lock by SET NX with a lifetime, deleted unconditionally: the incident of the second article.
//!
//! The user is checked under the lock, stock is read and compared before it is decremented, and the
//! lock is deleted in a `finally` block. There are two of it:
//!
//! - *as published*: the block runs for everybody, so that who didn't get the lock deletes it too.
//!   From the second buyer on it excludes nobody.
//! - *as told*: only who got the lock deletes it. That is what the story speaks of: a late owner,
//!   whose lock has expired, deletes that of somebody else.
//!
//! The listing writes the key and the hash as the literal "key"; that is taken for a slip of making it
//! anonymous, not for a fault.

use async_trait::async_trait;
use redis::{AsyncCommands, ExistenceCheck, SetExpiry, SetOptions};

use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};
use crate::compare::store::FIELD;

pub(super) struct SetnxLock {
    /// As published.
    pub everybody_deletes: bool,
}

#[async_trait]
impl Design for SetnxLock {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        let (mut redis, lock) = (shop.store.redis(), &shop.store.keys.lock);
        let options = if_absent(shop.times.lock);
        let got = redis.set_options::<_, _, Option<String>>(lock, "val", options).await?.is_some();
        let since = got.then(|| shop.under_lock());
        let told = if got { get_and_compare(shop, buyer).await } else { Ok(Told::Busy) };
        if got || self.everybody_deletes {
            let () = redis.del(lock).await?;
        }
        drop(since);
        told
    }
}

/// SET NX PX.
pub(super) fn if_absent(lifetime: std::time::Duration) -> SetOptions {
    let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
    SetOptions::default().conditional_set(ExistenceCheck::NX).with_expiration(SetExpiry::PX(millis))
}

/// What is done under the lock. The decrement is atomic, but what decides is the stock read before.
pub(super) async fn get_and_compare(shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
    shop.check_user(buyer).await?;
    let (mut redis, info) = (shop.store.redis(), &shop.store.keys.info);
    let stock: i64 = redis.hget(info, FIELD).await?;
    if stock <= 0 {
        return Ok(Told::SoldOut);
    }
    let _: i64 = redis.hincr(info, FIELD, -1).await?;
    shop.store.create_order(buyer).await?;
    Ok(Told::Bought)
}
