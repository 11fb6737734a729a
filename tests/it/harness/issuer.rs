//! One who issues tokens, and publishes its keys over HTTP as a test wants it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use floodgate::api::auth::SigningKey;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A private key, and what is published of it.
pub struct IssuingKey {
    pub kid: &'static str,
    pub pem: String,
    jwk: Value,
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
}

impl IssuingKey {
    pub fn rsa(kid: &'static str) -> Self {
        let pem = include_str!("../../keys/rsa-1.pem").to_owned();
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
        let pair = RsaKeyPair::from_pkcs8(der.secret_der()).expect("a key");
        let PublicKeyComponents::<Vec<u8>> { n, e } = pair.public().into();
        let jwk = json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": text(&n), "e": text(&e) });
        Self { kid, pem, jwk }
    }

    pub fn ec(kid: &'static str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random).expect("a key");
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": text(x), "y": text(y) });
        Self { kid, pem: pem(der.as_ref()), jwk }
    }

    pub fn ed25519(kid: &'static str) -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(der.as_ref()).expect("a key");
        let x = text(pair.public_key().as_ref());
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x });
        Self { kid, pem: pem(der.as_ref()), jwk }
    }

    /// A token that names this key.
    pub fn token(&self, claims: &Value) -> String {
        let key = SigningKey::from_pem(self.pem.as_bytes()).expect("a key");
        key.token(Some(self.kid), claims).expect("a token")
    }
}

/// The set of these keys, and of two that nobody may use.
pub fn jwks(keys: &[&IssuingKey]) -> String {
    let mut all: Vec<&Value> = keys.iter().map(|key| &key.jwk).collect();
    let secret = json!({ "kty": "oct", "kid": "secret", "k": text(b"known to everybody") });
    let other = json!({ "kty": "RSA", "use": "enc", "kid": "other", "n": "AQAB", "e": "AQAB" });
    all.extend([&secret, &other]);
    json!({ "keys": all }).to_string()
}

/// A server that answers every request in the same way.
pub struct JwksServer {
    pub url: String,
    answer: Arc<Mutex<Option<Vec<u8>>>>,
    asked: Arc<AtomicUsize>,
}

impl JwksServer {
    /// One that hangs up on everybody.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new(Some(Vec::new())));
        let asked = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (answer.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = shared.lock().expect("a lock").clone();
                tokio::spawn(async move {
                    let mut question = vec![0; 4096];
                    let _ = client.read(&mut question).await;
                    match answer {
                        // Hangs up when the client has lost patience.
                        None => drop(client.read(&mut question).await),
                        Some(answer) => drop(client.write_all(&answer).await),
                    }
                });
            }
        });
        Self { url, answer, asked }
    }

    /// From now on answers with `answer` as it is, and hangs up; with `None` it says nothing.
    pub fn answer_with(&self, answer: Option<Vec<u8>>) {
        *self.answer.lock().expect("a lock") = answer;
    }

    /// From now on publishes `body`.
    pub fn publish(&self, body: &str) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        self.answer_with(Some((head + body).into_bytes()));
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
