//! Who calls: bearer tokens (RFC 6750) that are signed JWTs (RFC 7519).
//!
//! The key that is configured decides on the algorithm; a token that names another one is refused.
//! What a token says of itself is never used to choose how it is verified (RFC 8725 section 3.1).

mod key;
mod provider;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::ExposeSecret;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

pub use key::{InvalidKey, Key, MIN_SECRET_BYTES};

use crate::order::{InvalidId, UserId};

/// The longest token that is looked at, in bytes. Servers commonly take no longer header either.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// By how much the clocks of who issues a token and who verifies it may differ: a token is taken
/// this long after `exp` and before `nbf` (RFC 7519 section 4.1.4 allows "a few minutes").
pub const LEEWAY_S: u32 = 30;

/// The scope of operators: open, restock and close sales, and switch their verification.
pub const ADMIN_SCOPE: &str = "floodgate:admin";

/// The scope of those who submit orders.
pub const SUBMIT_SCOPE: &str = "floodgate:submit";

/// Who a token speaks for, and what its scopes allow. What a request needs is the route's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The buyer, from `sub`. None when the token names nobody, such as that of another service.
    pub subject: Option<UserId>,
    /// Whether the token has [`ADMIN_SCOPE`].
    pub admin: bool,
    /// Whether the token has [`SUBMIT_SCOPE`].
    pub submit: bool,
}

/// Why a request has no caller. The texts are for the client: they say what is wrong with what it
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

/// Tells who calls, by the token of a request.
#[derive(Debug, Clone)]
pub struct Gate {
    key: DecodingKey,
    algorithm: &'static str,
    validation: Validation,
    issuer: Option<String>,
    audience: Option<String>,
}

impl Gate {
    /// A gate that lets tokens pass that are signed with `key`, by `issuer` if one is given.
    ///
    /// With an `audience`, a token's `aud` has to name it. Without, a token that has an `aud` is
    /// refused, as it is meant for somebody else (RFC 7519 section 4.1.3).
    pub fn new(key: &Key, issuer: Option<String>, audience: Option<String>) -> Self {
        provider::install();
        let (key, algorithm, name) = match key {
            Key::Hs256(secret) => {
                let key = DecodingKey::from_secret(secret.expose_secret().as_bytes());
                (key, Algorithm::HS256, "HS256")
            }
            Key::Ed25519(public) => (DecodingKey::from_ed_der(public), Algorithm::EdDSA, "EdDSA"),
        };
        // The library checks form, algorithm and signature. Claims are checked here, because it
        // takes the time from the system's clock only, and lets claims of a wrong type pass.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self { key, algorithm: name, validation, issuer, audience }
    }

    /// Tells who calls, by the request's `Authorization`, at the time `now`.
    pub fn verify(
        &self,
        authorization: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<Caller, Refusal> {
        let token = bearer_token(authorization)?;
        self.check_header(token)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation);
        let claims = decoded.map_err(|error| self.refusal(error.kind()))?.claims;
        self.check_validity(&claims, now)?;
        let has =
            |scope| [&claims.scope, &claims.scp].into_iter().flatten().any(|s| s.lists(scope));
        Ok(Caller {
            admin: has(ADMIN_SCOPE),
            submit: has(SUBMIT_SCOPE),
            subject: claims.sub.map(UserId::parse).transpose()?,
        })
    }

    /// Refuses by the header what the library would refuse without saying why, or let pass.
    fn check_header(&self, token: &str) -> Result<(), Refusal> {
        let mut parts = token.split('.');
        let (Some(header), Some(_), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Malformed("it has not three parts"));
        };
        let header =
            URL_SAFE_NO_PAD.decode(header).map_err(|_| Refusal::Malformed(NOT_BASE64URL))?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|_| Refusal::Malformed("its header is no JSON object with an alg"))?;
        if header.alg != self.algorithm {
            return Err(Refusal::WrongAlgorithm { accepted: self.algorithm });
        }
        if header.crit {
            return Err(Refusal::CriticalExtension);
        }
        if header.typ.is_some_and(|typ| !is_access_token(&typ)) {
            return Err(Refusal::WrongType);
        }
        Ok(())
    }

    fn refusal(&self, error: &ErrorKind) -> Refusal {
        match error {
            ErrorKind::InvalidSignature => Refusal::BadSignature,
            ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => {
                Refusal::WrongAlgorithm { accepted: self.algorithm }
            }
            ErrorKind::Base64(_) => Refusal::Malformed(NOT_BASE64URL),
            _ => Refusal::Malformed("a claim or a header parameter has a value of a wrong type"),
        }
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

const NOT_BASE64URL: &str = "a part is not in base64url without padding";

/// The token of `Authorization: Bearer TOKEN`. The scheme is in any case (RFC 9110 section 11.1),
/// and followed by one space or more (RFC 6750 section 2.1).
fn bearer_token(authorization: Option<&str>) -> Result<&str, Refusal> {
    let authorization = authorization.ok_or(Refusal::Missing)?;
    let (scheme, rest) = authorization.split_once(' ').unwrap_or((authorization, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::Missing);
    }
    match rest.trim_matches(' ') {
        "" => Err(Refusal::Malformed("it is empty")),
        token if token.len() > MAX_TOKEN_BYTES => Err(Refusal::TooLong),
        token => Ok(token),
    }
}

/// Whether `typ` is that of a JWT or of an access token (RFC 9068 section 2.1), a media type that
/// may be without its `application/` (RFC 7515 section 4.1.9).
fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    ["jwt", "at+jwt"].contains(&typ.strip_prefix("application/").unwrap_or(&typ))
}

/// What is looked at of a token's header (RFC 7515 section 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    /// Whether it is there, whatever its value.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// What is looked at of a token's claims (RFC 7519 section 4.1). Times are seconds since 1970, and
/// may have a fraction (section 2).
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<String>,
    aud: Option<OneOrMore>,
    sub: Option<String>,
    /// Space separated (RFC 8693 section 4.2, RFC 9068 section 2.2.3).
    scope: Option<OneOrMore>,
    /// What others call it: an array at Okta, space separated at Entra.
    scp: Option<OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    /// Whether `name` is one of these, or the only one.
    fn includes(&self, name: &str) -> bool {
        match self {
            Self::One(only) => only == name,
            Self::More(names) => names.iter().any(|n| n == name),
        }
    }

    /// Whether `name` is one of these, where one text may have several, space separated.
    fn lists(&self, name: &str) -> bool {
        match self {
            Self::One(text) => text.split(' ').any(|n| n == name),
            Self::More(_) => self.includes(name),
        }
    }
}

#[cfg(test)]
mod tests;
