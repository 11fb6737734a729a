//! New keys of sales.

use ring::rand::{SecureRandom, SystemRandom};

use crate::domain::erasure::ErasureKey;

/// A key that nobody can guess.
pub(crate) fn random() -> ErasureKey {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .unwrap_or_else(|_| unreachable!("every system that floodgate runs on has random numbers"));
    ErasureKey::of(&bytes)
}
