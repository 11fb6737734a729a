//! Each algorithm, with its own key and with every other.

use base64::engine::general_purpose::STANDARD;
use ring::rsa::PublicKeyComponents;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING};

use super::*;

pub(super) const RSA_PEMS: [&str; 2] = [
    include_str!("../../../../tests/keys/rsa-1.pem"),
    include_str!("../../../../tests/keys/rsa-2.pem"),
];

pub(super) fn rsa(which: usize) -> RsaKeyPair {
    let body: String = RSA_PEMS[which].lines().filter(|line| !line.starts_with('-')).collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(body).unwrap()).unwrap()
}

pub(super) fn ec() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap()
}

pub(super) fn rsa_key(pair: &RsaKeyPair) -> Key {
    let PublicKeyComponents::<Vec<u8>> { n, e } = pair.public().into();
    Key::rsa(&n, &e).unwrap()
}

pub(super) fn ec_key(pair: &EcdsaKeyPair) -> Key {
    Key::p256(pair.public_key().as_ref()).unwrap()
}

/// One who issues tokens, with two keys of a kind.
struct Issuer {
    algorithm: &'static str,
    keys: [Key; 2],
}

struct Pairs {
    rsa: [RsaKeyPair; 2],
    ec: [EcdsaKeyPair; 2],
    ed25519: [Ed25519KeyPair; 2],
}

const OTHER_SECRET: &str = "another secret that is as long.!";

impl Pairs {
    fn new() -> Self {
        Self { rsa: [rsa(0), rsa(1)], ec: [ec(), ec()], ed25519: [pair(1), pair(2)] }
    }

    fn issuers(&self) -> [Issuer; 4] {
        let secrets = [SECRET, OTHER_SECRET].map(|secret| Key::Hs256(secret.into()));
        [
            Issuer { algorithm: "HS256", keys: secrets },
            Issuer { algorithm: "RS256", keys: self.rsa.each_ref().map(rsa_key) },
            Issuer { algorithm: "ES256", keys: self.ec.each_ref().map(ec_key) },
            Issuer { algorithm: "EdDSA", keys: self.ed25519.each_ref().map(public_key) },
        ]
    }

    /// What signs with key `which` for `algorithm`.
    fn signer(&self, algorithm: &str, which: usize) -> Signer<'_> {
        match algorithm {
            "HS256" => Signer::Hmac([SECRET, OTHER_SECRET][which].as_bytes()),
            "RS256" => Signer::Rsa(&self.rsa[which]),
            "ES256" => Signer::Ec(&self.ec[which]),
            _ => Signer::Ed25519(&self.ed25519[which]),
        }
    }
}

#[test]
fn a_token_is_good_for_its_own_key_only_and_unchanged() {
    let pairs = Pairs::new();
    for Issuer { algorithm, keys } in pairs.issuers() {
        let [own, other] = keys.each_ref().map(|key| TokenVerifier::new(key, None, None));
        let header = json!({ "alg": algorithm, "typ": "JWT", "kid": "ignored with one key" });
        let token = pairs.signer(algorithm, 0).token(&header, &good_claims());
        assert_eq!(present_token(&own, &token), Ok(ada()), "{algorithm}");
        assert_eq!(present_token(&other, &token), Err(Refusal::BadSignature), "{algorithm}");
        let others = pairs.signer(algorithm, 1).token(&header, &good_claims());
        assert_eq!(present_token(&own, &others), Err(Refusal::BadSignature), "{algorithm}");
        let parts: Vec<&str> = token.split('.').collect();
        let claims = base64(json!({ "sub": "eve", "exp": NOW + 60 }).to_string());
        let changed = format!("{}.{claims}.{}", parts[0], parts[2]);
        assert_eq!(present_token(&own, &changed), Err(Refusal::BadSignature), "{algorithm}");
        for signature in [vec![], vec![0; 64], vec![0; 256], vec![0xff; 64]] {
            let forged = format!("{}.{}.{}", parts[0], parts[1], base64(signature));
            assert_eq!(present_token(&own, &forged), Err(Refusal::BadSignature), "{algorithm}");
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let forged = format!("{}.{}.{}", parts[0], parts[1], base64(&bytes));
            assert_eq!(
                present_token(&own, &forged),
                Err(Refusal::BadSignature),
                "{algorithm} {at}"
            );
            bytes[at] ^= 1;
        }
    }
}

#[test]
fn no_key_takes_tokens_of_another_kind_whatever_they_call_themselves() {
    let pairs = Pairs::new();
    for Issuer { algorithm: accepted, keys } in pairs.issuers() {
        let token_verifier = TokenVerifier::new(&keys[0], None, None);
        for Issuer { algorithm, .. } in pairs.issuers() {
            let signer = pairs.signer(algorithm, 0);
            for alg in ["HS256", "RS256", "ES256", "EdDSA", "RS384", "RS512", "PS256", "ES384"] {
                let token = signer.token(&json!({ "alg": alg }), &good_claims());
                let expected = match (alg == accepted, algorithm == accepted) {
                    (true, true) => Ok(ada()),
                    (true, false) => Err(Refusal::BadSignature),
                    (false, _) => Err(Refusal::WrongAlgorithm { accepted }),
                };
                let case = format!("{algorithm} called {alg}, for a key of {accepted}");
                assert_eq!(present_token(&token_verifier, &token), expected, "{case}");
            }
        }
    }
}

