//! What is read of a token, before and after it is verified.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::{MAX_TOKEN_BYTES, Refusal};

pub(super) const NOT_BASE64URL: &str = "a part is not in base64url without padding";
const NO_HEADER: &str = "its header is no JSON object with an alg, or a parameter has a wrong type";

/// The token of `Authorization: Bearer TOKEN`. The scheme is in any case (RFC 9110 section 11.1),
/// and followed by one space or more (RFC 6750 section 2.1).
pub(super) fn bearer_token(authorization: Option<&str>) -> Result<&str, Refusal> {
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
pub(super) fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    ["jwt", "at+jwt"].contains(&typ.strip_prefix("application/").unwrap_or(&typ))
}

/// What is looked at of a token's header (RFC 7515 section 4.1).
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) typ: Option<String>,
    pub(super) kid: Option<String>,
    /// Whether it is there, whatever its value.
    #[serde(default, deserialize_with = "present")]
    pub(super) crit: bool,
}

impl Header {
    /// The header of `token`.
    pub(super) fn of(token: &str) -> Result<Self, Refusal> {
        let mut parts = token.split('.');
        let (Some(header), Some(_), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Malformed("it has not three parts"));
        };
        let header =
            URL_SAFE_NO_PAD.decode(header).map_err(|_| Refusal::Malformed(NOT_BASE64URL))?;
        serde_json::from_slice(&header).map_err(|_| Refusal::Malformed(NO_HEADER))
    }
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

/// What is looked at of a token's claims (RFC 7519 section 4.1). Times are seconds since 1970, and
/// may have a fraction (section 2).
#[derive(Deserialize)]
pub(super) struct Claims {
    pub(super) exp: Option<f64>,
    pub(super) nbf: Option<f64>,
    pub(super) iss: Option<String>,
    pub(super) aud: Option<OneOrMore>,
    pub(super) sub: Option<String>,
    /// Space separated (RFC 8693 section 4.2, RFC 9068 section 2.2.3).
    pub(super) scope: Option<OneOrMore>,
    /// What others call it: an array at Okta, space separated at Entra.
    pub(super) scp: Option<OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    /// Whether `name` is one of these, or the only one.
    pub(super) fn includes(&self, name: &str) -> bool {
        match self {
            Self::One(only) => only == name,
            Self::More(names) => names.iter().any(|n| n == name),
        }
    }

    /// Whether `name` is one of these, where one text may have several, space separated.
    pub(super) fn lists(&self, name: &str) -> bool {
        match self {
            Self::One(text) => text.split(' ').any(|n| n == name),
            Self::More(_) => self.includes(name),
        }
    }
}
