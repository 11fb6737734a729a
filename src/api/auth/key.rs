//! The key that tokens are verified with, from the settings.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};

/// The shortest secret accepted, in bytes: a key for HMAC-SHA256 has at least the size of its
/// output (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo: a SEQUENCE with the
/// algorithm 1.3.101.112, then a BIT STRING (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key and, by its kind, the one algorithm that tokens may be signed with.
#[derive(Clone)]
pub enum Key {
    /// A secret shared with who issues tokens: HMAC with SHA-256 (`HS256`, RFC 7518 section 3.2).
    Hs256(SecretString),
    /// The public key of who issues tokens: Ed25519 (`EdDSA`, RFC 8037 section 3.1).
    Ed25519([u8; 32]),
}

/// Why the settings name no usable key. The texts never show the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// One server verifies with one key.
    #[error("jwt_secret and jwt_public_key are both set; accepted: one of them")]
    Both,
    /// The secret can be guessed.
    #[error("jwt_secret is too short; accepted: {MIN_SECRET_BYTES} bytes or more")]
    ShortSecret,
    /// A public key as a shared secret would let everyone who knows it sign tokens.
    #[error("jwt_secret is a key in PEM; a public key belongs in jwt_public_key")]
    SecretIsPem,
    /// The text is no Ed25519 public key.
    #[error(
        "jwt_public_key is no Ed25519 public key; accepted: PEM (BEGIN PUBLIC KEY), or the 32 \
         bytes in base64 or base64url"
    )]
    NoPublicKey,
}

impl Key {
    /// The key that the settings name; `None` when both are empty.
    ///
    /// The secret is used as it stands, byte by byte. The public key is a SubjectPublicKeyInfo in
    /// PEM (RFC 7468 section 13, RFC 8410 section 4), its line breaks also written `\n` as they
    /// often are in an environment variable, or its 32 bytes in either alphabet of base64.
    pub fn from_settings(
        jwt_secret: &SecretString,
        jwt_public_key: &str,
    ) -> Result<Option<Self>, InvalidKey> {
        let secret = jwt_secret.expose_secret();
        match (secret.is_empty(), jwt_public_key.trim().is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Err(InvalidKey::Both),
            (true, false) => public_key(jwt_public_key).map(|key| Some(Self::Ed25519(key))),
            (false, true) if secret.trim_start().starts_with("-----BEGIN") => {
                Err(InvalidKey::SecretIsPem)
            }
            (false, true) if secret.len() < MIN_SECRET_BYTES => Err(InvalidKey::ShortSecret),
            (false, true) => Ok(Some(Self::Hs256(jwt_secret.clone()))),
        }
    }
}

/// Names the kind only: a public key is no secret, but nothing is gained by writing it to a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hs256(_) => "Hs256",
            Self::Ed25519(_) => "Ed25519",
        })
    }
}

fn public_key(text: &str) -> Result<[u8; 32], InvalidKey> {
    let text = text.replace("\\n", "\n");
    let text = text.trim();
    let encoded = match text.strip_prefix("-----BEGIN PUBLIC KEY-----") {
        Some(rest) => {
            rest.strip_suffix("-----END PUBLIC KEY-----").ok_or(InvalidKey::NoPublicKey)?
        }
        None => text,
    };
    let base64url: String = encoded
        .trim_end_matches(|c: char| c == '=' || c.is_ascii_whitespace())
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            other => other,
        })
        .collect();
    let bytes = URL_SAFE_NO_PAD.decode(base64url).map_err(|_| InvalidKey::NoPublicKey)?;
    let key = bytes.strip_prefix(&SPKI_PREFIX).unwrap_or(&bytes);
    // All zeros is a placeholder, and worse: a point of small order, under which anyone can sign.
    match <[u8; 32]>::try_from(key) {
        Ok(key) if key != [0; 32] => Ok(key),
        _ => Err(InvalidKey::NoPublicKey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 8410 section 10.1.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    /// The same key's 32 bytes.
    const RAW: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE";

    fn key(secret: &str, public_key: &str) -> Result<Option<Key>, InvalidKey> {
        Key::from_settings(&SecretString::from(secret), public_key)
    }

    fn ed25519(text: &str) -> [u8; 32] {
        match key("", text) {
            Ok(Some(Key::Ed25519(bytes))) => bytes,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn no_key_is_none_and_two_are_one_too_many() {
        assert!(matches!(key("", ""), Ok(None)));
        assert!(matches!(key("", " \n"), Ok(None)));
        assert_eq!(key(&"s".repeat(32), RAW).unwrap_err(), InvalidKey::Both);
    }

    #[test]
    fn a_secret_has_at_least_the_size_of_the_hash() {
        assert!(matches!(key(&"s".repeat(32), ""), Ok(Some(Key::Hs256(_)))));
        assert_eq!(key(&"s".repeat(31), "").unwrap_err(), InvalidKey::ShortSecret);
        assert_eq!(key(PEM, "").unwrap_err(), InvalidKey::SecretIsPem);
        assert_eq!(format!("{:?}", Key::Hs256("hush".into())), "Hs256");
    }

    #[test]
    fn a_public_key_is_read_in_all_its_forms() {
        let expected = ed25519(PEM);
        assert_eq!(expected[..4], [0x19, 0xbf, 0x44, 0x09]);
        for form in [
            PEM.replace('\n', "\\n"),
            PEM.replace('\n', "\r\n"),
            RAW.into(),
            format!("{RAW}="),
            format!("  {RAW}=\n"),
        ] {
            assert_eq!(ed25519(&form), expected, "{form:?}");
        }
        let (base64, base64url) = ("+/".repeat(21) + "8", "-_".repeat(21) + "8");
        assert_eq!(ed25519(&base64), ed25519(&base64url));
    }

    #[test]
    fn what_is_no_ed25519_public_key_is_refused() {
        for bad in [
            "key",
            &RAW[..42],
            &format!("{RAW}AA"),
            &"A".repeat(43),
            &PEM.replace("PUBLIC", "PRIVATE"),
            // Ed448: 1.3.101.113.
            &PEM.replace("K2Vw", "K2Vx"),
            PEM.strip_suffix("-----END PUBLIC KEY-----\n").unwrap(),
            "-----BEGIN PUBLIC KEY----------END PUBLIC KEY-----",
            "\u{e9}",
        ] {
            assert_eq!(key("", bad).unwrap_err(), InvalidKey::NoPublicKey, "{bad:?}");
        }
    }
}