#[test]
fn no_form_of_a_public_key_is_a_secret_to_sign_with() {
    let (rsa, ec) = (rsa(0), ec());
    let PublicKeyComponents::<Vec<u8>> { n, .. } = rsa.public().into();
    let pem = include_bytes!("../../../../tests/keys/rsa-1.public.pem");
    let from_pem = Key::from_settings(&"".into(), std::str::from_utf8(pem).unwrap());
    let rsa_verifier = TokenVerifier::new(&from_pem.unwrap().unwrap(), None, None);
    let good = Signer::Rsa(&rsa).token(&json!({ "alg": "RS256" }), &good_claims());
    assert_eq!(present_token(&rsa_verifier, &good), Ok(ada()));
    let ec_verifier = TokenVerifier::new(&ec_key(&ec), None, None);
    let point = ec.public_key().as_ref();
    for (token_verifier, alg, forms) in [
        (rsa_verifier, "RS256", [&pem[..], pem.trim_ascii_end(), rsa.public().as_ref(), &n]),
        (ec_verifier, "ES256", [point, &point[1..], base64(point).as_bytes(), &point[1..33]]),
    ] {
        for secret in forms {
            let forge = |alg| Signer::Hmac(secret).token(&json!({ "alg": alg }), &good_claims());
            let refused = Err(Refusal::WrongAlgorithm { accepted: alg });
            assert_eq!(present_token(&token_verifier, &forge("HS256")), refused);
            assert_eq!(present_token(&token_verifier, &forge(alg)), Err(Refusal::BadSignature));
        }
    }
}

/// JOSE has the two numbers side by side (RFC 7518 section 3.4), others have them in ASN.1.
#[test]
fn an_ecdsa_signature_in_asn_1_is_refused() {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let asn1 = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
    let fixed = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let fixed = EcdsaKeyPair::from_pkcs8(fixed, document.as_ref(), &random).unwrap();
    let token_verifier = TokenVerifier::new(&ec_key(&fixed), None, None);
    let token = |pair| Signer::Ec(pair).token(&json!({ "alg": "ES256" }), &good_claims());
    assert_eq!(present_token(&token_verifier, &token(&fixed)), Ok(ada()));
    assert_eq!(present_token(&token_verifier, &token(&asn1)), Err(Refusal::BadSignature));
}

#[test]
fn a_private_key_in_pem_signs_what_its_public_half_verifies() {
    let pem = |der: &[u8]| {
        let body = STANDARD.encode(der);
        format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
    };
    let random = SystemRandom::new();
    let ec_document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let ec =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec_document.as_ref(), &random);
    // RFC 8410 section 10.3, without the public half, as OpenSSL writes them.
    let seed = [9; 32];
    let ed25519_document =
        [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &seed]
            .concat();
    for (pem, key, algorithm) in [
        (RSA_PEMS[0].to_owned(), rsa_key(&rsa(0)), "RS256"),
        (pem(ec_document.as_ref()), ec_key(&ec.unwrap()), "ES256"),
        (pem(&ed25519_document), public_key(&pair(9)), "EdDSA"),
    ] {
        let signing = SigningKey::from_pem(pem.as_bytes()).map_err(|error| error.to_string());
        let signing = signing.unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        assert_eq!(signing.algorithm(), algorithm);
        let token = signing.token(Some("k"), &good_claims()).unwrap();
        assert_eq!(
            present_token(&TokenVerifier::new(&key, None, None), &token),
            Ok(ada()),
            "{algorithm}"
        );
        let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header, json!({ "alg": algorithm, "typ": "JWT", "kid": "k" }));
    }
    let refused = |text: &str| SigningKey::from_pem(text.as_bytes()).err();
    for none in ["", "key", include_str!("../../../../tests/keys/rsa-1.public.pem")] {
        assert_eq!(refused(none), Some(InvalidPrivateKey::NoPem), "{none}");
    }
    let encrypted = RSA_PEMS[0].replace("PRIVATE", "ENCRYPTED PRIVATE");
    assert_eq!(refused(&encrypted), Some(InvalidPrivateKey::NoPem));
    for older in ["RSA PRIVATE", "EC PRIVATE"] {
        let older = RSA_PEMS[0].replace("PRIVATE", older);
        assert_eq!(refused(&older), Some(InvalidPrivateKey::NotPkcs8), "{older}");
    }
    let garbage = pem(&ed25519_document[1..]);
    assert_eq!(refused(&garbage), Some(InvalidPrivateKey::Unsupported));
}

#[test]
fn the_secret_of_the_settings_signs_too() {
    let key = SigningKey::from_secret(&SECRET.into()).unwrap().unwrap();
    let token = key.token(None, &good_claims()).unwrap();
    assert_eq!(present_token(&secret_verifier(), &token), Ok(ada()));
    assert!(SigningKey::from_secret(&"".into()).unwrap().is_none());
    assert_eq!(SigningKey::from_secret(&"short".into()).err(), Some(InvalidKey::ShortSecret));
}
