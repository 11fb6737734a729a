//! The key that tokens are verified with, from the settings.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use spki::der::asn1::{AnyRef, UintRef};
use spki::der::oid::ObjectIdentifier;
use spki::der::{self, Decode};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

/// The shortest secret accepted, in bytes: a key for HMAC-SHA256 has at least the size of its
/// output (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// The sizes of an RSA modulus, in bits, that ring verifies with. 2048 is the least of RFC 7518
/// section 3.3 too.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The longest RSA exponent that ring takes, 33 bits, in bytes.
const MAX_EXPONENT_BYTES: usize = 5;

/// RFC 8410 section 3.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// RFC 3279 section 2.3.1.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// RFC 5480 section 2.1.1, and the curve P-256 in section 2.1.1.1.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// A key and, by its kind, the one algorithm that tokens may be signed with.
#[derive(Clone)]
pub enum Key {
    /// A secret shared with who issues tokens: HMAC with SHA-256 (`HS256`, RFC 7518 section 3.2).
    Hs256(SecretString),
    /// The public key of who issues tokens: Ed25519 (`EdDSA`, RFC 8037 section 3.1).
    Ed25519([u8; 32]),
    /// The public key of who issues tokens: RSA PKCS #1 v1.5 with SHA-256 (`RS256`, RFC 7518 section
    /// 3.3). Modulus and exponent are big-endian, without leading zeros.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// The public key of who issues tokens: ECDSA on P-256 with SHA-256 (`ES256`, RFC 7518 section
    /// 3.4), as an uncompressed point (SEC 1 section 2.3.3).
    P256([u8; 65]),
}

/// Why the settings name no usable key. The texts never show the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// One server verifies with one secret, one public key or one set of keys.
    #[error(
        "of jwt_secret, jwt_public_key and jwt_jwks more than one is set; accepted: one of them"
    )]
    Several,
    /// The secret can be guessed.
    #[error("jwt_secret is too short; accepted: {MIN_SECRET_BYTES} bytes or more")]
    ShortSecret,
    /// A public key as a shared secret would let everyone who knows it sign tokens.
    #[error("jwt_secret is a key in PEM; a public key belongs in jwt_public_key")]
    SecretIsPem,
    /// The text is no public key that is supported.
    #[error(
        "jwt_public_key is not a supported public key; accepted: PEM (BEGIN PUBLIC KEY) of Ed25519, \
         RSA (2048 to 8192 bits) or EC P-256, or the 32 bytes of an Ed25519 key in base64 or base64url"
    )]
    NoPublicKey,
}

impl Key {
    /// The key that the settings name; `None` when both are empty.
    ///
    /// The secret is used as it stands, byte by byte. The public key is a SubjectPublicKeyInfo in
    /// PEM (RFC 7468 section 13), its line breaks also written `\n` as they often are in an
    /// environment variable, or the 32 bytes of an Ed25519 key in either alphabet of base64.
    pub fn from_settings(
        jwt_secret: &SecretString,
        jwt_public_key: &str,
    ) -> Result<Option<Self>, InvalidKey> {
        let secret = jwt_secret.expose_secret();
        match (secret.is_empty(), jwt_public_key.trim().is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Err(InvalidKey::Several),
            (true, false) => public_key(jwt_public_key).map(Some).ok_or(InvalidKey::NoPublicKey),
            (false, true) if secret.trim_start().starts_with("-----BEGIN") => {
                Err(InvalidKey::SecretIsPem)
            }
            (false, true) if secret.len() < MIN_SECRET_BYTES => Err(InvalidKey::ShortSecret),
            (false, true) => Ok(Some(Self::Hs256(jwt_secret.clone()))),
        }
    }

    /// An Ed25519 key, if `bytes` can be one.
    pub(super) fn ed25519(bytes: &[u8]) -> Option<Self> {
        // All zeros is a placeholder, and worse: a point of small order, under which anyone can sign.
        bytes.try_into().ok().filter(|key| *key != [0; 32]).map(Self::Ed25519)
    }

    /// An RSA key with modulus `n` and exponent `e`, if they are of sizes that are accepted.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Option<Self> {
        let (n, e) = (without_leading_zeros(n), without_leading_zeros(e));
        let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
        let is_odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
        let good = RSA_BITS.contains(&bits)
            && is_odd(n)
            && is_odd(e)
            && e != [1]
            && e.len() <= MAX_EXPONENT_BYTES;
        good.then(|| Self::Rsa { n: n.to_vec(), e: e.to_vec() })
    }

    /// A key on P-256, if `point` has the form of an uncompressed one.
    pub(super) fn p256(point: &[u8]) -> Option<Self> {
        point.try_into().ok().filter(|point: &[u8; 65]| point[0] == 4).map(Self::P256)
    }
}

/// Names the kind only: a public key is no secret, but nothing is gained by writing it to a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hs256(_) => "Hs256",
            Self::Ed25519(_) => "Ed25519",
            Self::Rsa { .. } => "Rsa",
            Self::P256(_) => "P256",
        })
    }
}

fn without_leading_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

