//! DECRBY decides, and INCRBY takes it back when it was too much: the first article's other repair.
//!
//! It can't oversell. A process that dies between DECRBY and creating the order takes the unit with it,
//! and a buyer who got no answer and asks again may get a second one.

use async_trait::async_trait;
use redis::AsyncCommands;

use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};

pub(super) struct AtomicDecrement;

#[async_trait]
impl Design for AtomicDecrement {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        shop.check_user(buyer).await?;
        let (mut redis, key) = (shop.store.redis(), &shop.store.keys.stock);
        let left: i64 = redis.decr(key, 1).await?;
        if left < 0 {
            let _: i64 = redis.incr(key, 1).await?;
            return Ok(Told::SoldOut);
        }
        shop.store.create_order(buyer).await?;
        Ok(Told::Bought)
    }
}
