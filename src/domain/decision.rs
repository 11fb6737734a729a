//! Decisions: the final answer for an order.

use chrono::{DateTime, Utc};

use crate::domain::order::Order;

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
    /// Came to its turn while an operator had paused the sale, and orders were refused.
    Paused,
    /// Waited longer than `intent.max_age` for its decision, or came first when its sale was archived.
    Expired,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::UserDenied,
        Self::PurchaseLimit,
        Self::NotOpen,
        Self::Closed,
        Self::Paused,
        Self::Expired,
    ];

    /// The word used in events and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserDenied => "user_denied",
            Self::PurchaseLimit => "purchase_limit",
            Self::NotOpen => "not_open",
            Self::Closed => "closed",
            Self::Paused => "paused",
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

    /// The outcome that [`Outcome::name`] and [`Outcome::reason`] are written as.
    pub fn parse(name: &str, reason: Option<&str>) -> Option<Self> {
        let rejected = Reason::ALL.into_iter().map(Self::Rejected);
        let mut all = [Self::Created, Self::SoldOut].into_iter().chain(rejected);
        all.find(|all| all.name() == name && all.reason().map(Reason::name) == reason)
    }

    /// One word for each outcome: the reason of a rejection, else [`Outcome::name`].
    pub fn code(self) -> &'static str {
        self.reason().map_or(self.name(), Reason::name)
    }
}

/// The answer to one order. Once the ledger holds it, it is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The order as it was decided.
    pub order: Order,
    /// The answer.
    pub outcome: Outcome,
    /// The order's time: when it counts as submitted, in whole milliseconds.
    pub submitted_at: DateTime<Utc>,
    /// When it was decided, in whole milliseconds, so that every store gives back what it got.
    pub decided_at: DateTime<Utc>,
    /// The sale's version at the order's turn, by which a refusal can be checked later.
    pub version: u32,
    /// Units that the sale had sold before the order's turn, likewise.
    pub sold: u32,
}

/// What the inventory expects the decision on an order to be. It saves the ledger work and never
/// changes a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Probably created: its units are deducted.
    Granted,
    /// Probably refused, or not to be decided before its user is verified.
    Refused,
}
