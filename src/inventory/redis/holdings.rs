//! What Redis holds, read for an audit.

use async_trait::async_trait;
use redis::{AsyncCommands, Value};

use super::{RedisInventory, digest, unavailable};
use crate::domain::order::{Order, SaleId};
use crate::inventory::{Held, HeldSale, Holdings, InventoryError};

/// Buyers read at once, about (`COUNT` of HSCAN).
const BUYERS: usize = 1000;
/// The fields of a sale's hash, as in `lua/deduct.lua`.
const FIELDS: [&str; 8] =
    ["stock", "version", "sold", "limit", "opens_at", "closes_at", "verification", "paused"];

#[async_trait]
impl Holdings for RedisInventory {
    async fn sales(&self) -> Result<Vec<String>, InventoryError> {
        let mut connection = self.connection().await?;
        let prefix = format!("{}:{{", self.namespace);
        let keys = connection.keys(&format!("{prefix}*")).await.map_err(unavailable)?;
        let sale = |key: &String| {
            let (sale, _) = key.strip_prefix(&prefix)?.rsplit_once("}:")?;
            Some(sale.to_owned())
        };
        let mut sales: Vec<String> = keys.iter().filter_map(sale).collect();
        sales.sort_unstable();
        sales.dedup();
        Ok(sales)
    }

    async fn held(&self, sale: &SaleId) -> Result<Option<Held>, InventoryError> {
        let mut connection = self.connection().await?;
        let [hash, deducted, _] = self.keys(sale);
        let mut pipe = redis::pipe();
        pipe.ignore_errors().hmget(&hash, &FIELDS).scard(&deducted);
        let answers: Vec<redis::RedisResult<Value>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let mut answers = answers.into_iter();
        let (Some(fields), Some(deducted)) = (answers.next(), answers.next()) else {
            return Err(unavailable("an answer is missing"));
        };
        let read = |fields, deducted| {
            let fields: Vec<Option<String>> = redis::from_redis_value(fields)?;
            let deducted: u64 = redis::from_redis_value(deducted)?;
            Ok::<_, redis::RedisError>((fields, deducted))
        };
        let (fields, deducted) = match (fields, deducted) {
            (Ok(fields), Ok(deducted)) => read(fields, deducted).map_err(unavailable)?,
            (Err(error), _) | (_, Err(error)) if super::is_of_keys(&error) => {
                return Ok(Some(Held::Damaged(error.to_string())));
            }
            (Err(error), _) | (_, Err(error)) => return Err(unavailable(error)),
        };
        // As the scripts see it: without its stock a sale is not held.
        if fields.first().is_none_or(Option::is_none) {
            return Ok(None);
        }
        Ok(Some(parse(&fields, deducted)))
    }

    async fn deducted(&self, orders: &[Order]) -> Result<u64, InventoryError> {
        let Some(first) = orders.first() else { return Ok(0) };
        let mut connection = self.connection().await?;
        let [_, deducted, _] = self.keys(&first.sale_id);
        let digests: Vec<String> = orders.iter().map(digest).collect();
        let found: Vec<bool> =
            connection.smismember(deducted, digests).await.map_err(unavailable)?;
        Ok(found.into_iter().filter(|found| *found).count() as u64)
    }

    async fn buyers(
        &self,
        sale: &SaleId,
        cursor: u64,
    ) -> Result<(u64, Vec<(String, String)>), InventoryError> {
        let mut connection = self.connection().await?;
        let [_, _, buyers] = self.keys(sale);
        let mut scan = redis::cmd("HSCAN");
        scan.arg(buyers).arg(cursor).arg("COUNT").arg(BUYERS);
        scan.query_async(&mut connection).await.map_err(unavailable)
    }

    async fn forget(&self, sale: &SaleId) -> Result<(), InventoryError> {
        RedisInventory::forget(self, &[sale]).await
    }

    async fn forget_watermark(&self, sale: &SaleId) -> Result<(), InventoryError> {
        let mut connection = self.connection().await?;
        connection.unlink(self.committed_key(sale)).await.map_err(unavailable)
    }
}

/// A sale's hash.
fn parse(fields: &[Option<String>], deducted: u64) -> Held {
    let text = |index: usize| fields.get(index).and_then(Option::as_deref).unwrap_or_default();
    let number = |index: usize| text(index).parse::<i64>().ok();
    let optional = |index: usize| match text(index) {
        "" => Some(None),
        _ => number(index).map(Some),
    };
    let sale = || {
        Some(HeldSale {
            left: number(0)?,
            version: number(1)?,
            sold: number(2)?,
            per_user_limit: optional(3)?,
            opens_at_ms: optional(4)?,
            closes_at_ms: optional(5)?,
            verification: text(6) == "1",
            paused: text(7) == "1",
            deducted,
        })
    };
    sale().map_or_else(|| Held::Damaged(format!("{FIELDS:?} are {fields:?}")), Held::Sale)
}
