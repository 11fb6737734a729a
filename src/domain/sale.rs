//! Sales: one item's stock on offer for a time.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::erasure::ErasureKey;
use crate::domain::order::{AdjustmentId, Quantity, SaleId};

pub use crate::domain::watermark::Watermark;

/// The most units one sale may have on offer, 2^31 - 1: what four bytes of the ledger hold.
pub const MAX_STOCK: u32 = i32::MAX.cast_unsigned();

/// More units than [`MAX_STOCK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the sale would have more units on offer than a sale can have; accepted: up to {MAX_STOCK}"
)]
pub struct StockTooLarge;

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
    /// No buyer gets a unit before the user service has allowed it.
    pub verification: bool,
}

impl Sale {
    /// Says what is wrong with a definition, if anything is.
    pub fn check(&self) -> Result<(), InvalidSale> {
        if self.stock > MAX_STOCK {
            return Err(InvalidSale::Stock(StockTooLarge));
        }
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
    /// Too many units.
    #[error(transparent)]
    Stock(StockTooLarge),
    /// A limit of zero would reject every order.
    #[error("the limit per user is 0, so no user could buy; give 1 or more, or leave it out")]
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

/// What becomes of the orders of a paused sale that are not decided yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseMode {
    /// They are rejected as `paused`.
    Refuse,
    /// They wait until the sale is resumed, and grow no older meanwhile.
    Hold,
    /// The same, because the ledger was found to know less than it had committed, as one that was restored from a
    /// backup does: until an operator accepts it. Never asked for by an operator.
    #[serde(skip_deserializing)]
    Restored,
}

impl PauseMode {
    /// Those that an operator may ask for.
    pub const CHOICES: [Self; 2] = [Self::Refuse, Self::Hold];

    /// Whether orders wait.
    pub fn holds(self) -> bool {
        matches!(self, Self::Hold | Self::Restored)
    }

    /// The word used in settings, answers and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Hold => "hold",
            Self::Restored => "restored",
        }
    }
}

/// A word that is no way to pause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("accepted: refuse, hold")]
pub struct NoPauseMode;

impl FromStr for PauseMode {
    type Err = NoPauseMode;

    fn from_str(text: &str) -> Result<Self, NoPauseMode> {
        Self::CHOICES.into_iter().find(|mode| mode.name() == text).ok_or(NoPauseMode)
    }
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
    /// of verification, each pause, each end of one and the closing adds one.
    pub version: u32,
    /// When the last unit was sold, while none is left.
    pub sold_out_at: Option<DateTime<Utc>>,
    /// Set while it is paused.
    pub paused: Option<PauseMode>,
    /// When its orders were first held.
    pub held_from: Option<DateTime<Utc>>,
    /// When they were last held.
    pub held_until: Option<DateTime<Utc>>,
    /// Its orders may be archived, so each has to be looked up there too.
    pub archived: bool,
    /// What fingerprints and tokens of its users are keyed with, once there are any.
    pub erasure_key: Option<ErasureKey>,
}