fn public_key(text: &str) -> Option<Key> {
    let text = text.replace("\\n", "\n");
    let text = text.trim();
    let encoded = match text.strip_prefix("-----BEGIN PUBLIC KEY-----") {
        Some(rest) => rest.strip_suffix("-----END PUBLIC KEY-----")?,
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
    let bytes = URL_SAFE_NO_PAD.decode(base64url).ok()?;
    Key::ed25519(&bytes).or_else(|| subject_public_key(&bytes))
}

/// The key in a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
fn subject_public_key(der: &[u8]) -> Option<Key> {
    let SubjectPublicKeyInfoRef { algorithm, subject_public_key } =
        SubjectPublicKeyInfoRef::from_der(der).ok()?;
    let bytes = subject_public_key.as_bytes()?;
    match algorithm {
        AlgorithmIdentifierRef { oid: ED25519, parameters: None } => Key::ed25519(bytes),
        AlgorithmIdentifierRef { oid: EC, .. } if algorithm.parameters_oid() == Ok(P256) => {
            Key::p256(bytes)
        }
        AlgorithmIdentifierRef { oid: RSA, .. } => {
            let (n, e) = rsa_public_key(bytes).ok()?;
            Key::rsa(n.as_bytes(), e.as_bytes())
        }
        _ => None,
    }
}

/// Modulus and exponent of an RSAPublicKey (RFC 8017 appendix A.1.1).
fn rsa_public_key(der: &[u8]) -> der::Result<(UintRef<'_>, UintRef<'_>)> {
    AnyRef::from_der(der)?
        .sequence(|reader| Ok((UintRef::decode(reader)?, UintRef::decode(reader)?)))
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

    /// Of a key of 2048 bits.
    const RSA_PEM: &str = include_str!("../../../tests/keys/rsa-1.public.pem");
    const RSA_1024_PEM: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCmel1h3v2AF8jw0F0+FLsadP7a
TscMPysujIUFYz0eYYKyfm3gfca0X7SjgjRgRCkP0u5yDyErJ8/ocYjtZFIWor5Z
pc0+Fv2myXQKqef6hwfYagOPeP0XMX7msOymukwprGUtdeMy5bxoyYfENzjaZ3bs
Tki+xymLjzPC+ZzygwIDAQAB
-----END PUBLIC KEY-----";
    const P256_PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEBzD22o7/h87Wh6A6QJ77ohgwQcUo
1H6e5Z29JXh6Jh1wDkVq0ho30fy9VjULN9XEGxUbOlOz2/9zbbRy08Fpmw==
-----END PUBLIC KEY-----";
    const P384_PEM: &str = "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEs9PIHfAPU9A72JdbNIf1u6kVzLs6EdPQ
P2zvZqks+eDzgQBaABdg6CnqCa7bMnXj/p+aphE8U7xjcDH4TcTylbUawNEMTqiQ
aLmrUZsf7Erq+FnPq4LJTmZOY3UwDkoa
-----END PUBLIC KEY-----";
    const SECP256K1_PEM: &str = "-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAE81GMlSmlPFEC3Co2BEiLQxrL1qg0AyKS
mLpTlEHhukyjcgsIrXz2wXdvTseMUculvvwrphxyQy/IwSdrUKABvg==
-----END PUBLIC KEY-----";

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
        assert_eq!(key(&"s".repeat(32), RAW).unwrap_err(), InvalidKey::Several);
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

    #[test]
    fn the_kind_of_a_public_key_is_read_from_it() {
        for written in [|pem: &str| pem.to_owned(), |pem: &str| pem.replace('\n', "\\n")] {
            match key("", &written(RSA_PEM)) {
                Ok(Some(Key::Rsa { n, e })) => assert_eq!((n.len(), &*e), (256, &[1, 0, 1][..])),
                other => panic!("{other:?}"),
            }
            match key("", &written(P256_PEM)) {
                Ok(Some(Key::P256(point))) => assert_eq!(point[..4], [0x04, 0x07, 0x30, 0xf6]),
                other => panic!("{other:?}"),
            }
        }
        for other in [RSA_1024_PEM, P384_PEM, SECP256K1_PEM] {
            assert_eq!(key("", other).unwrap_err(), InvalidKey::NoPublicKey, "{other}");
        }
        // Cut short, or with something behind it.
        for at in [RSA_PEM, P256_PEM] {
            let body = at.replace("-----BEGIN PUBLIC KEY-----", "");
            let body = body.trim().strip_suffix("-----END PUBLIC KEY-----").unwrap().trim();
            let body = body.trim_end_matches('=');
            assert!(matches!(key("", body), Ok(Some(_))), "without its frame");
            for bad in [&body[..body.len() - 4], &body[4..], &body.replacen('A', "B", 1)] {
                assert_eq!(key("", bad).unwrap_err(), InvalidKey::NoPublicKey, "{bad}");
            }
        }
    }

    #[test]
    fn an_rsa_key_has_2048_to_8192_bits_and_an_exponent_that_is_used() {
        let number = |bits: usize| {
            let mut bytes = vec![0xff; bits.div_ceil(8)];
            bytes[0] >>= bytes.len() * 8 - bits;
            bytes
        };
        let f4 = [1, 0, 1];
        for bits in [2048, 2049, 3072, 4096, 8192] {
            assert!(Key::rsa(&number(bits), &f4).is_some(), "{bits}");
        }
        for bits in [1, 1024, 2047, 8193, 16384] {
            assert!(Key::rsa(&number(bits), &f4).is_none(), "{bits}");
        }
        for nothing in [&[][..], &[0], &[0, 0]] {
            assert!(Key::rsa(nothing, &f4).is_none());
        }
        let n = number(2048);
        assert!(Key::rsa(&[&[0, 0], &n[..]].concat(), &[0, 3]).is_some(), "leading zeros");
        let even = [&n[..255], &[0]].concat();
        assert!(Key::rsa(&even, &f4).is_none());
        for e in [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[1, 0, 0, 0, 0, 1]] {
            assert!(Key::rsa(&n, e).is_none(), "{e:?}");
        }
    }
}
