//! WATCH, MULTI, EXEC, with retries: named by the first article, without code.
//!
//! It can't oversell: EXEC does nothing if anybody wrote the stock since WATCH. The more buyers there
//! are at once, the more of them read and compare for nothing.

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, RedisResult};

use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};

/// Tries before the buyer is told to come again.
const TRIES: u32 = 100;

pub(super) struct OptimisticLock;

#[async_trait]
impl Design for OptimisticLock {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        shop.check_user(buyer).await?;
        // What is watched belongs to a connection, so nobody else may use it meanwhile.
        let mut redis = shop.store.take().await?;
        let told = try_often(&mut redis, &shop.store.keys.stock).await?;
        shop.store.give_back(redis).await;
        if told == Told::Bought {
            shop.store.create_order(buyer).await?;
        }
        Ok(told)
    }
}

async fn try_often(redis: &mut MultiplexedConnection, key: &str) -> RedisResult<Told> {
    for _ in 0..TRIES {
        let () = redis::cmd("WATCH").arg(key).query_async(redis).await?;
        let stock: i64 = redis.get(key).await?;
        if stock < 1 {
            let () = redis::cmd("UNWATCH").query_async(redis).await?;
            return Ok(Told::SoldOut);
        }
        // Nil when the stock was written since WATCH.
        let done: Option<(i64,)> = redis::pipe().atomic().decr(key, 1).query_async(redis).await?;
        if done.is_some() {
            return Ok(Told::Bought);
        }
    }
    Ok(Told::Busy)
}
