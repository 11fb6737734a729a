//! Opening and changing sales, as far as it is the same in every ledger.

use std::collections::{HashMap, HashSet};

use super::{Change, Changed, LedgerError, Opening};
use crate::domain::order::{AdjustmentId, SaleId};
use crate::domain::sale::{Announcement, PauseMode, Restock, Sale, SaleState};

impl Opening {
    /// What became of each of `sales`, of which those called `new` were stored just now.
    pub(super) fn all(
        sales: &[Sale],
        new: Vec<(String,)>,
        states: &HashMap<SaleId, SaleState>,
    ) -> Result<Vec<Self>, LedgerError> {
        let mut new: HashSet<String> = new.into_iter().map(|(id,)| id).collect();
        sales
            .iter()
            .map(|sale| match states.get(&sale.id) {
                // Only its first mention opened it, should the same sale be asked for twice.
                _ if new.remove(sale.id.as_str()) => Ok(Self::Opened),
                Some(state) if state.sale == *sale => Ok(Self::Unchanged),
                Some(state) => Ok(Self::Differs(state.clone())),
                None => Err(LedgerError::Permanent(format!("sale {} is gone", sale.id).into())),
            })
            .collect()
    }
}

impl Change {
    /// The adjustment id, of a restock.
    pub(super) fn adjustment_id(&self) -> Option<&AdjustmentId> {
        match self {
            Self::Restock { adjustment_id, .. } => Some(adjustment_id),
            Self::Close { .. }
            | Self::Verify { .. }
            | Self::Pause { .. }
            | Self::Lost { .. }
            | Self::Accept { .. } => None,
        }
    }

    /// Applies it to a sale, where `first` is the restock that its adjustment id stands for already.
    /// If it is new, there is something to write.
    pub fn apply(&self, state: &mut SaleState, first: Option<Restock>) -> Changed {
        let is_restored = state.paused == Some(PauseMode::Restored);
        let (restock, is_new) = match self {
            Self::Restock { units, .. } if first.is_some() => {
                if let Some(first) = first.as_ref().filter(|first| first.units != *units) {
                    return Changed::Conflict(first.clone());
                }
                (first, false)
            }
            Self::Restock { adjustment_id, units, at } => {
                if state.restock(*units).is_err() {
                    return Changed::StockTooLarge;
                }
                let restock = Restock {
                    adjustment_id: adjustment_id.clone(),
                    sale_id: state.sale.id.clone(),
                    units: *units,
                    version: state.version,
                    stock: state.sale.stock,
                    at: *at,
                };
                (Some(restock), true)
            }
            Self::Close { at } => (None, state.close(*at)),
            Self::Verify { on } => (None, state.set_verification(*on)),
            Self::Pause { .. } if is_restored => return Changed::NotAccepted,
            Self::Pause { mode, at } => (None, state.pause(*mode, *at)),
            Self::Lost { version, at } => {
                let is_as_seen = state.version == *version;
                (None, is_as_seen && state.pause(Some(PauseMode::Restored), *at))
            }
            Self::Accept { at } => (None, is_restored && state.pause(None, *at)),
        };
        Changed::Done { state: state.clone(), restock, is_new }
    }
}

impl Changed {
    /// Whether the sale is another than before.
    pub fn is_new(&self) -> bool {
        matches!(self, Self::Done { is_new: true, .. })
    }

    /// What subscribers are owed for it.
    pub fn owed(&self) -> Vec<Announcement> {
        match self {
            Self::Done { restock: Some(restock), .. } => {
                vec![Announcement::Restocked(restock.clone())]
            }
            _ => Vec::new(),
        }
    }
}

/// Sales by id.
pub(super) fn sorted(sales: HashMap<SaleId, SaleState>) -> Vec<SaleState> {
    let mut sales: Vec<SaleState> = sales.into_values().collect();
    sales.sort_unstable_by(|a, b| a.sale.id.cmp(&b.sale.id));
    sales
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn a_sale_of_a_restored_ledger_is_held_until_that_is_accepted() {
        let mut state = SaleState::opened(Sale {
            id: SaleId::parse("s").unwrap(),
            stock: 5,
            per_user_limit: None,
            opens_at: None,
            closes_at: None,
            verification: false,
        });
        let at = Utc::now();
        let lost = |version| Change::Lost { version, at };
        let accept = Change::Accept { at };
        // Each change, whether it does something, and how the sale is after it.
        for (change, does, is_held, version) in [
            (&accept, false, false, 1),
            (&lost(0), false, false, 1),
            (&lost(1), true, true, 2),
            (&lost(2), false, true, 2),
            (&accept, true, false, 3),
            (&lost(2), false, false, 3),
        ] {
            assert_eq!(change.apply(&mut state, None).is_new(), does, "{change:?}");
            let paused = is_held.then_some(PauseMode::Restored);
            assert_eq!((state.paused, state.version), (paused, version), "{change:?}");
        }
        assert!(lost(3).apply(&mut state, None).is_new());
        for mode in [None, Some(PauseMode::Hold), Some(PauseMode::Refuse)] {
            let pause = Change::Pause { mode, at };
            assert_eq!(pause.apply(&mut state, None), Changed::NotAccepted);
        }
        assert_eq!(state.version, 4);
    }
}
