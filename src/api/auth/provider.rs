//! The cryptography of jsonwebtoken, on ring.
//!
//! The library's own providers are not compiled in: ring is in the binary for TLS already, and two
//! algorithms are all that is needed. Everything else is an error, and nothing panics.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error as NotVerified, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use ring::hmac;
use ring::signature::{ED25519, UnparsedPublicKey};

/// Makes jsonwebtoken use ring, from now on and in the whole process. The library has no other way
/// to be told, and would panic without.
pub(super) fn install() {
    // It is an error to do so twice; then it is done already, as nothing else installs a provider.
    let _ = RING.install_default();
}

/// Verifies `HS256` and `EdDSA` with Ed25519. Doesn't sign, and knows no JWK.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| verifier(*algorithm, key),
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(ErrorKind::UnsupportedAlgorithm.into()),
        rsa_pub_components_from_public_key: |_| Err(ErrorKind::UnsupportedAlgorithm.into()),
        ec_pub_components_from_private_key: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        ed_pub_components_from_private_key: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        compute_digest: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    },
};

fn verifier(algorithm: Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    let bytes = key.try_get_as_bytes()?;
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => {
            Ok(Box::new(RingVerifier::Hs256(hmac::Key::new(hmac::HMAC_SHA256, bytes))))
        }
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => {
            Ok(Box::new(RingVerifier::Ed25519(UnparsedPublicKey::new(&ED25519, bytes.to_vec()))))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

enum RingVerifier {
    Hs256(hmac::Key),
    Ed25519(UnparsedPublicKey<Vec<u8>>),
}

impl Verifier<Vec<u8>> for RingVerifier {
    /// The comparison of MACs takes the same time wherever they differ; ring sees to it.
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), NotVerified> {
        match self {
            Self::Hs256(key) => hmac::verify(key, message, signature),
            Self::Ed25519(key) => key.verify(message, signature),
        }
        .map_err(|_| NotVerified::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hs256(_) => Algorithm::HS256,
            Self::Ed25519(_) => Algorithm::EdDSA,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::EncodingKey;
    use jsonwebtoken::crypto::{sign, verify};

    use super::*;

    /// Whether `token`'s signature is the key's; another key's, or none, is not.
    fn verifies(token: &str, key: &DecodingKey, algorithm: Algorithm) -> bool {
        install();
        let (message, signature) = token.rsplit_once('.').unwrap();
        verify(signature, message.as_bytes(), key, algorithm).unwrap()
    }

    #[test]
    fn the_example_of_rfc_7515_appendix_a_1_verifies() {
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let key = DecodingKey::from_secret(&URL_SAFE_NO_PAD.decode(key).unwrap());
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
            eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
            dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert!(verifies(token, &key, Algorithm::HS256));
        assert!(!verifies(&token.replace("eyJpc3", "eyJpc4"), &key, Algorithm::HS256));
        assert!(!verifies(token, &DecodingKey::from_secret(b"other"), Algorithm::HS256));
    }

    #[test]
    fn the_example_of_rfc_8037_appendix_a_4_verifies() {
        let key = DecodingKey::from_ed_components("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        let key = key.unwrap();
        let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
            hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        assert!(verifies(token, &key, Algorithm::EdDSA));
        assert!(!verifies(&token.replace("RXhh", "RXhi"), &key, Algorithm::EdDSA));
        assert!(!verifies(token, &DecodingKey::from_ed_der(b"short"), Algorithm::EdDSA));
    }

    #[test]
    fn everything_else_is_an_error_and_no_panic() {
        let unsupported = |result: Result<()>| {
            assert_eq!(result.unwrap_err().into_kind(), ErrorKind::UnsupportedAlgorithm);
        };
        let (secret, public) =
            (DecodingKey::from_secret(&[1; 64]), DecodingKey::from_ed_der(&[1; 32]));
        unsupported(verifier(Algorithm::EdDSA, &secret).map(drop));
        unsupported(verifier(Algorithm::HS256, &public).map(drop));
        for algorithm in [Algorithm::HS384, Algorithm::HS512, Algorithm::RS256, Algorithm::ES256] {
            unsupported(verifier(algorithm, &secret).map(drop));
            unsupported(verifier(algorithm, &public).map(drop));
        }
        let rsa = DecodingKey::from_rsa_raw_components(&[1], &[1]);
        assert!(verifier(Algorithm::RS256, &rsa).is_err());
        install();
        assert!(sign(b"text", &EncodingKey::from_secret(&[1; 32]), Algorithm::HS256).is_err());
        let utils = &RING.key_utils;
        unsupported((utils.rsa_pub_components_from_private_key)(&[]).map(drop));
        unsupported(
            (utils.compute_digest)(&[], jsonwebtoken::jwk::ThumbprintHash::SHA256).map(drop),
        );
    }
}
