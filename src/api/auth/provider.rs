//! The cryptography of jsonwebtoken, on ring.
//!
//! The library's own providers are not compiled in: ring is in the binary for TLS already, and four
//! algorithms are all that is needed. Everything else is an error, and nothing panics.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error as NotVerified, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};

/// Makes jsonwebtoken use ring, from now on and in the whole process. The library has no other way
/// to be told, and would panic without.
pub(super) fn install() {
    // It is an error to do so twice; then it is done already, as nothing else installs a provider.
    let _ = RING.install_default();
}

/// Verifies `HS256`, `RS256`, `ES256` and `EdDSA` with Ed25519. Doesn't sign, and makes no JWK.
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
    use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};

    let public = |algorithm, bytes: &[u8]| UnparsedPublicKey::new(algorithm, bytes.to_vec());
    let verifier = match (algorithm, key.family(), key.kind()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac, SecretOrDer(secret)) => {
            RingVerifier::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret))
        }
        (Algorithm::RS256, AlgorithmFamily::Rsa, RsaModulusExponent { n, e }) => {
            RingVerifier::Rs256(RsaPublicKeyComponents { n: n.clone(), e: e.clone() })
        }
        (Algorithm::ES256, AlgorithmFamily::Ec, SecretOrDer(point)) => {
            RingVerifier::Es256(public(&ECDSA_P256_SHA256_FIXED, point))
        }
        (Algorithm::EdDSA, AlgorithmFamily::Ed, SecretOrDer(bytes)) => {
            RingVerifier::Ed25519(public(&ED25519, bytes))
        }
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(verifier))
}

enum RingVerifier {
    Hs256(hmac::Key),
    Rs256(RsaPublicKeyComponents<Vec<u8>>),
    Es256(UnparsedPublicKey<Vec<u8>>),
    Ed25519(UnparsedPublicKey<Vec<u8>>),
}

impl Verifier<Vec<u8>> for RingVerifier {
    /// The comparison of MACs takes the same time wherever they differ; ring sees to it.
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), NotVerified> {
        match self {
            Self::Hs256(key) => hmac::verify(key, message, signature),
            Self::Rs256(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            Self::Es256(key) | Self::Ed25519(key) => key.verify(message, signature),
        }
        .map_err(|_| NotVerified::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Hs256(_) => Algorithm::HS256,
            Self::Rs256(_) => Algorithm::RS256,
            Self::Es256(_) => Algorithm::ES256,
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

    const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

    #[test]
    fn the_example_of_rfc_7515_appendix_a_2_verifies() {
        let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-\
            yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-\
            UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkML\
            s91kzk2PAcDTW9gb54h4FRWyuXpoQ";
        let key = DecodingKey::from_rsa_components(n, "AQAB").unwrap();
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2\
            Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZ\
            RmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AX\
            LIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
        let token = format!("eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.{signature}");
        assert!(verifies(&token, &key, Algorithm::RS256));
        assert!(!verifies(&token.replace("eyJpc3", "eyJpc4"), &key, Algorithm::RS256));
    }

    #[test]
    fn the_example_of_rfc_7515_appendix_a_3_verifies() {
        let key = DecodingKey::from_ec_components(
            "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        );
        let key = key.unwrap();
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let token = format!("eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.{signature}");
        assert!(verifies(&token, &key, Algorithm::ES256));
        assert!(!verifies(&token.replace("eyJpc3", "eyJpc4"), &key, Algorithm::ES256));
        assert!(
            !verifies(&token, &DecodingKey::from_ec_der(&[4; 65]), Algorithm::ES256),
            "no point"
        );
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
        let nothing = verifier(Algorithm::RS256, &rsa).unwrap();
        for signature in [vec![], vec![0], vec![1], vec![1; 256]] {
            assert!(nothing.verify(b"text", &signature).is_err(), "a key that is too small");
        }
        let ec = DecodingKey::from_ec_der(&[4; 65]);
        for algorithm in [
            Algorithm::RS384,
            Algorithm::PS256,
            Algorithm::ES256,
            Algorithm::HS256,
            Algorithm::EdDSA,
        ] {
            unsupported(verifier(algorithm, &rsa).map(drop));
        }
        for algorithm in [Algorithm::ES384, Algorithm::RS256, Algorithm::HS256, Algorithm::EdDSA] {
            unsupported(verifier(algorithm, &ec).map(drop));
        }
        unsupported(verifier(Algorithm::RS256, &DecodingKey::from_rsa_der(&[1; 64])).map(drop));
        install();
        assert!(sign(b"text", &EncodingKey::from_secret(&[1; 32]), Algorithm::HS256).is_err());
        let utils = &RING.key_utils;
        unsupported((utils.rsa_pub_components_from_private_key)(&[]).map(drop));
        unsupported(
            (utils.compute_digest)(&[], jsonwebtoken::jwk::ThumbprintHash::SHA256).map(drop),
        );
    }
}
