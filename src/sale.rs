//! Sales: one item's stock on offer for a time.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::order::{AdjustmentId, Quantity, SaleId};

/// A sale as its operator defined it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sale {
    /// The sale's id.
    #[serde(rename = "sale_id")]
    pub id: SaleId,
    /// Units on offer.
    pub stock: u32,
    /// The most units one buyer may get, or no limit.
    pub per_user_limit: Option<u32>,
    /// Orders submitted before this are rejected as `not_open`.
    pub opens_at: Option<DateTime<Utc>>,
    /// Orders submitted at this time or later are rejected as `closed`.
    pub closes_at: Option<DateTime<Utc>>,
    /// Nobody gets a unit before the user service has allowed it.
    pub verification: bool,
}

impl Sale {
    /// Says what is wrong with a definition, if anything is.
    pub fn check(&self) -> Result<(), InvalidSale> {
        if self.per_user_limit == Some(0) {
            return Err(InvalidSale::NoUnitsPerUser);
        }
        match (self.opens_at, self.closes_at) {
            (Some(opens), Some(closes)) if opens >= closes => {
                Err(InvalidSale::Window { opens, closes })
            }
            _ => Ok(()),
        }
    }
}

/// Why a definition is no sale.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSale {
    /// A limit of zero would reject every order.
    #[error("the limit per user is 0, so nobody could buy; give 1 or more, or leave it out")]
    NoUnitsPerUser,
    /// It would close before it opens.
    #[error("the sale closes at {closes}, which is not after it opens at {opens}")]
    Window {
        /// When it opens.
        opens: DateTime<Utc>,
        /// When it closes.
        closes: DateTime<Utc>,
    },
}

/// A sale and how far it has sold, as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SaleState {
    /// The definition.
    #[serde(flatten)]
    pub sale: Sale,
    /// Units sold so far.
    pub sold: u32,
    /// Counts the changes of the definition: a sale opens with 1, and each restock, each switching
    /// of verification and the closing adds one.
    pub version: u32,
    /// When the last unit was sold, while none is left.
    pub sold_out_at: Option<DateTime<Utc>>,
}

impl SaleState {
    /// A sale that has just opened.
    pub fn opened(sale: Sale) -> Self {
        Self { sale, sold: 0, version: 1, sold_out_at: None }
    }

    /// Units not sold yet.
    pub fn remaining(&self) -> u32 {
        self.sale.stock.saturating_sub(self.sold)
    }

    /// What becomes of an order that comes at `now`.
    pub fn phase(&self, now: DateTime<Utc>) -> Phase {
        if self.sale.closes_at.is_some_and(|closes| now >= closes) {
            Phase::Closed
        } else if self.sale.opens_at.is_some_and(|opens| now < opens) {
            Phase::NotOpen
        } else if self.remaining() == 0 {
            Phase::SoldOut
        } else {
            Phase::Open
        }
    }

    /// Whether this tells more than `other` of the same sale. Within a version units are only
    /// ever sold, so news that come out of order can be told apart.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.version, self.sold) > (other.version, other.sold)
    }
}

/// What a sale is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It has not opened yet.
    NotOpen,
    /// Units can be bought.
    Open,
    /// No unit is left. It may be restocked.
    SoldOut,
    /// It is over.
    Closed,
}

impl Phase {
    /// Every phase, in the order in which a sale goes through them.
    pub const ALL: [Self; 4] = [Self::NotOpen, Self::Open, Self::SoldOut, Self::Closed];

    /// The word used in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotOpen => "not_open",
            Self::Open => "open",
            Self::SoldOut => "sold_out",
            Self::Closed => "closed",
        }
    }
}

/// The moment in which a sale sold its last unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoldOut {
    /// The sale.
    pub sale_id: SaleId,
    /// The version of the sale that sold out.
    pub version: u32,
    /// Units on offer, all of them sold.
    pub stock: u32,
    /// When.
    pub at: DateTime<Utc>,
}

/// An adjustment that put more units on offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restock {
    /// Names it; the key of idempotency.
    pub adjustment_id: AdjustmentId,
    /// The sale.
    pub sale_id: SaleId,
    /// Units added.
    pub units: Quantity,
    /// The version that the sale has got by it.
    pub version: u32,
    /// Units on offer after it.
    pub stock: u32,
    /// When.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sale_goes_through_its_phases() {
        let time = |ms| DateTime::from_timestamp_millis(ms);
        let id = SaleId::parse("s").unwrap();
        let (opens_at, closes_at) = (time(1000), time(2000));
        let sale =
            Sale { id, stock: 1, per_user_limit: None, opens_at, closes_at, verification: false };
        let mut state = SaleState::opened(sale);
        let phase = |state: &SaleState, ms| state.phase(time(ms).unwrap());
        assert_eq!(phase(&state, 999), Phase::NotOpen);
        assert_eq!(phase(&state, 1000), Phase::Open);
        state.sold = 1;
        assert_eq!(phase(&state, 1999), Phase::SoldOut);
        assert_eq!(phase(&state, 2000), Phase::Closed);
    }

    #[test]
    fn a_later_version_is_newer_whatever_was_sold() {
        let sale = Sale {
            id: SaleId::parse("s").unwrap(),
            stock: 9,
            per_user_limit: None,
            opens_at: None,
            closes_at: None,
            verification: false,
        };
        let opened = SaleState::opened(sale);
        let sold = SaleState { sold: 9, ..opened.clone() };
        let restocked = SaleState { version: 2, ..opened.clone() };
        assert!(sold.is_newer_than(&opened) && !opened.is_newer_than(&sold));
        assert!(restocked.is_newer_than(&sold) && !sold.is_newer_than(&restocked));
        assert!(!opened.is_newer_than(&opened));
    }
}
