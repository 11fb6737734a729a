//! The stock split over processes, an atomic integer in each; the gateway chooses the process by a hash
//! of the user id: the second article's last proposal.
//!
//! It can't oversell, and needs no server to decide. A share dies with its process; a process that is
//! added has no share; and one process is sold out while another still sells.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use async_trait::async_trait;

use super::{Design, Told};
use crate::compare::shop::{Shop, ShopError};

pub(super) struct ShardedStock {
    on_sale: AtomicBool,
    stock: AtomicI64,
}

impl ShardedStock {
    /// A process with `share` units.
    pub(super) fn new(share: i64) -> Self {
        Self { on_sale: AtomicBool::new(true), stock: AtomicI64::new(share) }
    }
}

#[async_trait]
impl Design for ShardedStock {
    async fn buy(&self, shop: &Shop, buyer: &str) -> Result<Told, ShopError> {
        if !self.on_sale.load(Ordering::SeqCst) {
            return Ok(Told::SoldOut);
        }
        shop.check_user(buyer).await?;
        if self.stock.fetch_sub(1, Ordering::SeqCst) < 1 {
            self.on_sale.store(false, Ordering::SeqCst);
            return Ok(Told::SoldOut);
        }
        shop.store.create_order(buyer).await?;
        Ok(Told::Bought)
    }

    fn left(&self) -> Option<i64> {
        Some(self.stock.load(Ordering::SeqCst))
    }
}

/// The units of process `number` of `processes`, where `stock` is split evenly.
pub fn share(stock: u32, processes: usize, number: usize) -> u32 {
    let (stock, processes, number) = (stock as usize, processes.max(1), number);
    let units = stock / processes + usize::from(number < stock % processes);
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// The index among `processes`, which are not none, that the gateway sends `buyer` to.
pub fn index(buyer: &str, processes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    buyer.hash(&mut hasher);
    let indexes = processes.max(1) as u64;
    usize::try_from(hasher.finish() % indexes).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_differ_by_one_at_most() {
        for (stock, processes) in [(100, 4), (101, 4), (3, 4), (0, 4), (7, 1)] {
            let shares: Vec<u32> =
                (0..processes).map(|number| share(stock, processes, number)).collect();
            assert_eq!(shares.iter().sum::<u32>(), stock);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn buyers_always_meet_the_same_process_and_spread_over_all() {
        let mut met = [0; 4];
        for number in 0..1000 {
            let buyer = format!("u-{number}");
            assert_eq!(index(&buyer, 4), index(&buyer, 4));
            met[index(&buyer, 4)] += 1;
        }
        assert!(met.iter().all(|&buyers| buyers > 150), "{met:?}");
        assert_eq!(index("u-1", 1), 0);
    }
}
