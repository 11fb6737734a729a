//! Orders: who wants how much of which sale.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

/// The longest order id, sale id or user id accepted, in bytes.
pub const MAX_ID_BYTES: usize = 64;

/// Why a text is no id. Names the kind of id and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}; accepted: 1 to {MAX_ID_BYTES} of {accepted}")]
pub struct InvalidId {
    field: &'static str,
    problem: &'static str,
    accepted: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $field:literal, $accepted:literal, $extra:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes `text` as an id, or says what is wrong with it.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                let problem = if text.is_empty() {
                    "is empty"
                } else if text.len() > MAX_ID_BYTES {
                    "is too long"
                } else if !text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || $extra.contains(&b))
                {
                    "has a character that is not accepted"
                } else if matches!(&*text, "." | "..") {
                    // In the path of a URL they stand for another path (RFC 3986 section 5.2.4).
                    "is a dot segment"
                } else {
                    return Ok(Self(text));
                };
                Err(InvalidId { field: $field, problem, accepted: $accepted })
            }

            /// The id as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }
    };
}

id!(
    /// Names an order within its sale; the key of idempotency.
    OrderId,
    "order_id",
    "A-Z a-z 0-9 . _ : -",
    b"._:-"
);
id!(
    /// Names a sale. Has no dot, because it is one word of a routing key.
    SaleId,
    "sale_id",
    "A-Z a-z 0-9 _ -",
    b"_-"
);
id!(
    /// Names a buyer.
    UserId,
    "user_id",
    "A-Z a-z 0-9 . _ : -",
    b"._:-"
);
id!(
    /// Names a change of a sale's stock, chosen by the operator; the key of its idempotency.
    AdjustmentId,
    "adjustment_id",
    "A-Z a-z 0-9 . _ : -",
    b"._:-"
);

/// Units wanted by one order: 1 to [`Quantity::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u32);

impl Quantity {
    /// A single unit.
    pub const ONE: Self = Self(1);
    /// The most units one order may ask for.
    pub const MAX: u32 = 1_000_000;

    /// `units` as a quantity, or `None` when out of range.
    pub fn new(units: i64) -> Option<Self> {
        u32::try_from(units).ok().filter(|units| (1..=Self::MAX).contains(units)).map(Self)
    }

    /// The number of units.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// More or fewer units than one order may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("accepted: 1 to {max} units", max = Quantity::MAX)]
pub struct InvalidQuantity;

impl TryFrom<i32> for Quantity {
    type Error = InvalidQuantity;

    fn try_from(units: i32) -> Result<Self, InvalidQuantity> {
        Self::new(units.into()).ok_or(InvalidQuantity)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// What an order asks for. Two messages of a sale with the same order id and the same contents are one
/// order; the same order id with other contents is a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Order {
    /// The order's id.
    #[serde(rename = "order_id")]
    pub id: OrderId,
    /// The sale it wants to buy from.
    pub sale_id: SaleId,
    /// The buyer.
    pub user_id: UserId,
    /// How many units.
    pub quantity: Quantity,
}

impl Order {
    /// What the order is known by.
    pub fn key(&self) -> OrderKey {
        OrderKey { sale_id: self.sale_id.clone(), order_id: self.id.clone() }
    }
}

/// Identifies an order: an order id means something only within its sale, so the same id in another
/// sale is another order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderKey {
    /// The sale.
    pub sale_id: SaleId,
    /// The order's id within the sale.
    pub order_id: OrderId,
}

impl fmt::Display for OrderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.sale_id, self.order_id)
    }
}

/// A request to buy, as a producer posted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// What is asked for.
    pub order: Order,
    /// When the buyer asked, as far as the producer told.
    pub submitted_at: Option<DateTime<Utc>>,
}

/// An order that asks for its decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What is asked for.
    pub order: Order,
    /// When the buyer asked, as far as the message says. The ledger takes its own time where this is
    /// missing or later, so that neither a forged time nor a worker's clock gets an order in before
    /// the sale opens.
    pub submitted_at: Option<DateTime<Utc>>,
    /// What is known of its user.
    pub eligibility: Eligibility,
}

/// Whether a user may buy, as far as is known. Matters only where the sale wants its users verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Eligibility {
    /// The user was not verified.
    #[default]
    Unchecked,
    /// The user service allows the purchase.
    Eligible,
    /// The user service denies the purchase.
    Denied,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_their_alphabet_and_nothing_else() {
        assert!(OrderId::parse("536365-85123A").is_ok());
        assert!(UserId::parse("17850.0").is_ok());
        assert!(SaleId::parse("a.b").is_err(), "a dot would split a routing key");
        assert!(SaleId::parse("x".repeat(64)).is_ok());
        for bad in [String::new(), "x".repeat(65), "a b".into(), "a\0".into(), "é".into()] {
            assert!(OrderId::parse(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(OrderId::parse("...").is_ok() && OrderId::parse(".a").is_ok());
        assert!(OrderId::parse(".").is_err() && OrderId::parse("..").is_err(), "lost in a URL");
    }

    #[test]
    fn an_invalid_id_names_its_field_and_what_is_accepted() {
        let message = UserId::parse("").unwrap_err().to_string();
        assert_eq!(message, "user_id is empty; accepted: 1 to 64 of A-Z a-z 0-9 . _ : -");
    }

    #[test]
    fn quantities_are_bounded_at_both_ends() {
        assert_eq!(Quantity::new(1).map(Quantity::get), Some(1));
        assert_eq!(Quantity::new(1_000_000).map(Quantity::get), Some(1_000_000));
        for out in [0, -1, 1_000_001, i64::MAX, i64::MIN] {
            assert_eq!(Quantity::new(out), None, "{out}");
        }
    }
}
