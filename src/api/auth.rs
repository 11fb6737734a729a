//! Who calls: bearer tokens (RFC 6750) that are signed JWTs (RFC 7519).
//!
//! The key decides on the algorithm; a token that names another one is refused. Where several keys are
//! published, a token's `kid` says which of them it is, and nothing else that a token says of itself is used
//! to choose how it is verified (RFC 8725 section 3.1).

mod jwks;
mod key;
mod location;
mod provider;
mod published;
mod sign;
mod token;
mod verifying;

use std::sync::Arc;

use chrono::{DateTime, Utc};

pub use jwks::{InvalidKeySet, MAX_KEYS};
pub use key::{InvalidKey, Key, MIN_SECRET_BYTES};
pub use location::{InvalidLocation, Unreadable};
pub use published::KeysUnavailable;
pub(super) use published::RETRY_AFTER;
pub use sign::{InvalidPrivateKey, NotSigned, SigningKey};

use crate::api::ApiSettings;
use crate::domain::order::{InvalidId, UserId};
use crate::metrics::{Dependency, Metrics};
use crate::outage::Outage;
use location::Location;
use published::PublishedKeys;
use token::{Claims, Header, bearer_token, is_access_token};
use verifying::VerifyingKey;

/// The longest token that is looked at, in bytes. Servers commonly take no longer header either.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// By how much the clocks of who issues a token and who verifies it may differ: a token is taken
/// this long after `exp` and before `nbf` (RFC 7519 section 4.1.4 allows "a few minutes").
pub const LEEWAY_S: u32 = 30;

/// The scope of operators: open, restock and close sales, and switch their verification.
pub const ADMIN_SCOPE: &str = "floodgate:admin";

/// The scope of those who submit orders.
pub const SUBMIT_SCOPE: &str = "floodgate:submit";

/// The scope of those who read metrics. Operators may, too.
pub const METRICS_SCOPE: &str = "floodgate:metrics";

/// The scope of those who read the event feed, which tells who buys what. Operators may, too.
pub const EVENTS_SCOPE: &str = "floodgate:events";

/// Who a token speaks for, and what its scopes allow. What a request needs is the route's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one for each scope")]
pub struct Principal {
    /// The buyer, from `sub`. None when the token names no user, such as that of another service.
    pub subject: Option<UserId>,
    /// Whether the token has [`ADMIN_SCOPE`].
    pub admin: bool,
    /// Whether the token has [`SUBMIT_SCOPE`].
    pub submit: bool,
    /// Whether the token has [`METRICS_SCOPE`].
    pub metrics: bool,
    /// Whether the token has [`EVENTS_SCOPE`].
    pub events: bool,
}

/// Why a request has no principal. The texts are for the client: they say what is wrong with what it
/// sent, and nothing of the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No `Authorization`, or one of another scheme than `Bearer`.
    #[error("a bearer token is needed")]
    Missing,
    /// The token can't be read.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// The token names another algorithm than that of the key, or `none`.
    #[error("the token's alg is not {accepted}")]
    WrongAlgorithm {
        /// The only one accepted.
        accepted: &'static str,
    },
    /// The token demands that an extension is understood (RFC 7515 section 4.1.11); none is.
    #[error("the token has a crit header, and no extension is supported")]
    CriticalExtension,
    /// The token is a JWT for another use (RFC 8725 section 3.11).
    #[error("the token's typ is neither JWT nor at+jwt")]
    WrongType,
    /// The token names a key that is not published, or not known yet.
    #[error("the token's kid is not that of a known key")]
    UnknownKey,
    /// The token names no key, and its algorithm is that of none, or of several.
    #[error("the token has no kid, and its alg is not that of exactly one key")]
    NoKeyId,
    /// No key is known yet. No fault of the token.
    #[error("the keys that tokens are verified with could not be read yet")]
    NoKeys,
    /// The token was not signed with the key, or changed since.
    #[error("the token's signature does not verify")]
    BadSignature,
    /// The token has no `exp`, and would be good for ever.
    #[error("the token has no exp")]
    NoExpiry,
    /// `exp` is past.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYet,
    /// `iss` is not who is trusted.
    #[error("the token's iss is not the one expected")]
    WrongIssuer,
    /// `aud` doesn't name this server.
    #[error("the token's aud is not the one expected")]
    WrongAudience,
    /// `sub` is no buyer's id.
    #[error("the token's sub is no user id: {0}")]
    BadSubject(#[from] InvalidId),
}

impl Refusal {
    /// The value of `WWW-Authenticate` for the answer 401 (RFC 6750 section 3). A client that sent
    /// no token is told nothing but the scheme, as section 3.1 wants it.
    pub fn challenge(&self) -> String {
        match self {
            Self::Missing => "Bearer".to_owned(),
            other => format!("Bearer error=\"invalid_token\", error_description=\"{other}\""),
        }
    }
}

/// Why there is no token_verifier as the settings want it.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTokenSettings {
    /// The settings name no usable key.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The settings don't say where the keys are.
    #[error(transparent)]
    Location(#[from] InvalidLocation),
    /// The file that the settings name can't be used.
    #[error(
        "{0}; put a JWK Set (RFC 7517) there that this process may read, or set \
         FLOODGATE_API__JWT_JWKS to another path or to an https:// URL"
    )]
    Keys(#[from] KeysUnavailable),
}

