//! Read, compare, then write back: the fault that the first article found in its shop.
//!
//! Between GET and SET any number of others read the same stock, and each writes it back less one.

use async_trait::async_trait;
use redis::AsyncCommands;

use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};

pub(super) struct ReadModifyWrite;

#[async_trait]
impl Design for ReadModifyWrite {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        shop.check_user(buyer).await?;
        let (mut redis, key) = (shop.store.redis(), &shop.store.keys.stock);
        let stock: i64 = redis.get(key).await?;
        if stock < 1 {
            return Ok(Told::SoldOut);
        }
        let () = redis.set(key, stock - 1).await?;
        shop.store.create_order(buyer).await?;
        Ok(Told::Bought)
    }
}
