//! A set of public keys, as issuers of tokens publish it: a JWK Set (RFC 7517 section 5).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use serde::Deserialize;
use serde_json::Value;

use super::Refusal;
use super::key::Key;
use super::verifying::VerifyingKey;

/// The most keys in a set. Issuers publish a handful.
pub const MAX_KEYS: usize = 100;

/// Keys by their ids.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Named>);

#[derive(Debug)]
struct Named {
    kid: Option<String>,
    key: VerifyingKey,
}

/// Why a text is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeySet {
    /// It is something else.
    #[error("it is no JWK Set: accepted is JSON with an array `keys` (RFC 7517 section 5)")]
    NoSet,
    /// It has more than [`MAX_KEYS`].
    #[error("it has {0} keys; accepted: up to {MAX_KEYS}")]
    TooMany(usize),
    /// No key of it can verify a token.
    #[error(
        "none of its {0} keys is for signatures and supported; accepted: RSA (RS256, 2048 to 8192 \
         bits), EC P-256 (ES256), Ed25519 (EdDSA)"
    )]
    NoneUsable(usize),
}

#[derive(Deserialize)]
struct Published {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a set. Keys that can't verify tokens are left out, as the RFC wants it: they are for
    /// something else, or for others who understand them.
    pub(super) fn parse(json: &[u8]) -> Result<Self, InvalidKeySet> {
        let Published { keys } = serde_json::from_slice(json).map_err(|_| InvalidKeySet::NoSet)?;
        let count = keys.len();
        if count > MAX_KEYS {
            return Err(InvalidKeySet::TooMany(count));
        }
        let usable: Vec<Named> = keys
            .into_iter()
            .filter_map(|value| serde_json::from_value(value).ok())
            .filter_map(|jwk: Jwk| {
                let key = VerifyingKey::new(&key(&jwk)?);
                Some(Named { kid: jwk.common.key_id, key })
            })
            .collect();
        if usable.is_empty() { Err(InvalidKeySet::NoneUsable(count)) } else { Ok(Self(usable)) }
    }

    /// The ids of the keys, and their algorithms.
    pub(super) fn names(&self) -> Vec<(Option<&str>, &'static str)> {
        self.0.iter().map(|named| (named.kid.as_deref(), named.key.algorithm)).collect()
    }

    /// The key for a token with this header: the key that its `kid` names, and that has its `alg`;
    /// without `kid`, the only one that has its `alg`. Of keys that have the same id and algorithm the
    /// first holds.
    pub(super) fn choose(&self, kid: Option<&str>, alg: &str) -> Result<&VerifyingKey, Refusal> {
        let Some(kid) = kid else {
            let mut fitting = self.0.iter().filter(|named| named.key.algorithm == alg);
            return match (fitting.next(), fitting.next()) {
                (Some(named), None) => Ok(&named.key),
                _ => Err(Refusal::NoKeyId),
            };
        };
        let mut of_that_id = self.0.iter().filter(|named| named.kid.as_deref() == Some(kid));
        let Some(first) = of_that_id.next() else { return Err(Refusal::UnknownKey) };
        std::iter::once(first)
            .chain(of_that_id)
            .map(|named| &named.key)
            .find(|key| key.algorithm == alg)
            .ok_or(Refusal::WrongAlgorithm { accepted: first.key.algorithm })
    }
}

/// The key that a JWK describes, if it is a public one for signatures of the algorithm that goes with
/// its kind.
fn key(jwk: &Jwk) -> Option<Key> {
    let common = &jwk.common;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let (key, algorithm) = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            (Key::rsa(&decode(&rsa.n)?, &decode(&rsa.e)?), KeyAlgorithm::RS256)
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            // Each coordinate has the size of the field (RFC 7518 section 6.2.1.2).
            let (x, y): ([u8; 32], [u8; 32]) =
                (decode(&ec.x)?.try_into().ok()?, decode(&ec.y)?.try_into().ok()?);
            (Key::p256(&[&[4], &x[..], &y[..]].concat()), KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            (Key::ed25519(&decode(&okp.x)?), KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    let verifies = common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|ops| ops.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|named| named == algorithm);
    key.filter(|_| verifies)
}
