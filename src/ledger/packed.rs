//! Archived orders, many in one row. What a database keeps of a row besides its columns, and the entry in an index,
//! take more bytes than what is kept of an order.

use std::collections::{HashMap, HashSet};

use super::row::row;
use super::rows::{letter, outcome, unexpected};
use crate::domain::decision::{Decision, Outcome};
use crate::domain::digest::half_digest;
use crate::domain::erasure::{ArchivedOrder, Fingerprint};
use crate::domain::order::{OrderId, OrderKey, Quantity, SaleId};
use chrono::{DateTime, Utc};

/// Orders in a row at most: 9.5 kB.
pub(super) const IN_A_BLOCK: usize = 256;
/// Of an order: 16 of the digest of its id, 8 of the buyer's fingerprint, 8 of the time in milliseconds since 1970, 4
/// of the quantity, all big-endian, and the letter of the outcome.
const BYTES: usize = 37;

row! {
    /// A row of `archived_orders`.
    pub(super) struct BlockRow {
        sale_id: SaleId as String,
        archive_id: String,
        first_order: String,
        orders: Vec<u8>,
    }
}

/// What is kept of an order, by the digest of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packed {
    digest: [u8; 16],
    pub(super) buyer: Fingerprint,
    decided_at: DateTime<Utc>,
    quantity: Quantity,
    outcome: Outcome,
}

/// Orders of a row.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) sale_id: SaleId,
    pub(super) archive_id: String,
    /// No order of the row has a lesser id.
    pub(super) first_order: String,
    pub(super) orders: Vec<Packed>,
}

impl Packed {
    fn of(order: &ArchivedOrder) -> Self {
        let ArchivedOrder { key, quantity, outcome, decided_at, buyer } = order;
        let (digest, buyer) = (digest(&key.order_id), *buyer);
        Self { digest, buyer, decided_at: *decided_at, quantity: *quantity, outcome: *outcome }
    }

    /// Units, if they were sold.
    fn units(&self) -> u64 {
        if self.outcome == Outcome::Created { self.quantity.get().into() } else { 0 }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk::<16>()?;
        let (buyer, rest) = rest.split_first_chunk::<8>()?;
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (quantity, letter) = rest.split_first_chunk::<4>()?;
        Some(Self {
            digest: *digest,
            buyer: Fingerprint(i64::from_be_bytes(*buyer)),
            decided_at: DateTime::from_timestamp_millis(i64::from_be_bytes(*at))?,
            quantity: Quantity::new(u32::from_be_bytes(*quantity).into())?,
            outcome: outcome(std::str::from_utf8(letter).ok()?).ok()?,
        })
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.digest);
        bytes.extend(self.buyer.0.to_be_bytes());
        bytes.extend(self.decided_at.timestamp_millis().to_be_bytes());
        bytes.extend(self.quantity.get().to_be_bytes());
        bytes.extend(letter(self.outcome).bytes());
    }
}

fn digest(order: &OrderId) -> [u8; 16] {
    half_digest(order.as_str().as_bytes())
}

impl TryFrom<BlockRow> for Block {
    type Error = sqlx::Error;

    fn try_from(row: BlockRow) -> Result<Self, sqlx::Error> {
        let BlockRow { sale_id, archive_id, first_order, orders } = row;
        let packed: Option<Vec<Packed>> = orders.chunks(BYTES).map(Packed::parse).collect();
        let orders = packed.ok_or_else(|| unexpected("an archived order"))?;
        Ok(Self { sale_id, archive_id, first_order, orders })
    }
}

impl Block {
    /// A block with `orders`, which are sorted by their ids, all of a sale.
    pub(super) fn of(archive_id: &str, orders: &[ArchivedOrder]) -> Option<Self> {
        let OrderKey { sale_id, order_id } = &orders.first()?.key;
        Some(Self {
            sale_id: sale_id.clone(),
            archive_id: archive_id.to_owned(),
            first_order: order_id.to_string(),
            orders: orders.iter().map(Packed::of).collect(),
        })
    }

    /// As it is stored.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.orders.len() * BYTES);
        self.orders.iter().for_each(|order| order.write(&mut bytes));
        bytes
    }

    /// Units of its created orders.
    pub(super) fn units(&self) -> u64 {
        self.orders.iter().map(Packed::units).sum()
    }
}

/// Orders that leave their blocks.
pub(super) struct Taken(HashSet<[u8; 16]>);

impl Taken {
    pub(super) fn of(decisions: &[&Decision]) -> Self {
        Self(decisions.iter().map(|decision| digest(&decision.order.id)).collect())
    }

    pub(super) fn has(&self, order: &Packed) -> bool {
        self.0.contains(&order.digest)
    }
}

/// What `blocks` have of `orders`.
pub(super) fn find(
    blocks: &[Block],
    orders: &[(&SaleId, &OrderId)],
) -> HashMap<OrderKey, ArchivedOrder> {
    let mut by_digest: HashMap<(&SaleId, [u8; 16]), &Packed> = HashMap::new();
    for block in blocks {
        by_digest.extend(block.orders.iter().map(|order| ((&block.sale_id, order.digest), order)));
    }
    let found = orders.iter().filter_map(|(sale, order)| {
        let packed = by_digest.get(&(*sale, digest(order)))?;
        let key = OrderKey { sale_id: (*sale).clone(), order_id: (*order).clone() };
        let Packed { buyer, decided_at, quantity, outcome, .. } = (*packed).clone();
        Some((key.clone(), ArchivedOrder { key, quantity, outcome, decided_at, buyer }))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::Reason;

    #[test]
    fn what_is_packed_is_found() {
        let outcomes = [Outcome::Created, Outcome::SoldOut, Outcome::Rejected(Reason::Paused)];
        let sale = SaleId::parse("s").unwrap();
        let order = |n: usize| ArchivedOrder {
            key: OrderKey {
                sale_id: sale.clone(),
                order_id: OrderId::parse(format!("o-{n}")).unwrap(),
            },
            quantity: Quantity::new(Quantity::MAX.into()).unwrap(),
            outcome: outcomes[n],
            decided_at: DateTime::from_timestamp_millis(1_795_680_000_123).unwrap(),
            buyer: Fingerprint(i64::MIN + 7),
        };
        let all: Vec<ArchivedOrder> = (0..3).map(order).collect();
        let block = Block::of("1", &all).unwrap();
        let row = BlockRow {
            sale_id: sale.clone(),
            archive_id: "1".into(),
            first_order: "o-0".into(),
            orders: block.bytes(),
        };
        assert_eq!((row.orders.len(), block.units()), (3 * BYTES, Quantity::MAX.into()));
        let blocks = [Block::try_from(row).unwrap()];
        assert_eq!(blocks[0].orders, block.orders);
        let (never, other) = (OrderId::parse("o-3").unwrap(), SaleId::parse("t").unwrap());
        let mut keys: Vec<_> = all.iter().map(|order| (&sale, &order.key.order_id)).collect();
        keys.extend([(&sale, &never), (&other, &all[0].key.order_id)]);
        let found = find(&blocks, &keys);
        assert_eq!(found.len(), 3);
        assert!(all.iter().all(|order| found[&order.key] == *order));
        let broken = BlockRow {
            sale_id: sale,
            archive_id: "1".into(),
            first_order: "o-0".into(),
            orders: vec![1; BYTES],
        };
        assert!(Block::try_from(broken).is_err());
    }
}
