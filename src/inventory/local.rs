//! The inventory in this process: the counters in its memory, and the ledger behind it that makes
//! forgetting them safe. The Lua scripts in `lua/` say what each answer is.

mod bounded;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{Amendment, Correction, Inventory, InventoryError, Proposal, Proposals};
use crate::decision::{Outcome, Reason};
use crate::order::{Candidate, Clearance, Order, OrderId, Quantity, SaleId, UserId};
use crate::sale::{Sale, SaleState};
use bounded::Bounded;

/// Sales held at once. More than a batch has orders, so that a batch whose sales were just primed
/// finds all of them.
const MAX_SALES: usize = 10_000;
/// Decisions remembered. A repeat of one that is forgotten is proposed anew, and the ledger answers
/// as it did before.
const MAX_DECISIONS: usize = 200_000;
/// Buyers remembered. The ledger holds the limit of one that is forgotten.
const MAX_BUYERS: usize = 200_000;

/// [`Inventory`] for one process.
#[derive(Debug)]
pub struct LocalInventory {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    sales: Bounded<SaleId, Held>,
    decisions: Bounded<(Number, OrderId), Decided>,
    buyers: Bounded<(Number, UserId), i64>,
    next: Number,
}

/// Stands for a sale from when it was primed until it is forgotten.
type Number = u64;

/// The counters of a sale.
#[derive(Debug)]
struct Held {
    number: Number,
    /// Units left.
    stock: i64,
    offered: i64,
    version: u32,
    limit: Option<u32>,
    opens_at: Option<DateTime<Utc>>,
    closes_at: Option<DateTime<Utc>>,
    verification: bool,
}

/// A decision, with what makes two orders of one id and sale the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decided {
    outcome: Outcome,
    user_id: UserId,
    quantity: Quantity,
}

impl Decided {
    fn new(order: &Order, outcome: Outcome) -> Self {
        Self { outcome, user_id: order.user_id.clone(), quantity: order.quantity }
    }
}