impl SaleState {
    /// A sale that has just opened.
    pub fn opened(sale: Sale) -> Self {
        Self {
            sale,
            sold: 0,
            version: 1,
            sold_out_at: None,
            paused: None,
            held_from: None,
            held_until: None,
            archived: false,
            erasure_key: None,
        }
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
        } else if self.paused.is_some() {
            Phase::Paused
        } else if self.remaining() == 0 {
            Phase::SoldOut
        } else {
            Phase::Open
        }
    }

    /// Puts `units` more on offer, which makes a new version.
    pub fn restock(&mut self, units: Quantity) -> Result<(), StockTooLarge> {
        self.sale.stock = self
            .sale
            .stock
            .checked_add(units.get())
            .filter(|stock| *stock <= MAX_STOCK)
            .ok_or(StockTooLarge)?;
        self.version += 1;
        self.sold_out_at = None;
        Ok(())
    }

    /// Ends the sale for orders submitted at `at` or later; never later than it ended before, nor
    /// before it opens. Says whether that changed anything.
    pub fn close(&mut self, at: DateTime<Utc>) -> bool {
        let at = self.sale.opens_at.map_or(at, |opens| at.max(opens));
        let changes = self.sale.closes_at.is_none_or(|closes| at < closes);
        if changes {
            self.sale.closes_at = Some(at);
            self.version += 1;
        }
        changes
    }

    /// Switches the verification of users. Says whether that changed anything.
    pub fn set_verification(&mut self, on: bool) -> bool {
        let changes = self.sale.verification != on;
        if changes {
            self.sale.verification = on;
            self.version += 1;
        }
        changes
    }

    /// Pauses the sale at `at`, or changes how it is paused; `None` resumes it. Says whether that changed
    /// anything.
    pub fn pause(&mut self, mode: Option<PauseMode>, at: DateTime<Utc>) -> bool {
        let changes = self.paused != mode;
        if changes {
            let holds = |mode: Option<PauseMode>| mode.is_some_and(PauseMode::holds);
            if holds(self.paused) && !holds(mode) {
                self.held_until = Some(at);
            }
            if holds(mode) {
                self.held_from = self.held_from.or(Some(at));
            }
            self.paused = mode;
            self.version += 1;
        }
        changes
    }

    /// From when on an order that was submitted at `submitted_at` grows old: not while it is held. An order
    /// that was too old already when the sale was first held, older than `max_age`, stays so. Of several times
    /// of holding only the beginning of the first and the end of the last are kept, so that one that follows
    /// soon after another does not make the orders of both too old.
    pub fn aged_from(&self, submitted_at: DateTime<Utc>, max_age: Duration) -> DateTime<Utc> {
        match (self.held_from, self.held_until) {
            (Some(from), Some(until))
                if (from - submitted_at).to_std().unwrap_or_default() <= max_age =>
            {
                submitted_at.max(until)
            }
            _ => submitted_at,
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
    /// An operator has paused it.
    Paused,
    /// No unit is left. It may be restocked.
    SoldOut,
    /// It is over.
    Closed,
}

impl Phase {
    /// Every phase, in the order in which a sale goes through them.
    pub const ALL: [Self; 5] =
        [Self::NotOpen, Self::Open, Self::Paused, Self::SoldOut, Self::Closed];

    /// The word used in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotOpen => "not_open",
            Self::Open => "open",
            Self::Paused => "paused",
            Self::SoldOut => "sold_out",
            Self::Closed => "closed",
        }
    }
}

/// News of a sale that subscribers are owed. The ledger keeps it until it is published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Announcement {
    /// No unit is left.
    SoldOut(SoldOut),
    /// More units are on offer.
    Restocked(Restock),
}

impl Announcement {
    /// What it is known by: the sale, its version, and the adjustment id, empty for a sale that sold
    /// out.
    pub fn key(&self) -> (&SaleId, u32, &str) {
        match self {
            Self::SoldOut(SoldOut { sale_id, version, .. }) => (sale_id, *version, ""),
            Self::Restocked(Restock { sale_id, version, adjustment_id, .. }) => {
                (sale_id, *version, adjustment_id.as_str())
            }
        }
    }

    /// Units added, stock on offer, and when.
    pub fn contents(&self) -> (Option<Quantity>, u32, DateTime<Utc>) {
        match self {
            Self::SoldOut(SoldOut { stock, at, .. }) => (None, *stock, *at),
            Self::Restocked(Restock { units, stock, at, .. }) => (Some(*units), *stock, *at),
        }
    }
}

/// The moment in which a sale sold its last unit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
        state.pause(Some(PauseMode::Refuse), time(1500).unwrap());
        assert_eq!(phase(&state, 1999), Phase::Paused);
        assert_eq!(phase(&state, 2000), Phase::Closed);
        state.pause(None, time(1600).unwrap());
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
