//! What becomes of a batch, order by order, by what the tables say.

use std::collections::{BTreeMap, HashMap};

use crate::decision::{Decision, Outcome, Reason};
use crate::ledger::{Proposed, Recorded, Recording};
use crate::order::{OrderId, SaleId, UserId};
use crate::sale::{SaleState, SoldOut};

/// A buyer's units, by sale and user.
pub(super) type Bought = HashMap<(SaleId, UserId), i64>;

/// What the tables say about the orders of a batch.
pub(super) struct Books {
    known: HashMap<OrderId, Decision>,
    sales: HashMap<SaleId, SaleState>,
    bought: Bought,
}

/// What is to be written for a batch, and what to answer.
pub(super) struct Judged {
    /// New decisions.
    pub new: Vec<Decision>,
    /// Sales that have sold units.
    pub sold: Vec<SaleState>,
    /// Buyers who got units: their units now, and their limit.
    pub bought: Vec<(SaleId, UserId, i64, u32)>,
    pub recording: Recording,
}

impl Books {
    pub(super) fn new(
        known: HashMap<OrderId, Decision>,
        sales: HashMap<SaleId, SaleState>,
        bought: Bought,
    ) -> Self {
        Self { known, sales, bought }
    }

    /// Judges `proposals` in their order. Fails with a sale that is not in the books, if units of
    /// it are to be sold.
    pub(super) fn judge(mut self, proposals: &[Proposed<'_>]) -> Result<Judged, SaleId> {
        let mut new = Vec::with_capacity(proposals.len());
        // By sale, so that it is written and told in one order whatever the hashing.
        let mut sellers: BTreeMap<&SaleId, bool> = BTreeMap::new();
        let mut buyers: Vec<(SaleId, UserId)> = Vec::new();
        for proposed in proposals {
            let Decision { order, outcome, decided_at } = proposed.decision;
            if *outcome == Outcome::Created {
                sellers.entry(&order.sale_id).or_default();
            }
            if self.known.contains_key(&order.id) {
                continue;
            }
            let outcome = match outcome {
                Outcome::Created => self.sell(proposed)?,
                other => *other,
            };
            if outcome == Outcome::Created {
                sellers.insert(&order.sale_id, true);
                buyers.push((order.sale_id.clone(), order.user_id.clone()));
            }
            new.push(Decision { order: order.clone(), outcome, decided_at: *decided_at });
        }
        let recording = self.recording(proposals, &new, &sellers);
        let sold = sellers.into_iter().filter(|&(_, sold)| sold);
        let sold = sold.filter_map(|(id, _)| self.sales.remove(id)).collect::<Vec<_>>();
        let limits: HashMap<&SaleId, u32> = sold
            .iter()
            .filter_map(|state| Some((&state.sale.id, state.sale.per_user_limit?)))
            .collect();
        let bought = buyers.into_iter().filter_map(|(sale, user)| {
            let limit = *limits.get(&sale)?;
            // Taken out, so that a buyer of two orders is written once.
            let ((sale, user), units) = self.bought.remove_entry(&(sale, user))?;
            Some((sale, user, units, limit))
        });
        let bought = bought.collect();
        Ok(Judged { new, sold, bought, recording })
    }

    /// Sells what `proposed` asks for, or says why not.
    fn sell(&mut self, proposed: &Proposed<'_>) -> Result<Outcome, SaleId> {
        let Decision { order, decided_at, .. } = proposed.decision;
        let Some(state) = self.sales.get_mut(&order.sale_id) else {
            return Err(order.sale_id.clone());
        };
        let (sale, at) = (&state.sale, proposed.submitted_at);
        if sale.opens_at.is_some_and(|opens| at < opens) {
            return Ok(Outcome::Rejected(Reason::NotOpen));
        }
        if sale.closes_at.is_some_and(|closes| at >= closes) {
            return Ok(Outcome::Rejected(Reason::Closed));
        }
        let units = order.quantity.get();
        let buyer = match sale.per_user_limit {
            Some(limit) => {
                let buyer = (order.sale_id.clone(), order.user_id.clone());
                let bought = self.bought.entry(buyer).or_default();
                if *bought + i64::from(units) > i64::from(limit) {
                    return Ok(Outcome::Rejected(Reason::PurchaseLimit));
                }
                Some(bought)
            }
            None => None,
        };
        if units > state.remaining() {
            return Ok(Outcome::SoldOut);
        }
        state.sold += units;
        state.sold_out_at = (state.remaining() == 0).then_some(*decided_at);
        if let Some(bought) = buyer {
            *bought += i64::from(units);
        }
        Ok(Outcome::Created)
    }

    fn recording(
        &self,
        proposals: &[Proposed<'_>],
        new: &[Decision],
        sellers: &BTreeMap<&SaleId, bool>,
    ) -> Recording {
        let mut new = new.iter();
        let answers = proposals.iter().map(|proposed| {
            let order = &proposed.decision.order;
            let sold = self.sales.get(&order.sale_id).map_or(0, |state| state.sold);
            match self.known.get(&order.id) {
                Some(known) => Recorded::Instead { decision: known.clone(), known: true, sold },
                None => match new.next() {
                    Some(decision) if decision.outcome != proposed.decision.outcome => {
                        Recorded::Instead { decision: decision.clone(), known: false, sold }
                    }
                    _ => Recorded::AsProposed,
                },
            }
        });
        let sold_out = sellers.keys().filter_map(|&id| {
            let state = self.sales.get(id)?;
            Some(SoldOut {
                sale_id: id.clone(),
                version: state.version,
                stock: state.sold,
                at: state.sold_out_at?,
            })
        });
        Recording { answers: answers.collect(), sold_out: sold_out.collect() }
    }
}