impl LocalInventory {
    /// An inventory that holds nothing yet.
    pub fn new() -> Self {
        let counts = Counts {
            sales: Bounded::new(MAX_SALES),
            decisions: Bounded::new(MAX_DECISIONS),
            buyers: Bounded::new(MAX_BUYERS),
            next: 0,
        };
        Self { counts: Mutex::new(counts) }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LocalInventory {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    /// `decide.lua`, for one order.
    fn decide(&mut self, Candidate { order, at, clearance }: &Candidate) -> Proposal {
        let Some(sale) = self.sales.get_mut(&order.sale_id) else { return Proposal::Absent };
        let key = (sale.number, order.id.clone());
        if let Some(earlier) = self.decisions.get(&key) {
            return if *earlier == Decided::new(order, earlier.outcome) {
                Proposal::Decided { outcome: earlier.outcome, fresh: false }
            } else {
                Proposal::Conflict
            };
        }
        let units = i64::from(order.quantity.get());
        let buyer = sale.limit.map(|limit| {
            let buyer = (sale.number, order.user_id.clone());
            let bought = self.buyers.get(&buyer).copied().unwrap_or(0) + units;
            (buyer, bought, i64::from(limit))
        });
        let outcome = match clearance {
            Clearance::Refused(reason) => Outcome::Rejected(*reason),
            _ if sale.opens_at.is_some_and(|opens| *at < opens) => {
                Outcome::Rejected(Reason::NotOpen)
            }
            _ if sale.closes_at.is_some_and(|closes| *at >= closes) => {
                Outcome::Rejected(Reason::Closed)
            }
            _ if buyer.as_ref().is_some_and(|(_, bought, limit)| bought > limit) => {
                Outcome::Rejected(Reason::PurchaseLimit)
            }
            _ if units > sale.stock => Outcome::SoldOut,
            Clearance::Unchecked if sale.verification => return Proposal::Unchecked,
            _ => Outcome::Created,
        };
        if outcome == Outcome::Created {
            sale.stock -= units;
            if let Some((buyer, bought, _)) = buyer {
                self.buyers.insert(buyer, bought);
            }
        }
        self.decisions.insert(key, Decided::new(order, outcome));
        Proposal::Decided { outcome, fresh: true }
    }

    /// `amend.lua`, for one order, but for what bounds the stock.
    fn give_back(&mut self, Amendment { proposed, answer, .. }: &Amendment) {
        let Some(sale) = self.sales.get_mut(&proposed.sale_id) else { return };
        let key = (sale.number, proposed.id.clone());
        if self.decisions.get(&key) == Some(&Decided::new(proposed, Outcome::Created)) {
            let units = i64::from(proposed.quantity.get());
            sale.stock += units;
            if let Some(bought) = self.buyers.get_mut(&(sale.number, proposed.user_id.clone())) {
                *bought -= units;
            }
        }
        match answer {
            Some(decision) => {
                self.decisions.insert(key, Decided::new(&decision.order, decision.outcome));
            }
            None => self.decisions.remove(&key),
        }
    }

    /// `amend.lua`, its last step: never more stock than the ledger says is not sold.
    fn bound(&mut self, Amendment { proposed, sold, .. }: &Amendment) {
        if let (Some(sale), Some(sold)) = (self.sales.get_mut(&proposed.sale_id), sold) {
            sale.stock = sale.stock.min((sale.offered - i64::from(*sold)).max(0));
        }
    }

    /// `prime.lua`.
    fn prime(&mut self, SaleState { sale, sold, version, .. }: &SaleState) {
        let (offered, version) = (i64::from(sale.stock), *version);
        let (number, stock) = match self.sales.get(&sale.id) {
            Some(held) if held.version >= version => return,
            Some(held) => (held.number, held.stock + offered - held.offered),
            None => {
                self.next += 1;
                (self.next, offered - i64::from(*sold))
            }
        };
        let Sale { per_user_limit: limit, opens_at, closes_at, verification, .. } = *sale;
        let held =
            Held { number, stock, offered, version, limit, opens_at, closes_at, verification };
        self.sales.insert(sale.id.clone(), held);
    }
}

#[async_trait]
impl Inventory for LocalInventory {
    async fn propose(&self, orders: &[Candidate]) -> Result<Proposals, InventoryError> {
        let mut counts = self.counts();
        let answers = orders.iter().map(|candidate| counts.decide(candidate)).collect();
        let mut left = HashMap::new();
        for Candidate { order, .. } in orders {
            if !left.contains_key(&order.sale_id)
                && let Some(held) = counts.sales.get(&order.sale_id)
            {
                left.insert(order.sale_id.clone(), u32::try_from(held.stock).unwrap_or(0));
            }
        }
        Ok(Proposals { answers, left })
    }

    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError> {
        let mut counts = self.counts();
        for amendment in amendments {
            counts.give_back(amendment);
        }
        for amendment in amendments {
            counts.bound(amendment);
        }
        Ok(())
    }

    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        let mut counts = self.counts();
        for state in sales {
            counts.prime(state);
        }
        Ok(())
    }

    async fn remaining(&self, sales: &[SaleId]) -> Result<Vec<Option<u32>>, InventoryError> {
        let counts = self.counts();
        let stock = |sale: &SaleId| {
            counts.sales.get(sale).map(|held| u32::try_from(held.stock).unwrap_or(0))
        };
        Ok(sales.iter().map(stock).collect())
    }

    async fn correct(&self, corrections: &[Correction]) -> Result<Vec<bool>, InventoryError> {
        let mut counts = self.counts();
        let mut correct = |Correction { sale_id, seen, actual }: &Correction| {
            let sale = counts.sales.get_mut(sale_id);
            let standing = sale.filter(|held| held.stock == i64::from(*seen));
            standing.map(|held| held.stock = i64::from(*actual)).is_some()
        };
        Ok(corrections.iter().map(&mut correct).collect())
    }
}
