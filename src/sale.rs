//! Sales: one item's stock on offer for a time.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::order::SaleId;

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
}

impl SaleState {
    /// Units not sold yet.
    pub fn remaining(&self) -> u32 {
        self.sale.stock.saturating_sub(self.sold)
    }
}
