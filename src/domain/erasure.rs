//! What stands for a buyer where the user's id is not kept, or not any more.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::domain::decision::{Decision, Outcome};
use crate::domain::digest::{hex, keyed};
use crate::domain::order::{Order, OrderKey, Quantity, UserId};
use crate::domain::sale::SaleState;

/// What every token begins with.
const TOKEN: &str = "erased-";
/// Bytes of the code that a token holds, in hex; with [`TOKEN`] it is a user id.
const TOKEN_BYTES: usize = 24;

/// The secret of a sale by which its users' fingerprints and tokens are made: those of one user in two sales cannot
/// be told to be of one.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ErasureKey(String);

impl ErasureKey {
    /// The key with these bytes, which are to be random.
    pub fn of(bytes: &[u8; 32]) -> Self {
        Self(hex(bytes))
    }

    /// The key as it was stored.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// As it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id that replaces the user's in the sale. A token's own is the same token.
    pub fn token(&self, user: &UserId) -> UserId {
        if bytes_of(user).is_some() {
            return user.clone();
        }
        let code = keyed(self.0.as_bytes(), user.as_str().as_bytes());
        let token = UserId::parse(format!("{TOKEN}{}", hex(&code[..TOKEN_BYTES])));
        token.unwrap_or_else(|error| unreachable!("letters and digits: {error}"))
    }

    /// What is kept of the user of an archived order. A token has that of the user it stands for.
    pub fn fingerprint(&self, user: &UserId) -> Fingerprint {
        let first = bytes_of(user).unwrap_or_else(|| {
            let code = keyed(self.0.as_bytes(), user.as_str().as_bytes());
            [code[0], code[1], code[2], code[3], code[4], code[5], code[6], code[7]]
        });
        Fingerprint(i64::from_be_bytes(first))
    }
}

impl fmt::Debug for ErasureKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErasureKey(…)")
    }
}

/// Whether a user's id is one that replaces another.
pub fn is_token(user: &UserId) -> bool {
    bytes_of(user).is_some()
}

/// The first bytes of the code in a token; `None`: it is no token.
fn bytes_of(user: &UserId) -> Option<[u8; 8]> {
    let digits = user.as_str().strip_prefix(TOKEN)?;
    let is_token = digits.len() == 2 * TOKEN_BYTES
        && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if !is_token {
        return None;
    }
    let first = u64::from_str_radix(digits.get(..16)?, 16).ok()?;
    Some(first.to_be_bytes())
}

/// The first 8 bytes of the keyed digest of a user's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(pub i64);

/// What is kept of an order whose decision is in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedOrder {
    /// The order.
    pub key: OrderKey,
    /// How many units it asked for.
    pub quantity: Quantity,
    /// Its answer.
    pub outcome: Outcome,
    /// When it was decided.
    pub decided_at: DateTime<Utc>,
    /// Who asked.
    pub buyer: Fingerprint,
}

impl ArchivedOrder {
    /// The decision, if `order`, of the sale `state`, is the same order. Of what is not kept it has the sale as it is
    /// now, and the time of the decision; no event tells of those.
    pub fn repeated_by(&self, order: &Order, state: &SaleState) -> Option<Decision> {
        let is_same = self.quantity == order.quantity
            && self.is_of(&order.user_id, state.erasure_key.as_ref());
        is_same.then(|| Decision {
            order: order.clone(),
            outcome: self.outcome,
            submitted_at: self.decided_at,
            decided_at: self.decided_at,
            version: state.version,
            sold: state.sold,
        })
    }

    /// Whether `user` has asked, in the sale with that key.
    pub fn is_of(&self, user: &UserId, key: Option<&ErasureKey>) -> bool {
        key.is_some_and(|key| key.fingerprint(user) == self.buyer)
    }

    /// Whether this is what is kept of `decision`, in the sale with that key.
    pub fn is_kept_of(&self, decision: &Decision, key: &ErasureKey) -> bool {
        *self == Self::of(decision, key)
    }

    /// What is kept of `decision`, in the sale with that key.
    pub fn of(decision: &Decision, key: &ErasureKey) -> Self {
        let Decision { order, outcome, decided_at, .. } = decision;
        Self {
            key: order.key(),
            quantity: order.quantity,
            outcome: *outcome,
            decided_at: *decided_at,
            buyer: key.fingerprint(&order.user_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_user_id_of_its_own_with_the_fingerprint_of_its_user() {
        let (key, other) = (ErasureKey::of(&[1; 32]), ErasureKey::of(&[2; 32]));
        let user = UserId::parse("u".repeat(64)).unwrap();
        let token = key.token(&user);
        assert!(token != user && token != other.token(&user) && token.as_str().len() <= 64);
        assert_eq!((key.token(&token), key.fingerprint(&token)), (token, key.fingerprint(&user)));
        let almost = UserId::parse("erased-0").unwrap();
        assert_ne!(key.token(&almost), almost);
        assert_ne!(key.fingerprint(&user), other.fingerprint(&user));
        assert!(!format!("{key:?}").contains("01"));
    }
}