/// Tells who calls, by the token of a request.
#[derive(Debug, Clone)]
pub struct TokenVerifier {
    keys: Keys,
    issuer: Option<String>,
    audience: Option<String>,
}

#[derive(Debug, Clone)]
enum Keys {
    One(Arc<VerifyingKey>),
    Published(Arc<PublishedKeys>),
}

impl TokenVerifier {
    /// The token_verifier that the settings want; `None` when they name no key.
    pub fn from_settings(settings: &ApiSettings) -> Result<Option<Self>, InvalidTokenSettings> {
        let key = Key::from_settings(&settings.jwt_secret, &settings.jwt_public_key)?;
        let location = settings.jwt_jwks.trim();
        let keys = match (key, location.is_empty()) {
            (None, true) => return Ok(None),
            (Some(_), false) => return Err(InvalidKey::Several.into()),
            (Some(key), true) => Keys::One(Arc::new(VerifyingKey::new(&key))),
            (None, false) => {
                let location = Location::parse(location)?;
                Keys::Published(Arc::new(PublishedKeys::new(location, settings.jwt_jwks_refresh)?))
            }
        };
        let wanted = |claim: &String| (!claim.is_empty()).then(|| claim.clone());
        let (issuer, audience) = (wanted(&settings.jwt_issuer), wanted(&settings.jwt_audience));
        Ok(Some(Self { keys, issuer, audience }))
    }

    /// A token_verifier that lets tokens pass that are signed with `key`, by `issuer` if one is given.
    ///
    /// With an `audience`, a token's `aud` has to name it. Without, a token that has an `aud` is
    /// refused, as it is meant for another service (RFC 7519 section 4.1.3).
    pub fn new(key: &Key, issuer: Option<String>, audience: Option<String>) -> Self {
        Self { keys: Keys::One(Arc::new(VerifyingKey::new(key))), issuer, audience }
    }

    /// Whether there is a key to verify with.
    pub fn has_keys(&self) -> bool {
        match &self.keys {
            Keys::One(_) => true,
            Keys::Published(keys) => keys.known().is_some(),
        }
    }

    /// Reads keys that are published now, and says how many can be used.
    pub async fn read_keys(&self) -> Result<usize, KeysUnavailable> {
        match &self.keys {
            Keys::One(_) => Ok(1),
            Keys::Published(keys) => Ok(keys.read().await?.names().len()),
        }
    }

    /// Keeps keys that are published up to date for as long as it is polled.
    pub async fn keep_up(self, metrics: Arc<Metrics>) {
        if let Keys::Published(keys) = self.keys {
            keys.keep_up(Outage::new(metrics.dependencies.of(Dependency::Jwks))).await;
        }
    }

    /// Tells who calls, by the request's `Authorization`, at the time `now`.
    pub fn verify(
        &self,
        authorization: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<Principal, Refusal> {
        let token = bearer_token(authorization)?;
        let header = Header::of(token)?;
        let claims = match &self.keys {
            Keys::One(key) => verified(token, &header, key)?,
            Keys::Published(keys) => {
                let known = keys.known().ok_or(Refusal::NoKeys)?;
                let chosen = known.choose(header.kid.as_deref(), &header.alg);
                let key = chosen.inspect_err(|refusal| {
                    if *refusal == Refusal::UnknownKey {
                        keys.want();
                    }
                })?;
                verified(token, &header, key)?
            }
        };
        self.check_validity(&claims, now)?;
        let has =
            |scope| [&claims.scope, &claims.scp].into_iter().flatten().any(|s| s.lists(scope));
        Ok(Principal {
            admin: has(ADMIN_SCOPE),
            submit: has(SUBMIT_SCOPE),
            metrics: has(METRICS_SCOPE),
            events: has(EVENTS_SCOPE),
            subject: claims.sub.map(UserId::parse).transpose()?,
        })
    }

    fn check_validity(&self, claims: &Claims, now: DateTime<Utc>) -> Result<(), Refusal> {
        let (now_s, leeway_s) = (now.timestamp() as f64, f64::from(LEEWAY_S));
        if now_s >= claims.exp.ok_or(Refusal::NoExpiry)? + leeway_s {
            return Err(Refusal::Expired);
        }
        if claims.nbf.is_some_and(|nbf_s| nbf_s > now_s + leeway_s) {
            return Err(Refusal::NotYet);
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(Refusal::WrongIssuer);
        }
        match (&claims.aud, &self.audience) {
            (None, None) => Ok(()),
            (Some(given), Some(expected)) if given.includes(expected) => Ok(()),
            _ => Err(Refusal::WrongAudience),
        }
    }
}

/// What `token` claims, if `key` has signed it. Refuses by the header what the library would refuse
/// without saying why, or let pass.
fn verified(token: &str, header: &Header, key: &VerifyingKey) -> Result<Claims, Refusal> {
    if header.alg != key.algorithm {
        return Err(Refusal::WrongAlgorithm { accepted: key.algorithm });
    }
    if header.crit {
        return Err(Refusal::CriticalExtension);
    }
    if header.typ.as_ref().is_some_and(|typ| !is_access_token(typ)) {
        return Err(Refusal::WrongType);
    }
    key.claims(token)
}

#[cfg(test)]
mod tests;
