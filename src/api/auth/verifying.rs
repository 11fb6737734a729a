//! A key, ready to verify tokens with its algorithm.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::ExposeSecret;

use super::key::Key;
use super::token::{Claims, NOT_BASE64URL};
use super::{Refusal, provider};

/// A key with the one algorithm that it verifies.
#[derive(Debug)]
pub(super) struct VerifyingKey {
    key: DecodingKey,
    /// The `alg` of its tokens.
    pub(super) algorithm: &'static str,
    validation: Validation,
}

impl VerifyingKey {
    pub(super) fn new(key: &Key) -> Self {
        provider::install();
        let (key, algorithm, name) = match key {
            Key::Hs256(secret) => {
                let key = DecodingKey::from_secret(secret.expose_secret().as_bytes());
                (key, Algorithm::HS256, "HS256")
            }
            Key::Ed25519(public) => (DecodingKey::from_ed_der(public), Algorithm::EdDSA, "EdDSA"),
            Key::Rsa { n, e } => {
                (DecodingKey::from_rsa_raw_components(n, e), Algorithm::RS256, "RS256")
            }
            Key::P256(point) => (DecodingKey::from_ec_der(point), Algorithm::ES256, "ES256"),
        };
        // The library checks form, algorithm and signature. Claims are checked by the token_verifier, because
        // the library takes the time from the system's clock only, and lets claims of a wrong type pass.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self { key, algorithm: name, validation }
    }

    /// What `token` claims, if its signature is this key's.
    pub(super) fn claims(&self, token: &str) -> Result<Claims, Refusal> {
        let decoded = jsonwebtoken::decode(token, &self.key, &self.validation);
        decoded.map(|decoded| decoded.claims).map_err(|error| self.refusal(error.kind()))
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
}
