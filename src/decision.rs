//! Decisions: the final answer for an order.

use chrono::{DateTime, Utc};

use crate::order::Order;

/// Why an order was rejected although there may have been stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The user service said no.
    UserDenied,
    /// It would take the buyer over the sale's limit per user.
    PurchaseLimit,
    /// Submitted before the sale opened.
    NotOpen,
    /// Submitted at or after the end of the sale.
    Closed,
    /// Waited longer than `intent.max_age` for its decision.
    Expired,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 5] =
        [Self::UserDenied, Self::PurchaseLimit, Self::NotOpen, Self::Closed, Self::Expired];

    /// The word used in events and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserDenied => "user_denied",
            Self::PurchaseLimit => "purchase_limit",
            Self::NotOpen => "not_open",
            Self::Closed => "closed",
            Self::Expired => "expired",
        }
    }
}

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The units are the buyer's.
    Created,
    /// Fewer units were left than the order asked for.
    SoldOut,
    /// Refused for a reason that has nothing to do with the stock left.
    Rejected(Reason),
}

impl Outcome {
    /// The word used in routing keys, in events and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::SoldOut => "sold_out",
            Self::Rejected(_) => "rejected",
        }
    }

    /// The reason of a rejection.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Rejected(reason) => Some(reason),
            Self::Created | Self::SoldOut => None,
        }
    }

    /// Reads back what [`Outcome::name`] and [`Reason::name`] wrote.
    pub fn from_names(outcome: &str, reason: Option<&str>) -> Option<Self> {
        match (outcome, reason) {
            ("created", None) => Some(Self::Created),
            ("sold_out", None) => Some(Self::SoldOut),
            ("rejected", Some(name)) => {
                let reason = Reason::ALL.into_iter().find(|reason| reason.name() == name)?;
                Some(Self::Rejected(reason))
            }
            _ => None,
        }
    }
}

/// The answer to one order. Once the ledger holds it, it is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The order as it was decided.
    pub order: Order,
    /// The answer.
    pub outcome: Outcome,
    /// When it was decided, in whole milliseconds, so that every store gives back what it got.
    pub decided_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_survives_its_names() {
        let mut all = vec![Outcome::Created, Outcome::SoldOut];
        all.extend(Reason::ALL.map(Outcome::Rejected));
        for outcome in all {
            let back = Outcome::from_names(outcome.name(), outcome.reason().map(Reason::name));
            assert_eq!(back, Some(outcome));
        }
        assert_eq!(Outcome::from_names("rejected", None), None);
        assert_eq!(Outcome::from_names("created", Some("closed")), None);
    }
}
