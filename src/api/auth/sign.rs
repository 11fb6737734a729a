//! Signing tokens, for trying the API out. A deployment's tokens come from its identity provider.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::error::Unspecified;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::key::{InvalidKey, Key};

/// A key that signs tokens and, by its kind, its algorithm. Shows nothing of itself.
pub struct SigningKey(Kind);

enum Kind {
    Hs256(hmac::Key),
    Rs256(Box<RsaKeyPair>),
    Es256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Why a private key can't sign. The texts never show the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrivateKey {
    /// There is no private key in the text, or one that is encrypted.
    #[error("it has no unencrypted private key in PEM; accepted: PKCS#8 (BEGIN PRIVATE KEY)")]
    NoPem,
    /// The form is an older one, of one kind of key only.
    #[error("it is not PKCS#8; convert it: openssl pkcs8 -topk8 -nocrypt -in OLD.pem -out NEW.pem")]
    NotPkcs8,
    /// The kind of key is another one.
    #[error("the key is not supported; accepted: Ed25519, RSA of 2048 to 4096 bits, EC P-256")]
    Unsupported,
}

/// The system has no random numbers to sign with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not sign: the system gives no random numbers")]
pub struct NotSigned;

impl From<Unspecified> for NotSigned {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

impl SigningKey {
    /// The secret of the settings; `None` when there is none.
    pub fn from_secret(jwt_secret: &SecretString) -> Result<Option<Self>, InvalidKey> {
        Ok(Key::from_settings(jwt_secret, "")?.map(|_| {
            let secret = jwt_secret.expose_secret().as_bytes();
            Self(Kind::Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret)))
        }))
    }

    /// The private key in `pem`: PKCS#8 (RFC 5958) in PEM (RFC 7468 section 10).
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidPrivateKey> {
        let der = match PrivateKeyDer::from_pem_slice(pem) {
            Ok(PrivateKeyDer::Pkcs8(der)) => der,
            Ok(_) => return Err(InvalidPrivateKey::NotPkcs8),
            Err(_) => return Err(InvalidPrivateKey::NoPem),
        };
        let der = der.secret_pkcs8_der();
        // Each looks at the key's kind first. OpenSSL writes Ed25519 keys without their public half.
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Kind::Ed25519);
        let key =
            key.or_else(|_| RsaKeyPair::from_pkcs8(der).map(|key| Kind::Rs256(Box::new(key))));
        let key = key.or_else(|_| {
            let random = SystemRandom::new();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
                .map(Kind::Es256)
        });
        key.map(Self).map_err(|_| InvalidPrivateKey::Unsupported)
    }

    /// The `alg` of its tokens.
    pub fn algorithm(&self) -> &'static str {
        match self.0 {
            Kind::Hs256(_) => "HS256",
            Kind::Rs256(_) => "RS256",
            Kind::Es256(_) => "ES256",
            Kind::Ed25519(_) => "EdDSA",
        }
    }

    /// A token with these claims.
    pub fn token(&self, kid: Option<&str>, claims: &Value) -> Result<String, NotSigned> {
        let mut header = json!({ "alg": self.algorithm(), "typ": "JWT" });
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(claims));
        let bytes = message.as_bytes();
        let random = SystemRandom::new();
        let signature = match &self.0 {
            Kind::Hs256(key) => hmac::sign(key, bytes).as_ref().to_vec(),
            Kind::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature)?;
                signature
            }
            Kind::Es256(key) => key.sign(&random, bytes)?.as_ref().to_vec(),
            Kind::Ed25519(key) => key.sign(bytes).as_ref().to_vec(),
        };
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
