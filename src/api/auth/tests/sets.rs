//! Sets of keys: which of them verifies a token, and which are left out.

use ring::rsa::PublicKeyComponents;

use proptest::prelude::*;

use super::algorithms::{ec, rsa};
use super::*;

pub(super) fn rsa_jwk(kid: &str, pair: &RsaKeyPair) -> Value {
    let PublicKeyComponents::<Vec<u8>> { n, e } = pair.public().into();
    json!({ "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": base64(n), "e": base64(e) })
}

fn ec_jwk(kid: &str, pair: &EcdsaKeyPair) -> Value {
    let point = pair.public_key().as_ref();
    let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
    json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y })
}

fn ed25519_jwk(kid: &str, pair: &Ed25519KeyPair) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64(pair.public_key()) })
}

/// `jwk` with other values; `null` takes one away.
fn with(jwk: &Value, changes: &Value) -> Value {
    let mut jwk = jwk.clone();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            jwk.as_object_mut().unwrap().remove(name);
        } else {
            jwk[name] = value.clone();
        }
    }
    jwk
}

/// The token_verifier of a server whose settings name a file with these keys.
fn token_verifier(keys: &[Value]) -> Result<TokenVerifier, InvalidTokenSettings> {
    verifier_of(&json!({ "keys": keys }).to_string())
}

fn verifier_of(text: &str) -> Result<TokenVerifier, InvalidTokenSettings> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    std::fs::write(&path, text).unwrap();
    let mut settings = crate::config::Settings::load(None).unwrap().api;
    settings.jwt_jwks = path.to_str().unwrap().to_owned();
    Ok(TokenVerifier::from_settings(&settings)?.unwrap())
}

fn token(signer: Signer<'_>, header: &Value) -> String {
    signer.token(header, &good_claims())
}

#[test]
fn the_kid_chooses_the_key_and_the_key_the_algorithm() {
    let (rsa1, rsa2, ec, ed25519) = (rsa(0), rsa(1), ec(), pair(1));
    let token_verifier = token_verifier(&[
        rsa_jwk("r1", &rsa1),
        rsa_jwk("r2", &rsa2),
        ec_jwk("e", &ec),
        ed25519_jwk("d", &ed25519),
    ]);
    let token_verifier = token_verifier.unwrap();
    let (r1, r2) = (Signer::Rsa(&rsa1), Signer::Rsa(&rsa2));
    let (e, d) = (Signer::Ec(&ec), Signer::Ed25519(&ed25519));
    for (signer, alg, kid) in
        [(r1, "RS256", "r1"), (r2, "RS256", "r2"), (e, "ES256", "e"), (d, "EdDSA", "d")]
    {
        let good = token(signer, &json!({ "alg": alg, "kid": kid }));
        assert_eq!(present_token(&token_verifier, &good), Ok(ada()), "{kid}");
        for unknown in ["", "R1", "r", "r1 ", "r11"] {
            let unknown = token(signer, &json!({ "alg": alg, "kid": unknown }));
            assert_eq!(present_token(&token_verifier, &unknown), Err(Refusal::UnknownKey));
        }
    }
    for (signer, alg, kid, refusal) in [
        (r1, "RS256", "r2", Refusal::BadSignature),
        (r1, "RS256", "e", Refusal::WrongAlgorithm { accepted: "ES256" }),
        (r1, "ES256", "e", Refusal::BadSignature),
        (e, "ES256", "r1", Refusal::WrongAlgorithm { accepted: "RS256" }),
        (d, "EdDSA", "e", Refusal::WrongAlgorithm { accepted: "ES256" }),
        (r1, "none", "r1", Refusal::WrongAlgorithm { accepted: "RS256" }),
        (r1, "PS256", "r1", Refusal::WrongAlgorithm { accepted: "RS256" }),
        (Signer::Hmac(b"x"), "HS256", "r1", Refusal::WrongAlgorithm { accepted: "RS256" }),
        (Signer::Hmac(ec.public_key().as_ref()), "ES256", "e", Refusal::BadSignature),
    ] {
        let bad = token(signer, &json!({ "alg": alg, "kid": kid }));
        assert_eq!(present_token(&token_verifier, &bad), Err(refusal), "{alg} {kid}");
    }
    let number = token(r1, &json!({ "alg": "RS256", "kid": 1 }));
    assert!(malformed(&present_token(&token_verifier, &number)));
    // What a token brings along or points at is not looked at.
    let own = json!({ "alg": "RS256", "kid": "r2", "jwk": rsa_jwk("r2", &rsa1), "jku": "http://127.0.0.1/" });
    assert_eq!(present_token(&token_verifier, &token(r1, &own)), Err(Refusal::BadSignature));
}

#[test]
fn a_token_without_kid_needs_exactly_one_key_of_its_algorithm() {
    let (rsa1, rsa2, ec, ed25519) = (rsa(0), rsa(1), ec(), pair(1));
    let anonymous = |signer, alg| token(signer, &json!({ "alg": alg }));
    let one = token_verifier(&[rsa_jwk("r1", &rsa1), ec_jwk("e", &ec)]).unwrap();
    assert_eq!(present_token(&one, &anonymous(Signer::Rsa(&rsa1), "RS256")), Ok(ada()));
    assert_eq!(present_token(&one, &anonymous(Signer::Ec(&ec), "ES256")), Ok(ada()));
    for (signer, alg) in [(Signer::Ed25519(&ed25519), "EdDSA"), (Signer::Hmac(b"x"), "HS256")] {
        assert_eq!(present_token(&one, &anonymous(signer, alg)), Err(Refusal::NoKeyId));
    }
    let two = token_verifier(&[rsa_jwk("r1", &rsa1), rsa_jwk("r2", &rsa2)]).unwrap();
    let refused = present_token(&two, &anonymous(Signer::Rsa(&rsa1), "RS256"));
    assert_eq!(refused, Err(Refusal::NoKeyId));
    // A key without an id is not chosen by a token that names one.
    let nameless = token_verifier(&[with(&rsa_jwk("", &rsa1), &json!({ "kid": null }))]).unwrap();
    assert_eq!(present_token(&nameless, &anonymous(Signer::Rsa(&rsa1), "RS256")), Ok(ada()));
    let named = token(Signer::Rsa(&rsa1), &json!({ "alg": "RS256", "kid": "r1" }));
    assert_eq!(present_token(&nameless, &named), Err(Refusal::UnknownKey));
}

/// RFC 7517 section 4.5 allows that for keys of different problem_types.
#[test]
fn two_keys_of_one_kid_are_told_apart_by_their_algorithm() {
    let (rsa, ec) = (rsa(0), ec());
    let token_verifier = token_verifier(&[rsa_jwk("k", &rsa), ec_jwk("k", &ec)]).unwrap();
    for (signer, alg) in [(Signer::Rsa(&rsa), "RS256"), (Signer::Ec(&ec), "ES256")] {
        let good = token(signer, &json!({ "alg": alg, "kid": "k" }));
        assert_eq!(present_token(&token_verifier, &good), Ok(ada()), "{alg}");
    }
    let swapped = token(Signer::Rsa(&rsa), &json!({ "alg": "ES256", "kid": "k" }));
    assert_eq!(present_token(&token_verifier, &swapped), Err(Refusal::BadSignature));
    let refused = token(Signer::Ed25519(&pair(1)), &json!({ "alg": "EdDSA", "kid": "k" }));
    let accepted = "RS256";
    assert_eq!(present_token(&token_verifier, &refused), Err(Refusal::WrongAlgorithm { accepted }));
}

#[test]
fn keys_that_are_not_for_signatures_or_not_understood_are_left_out() {
    let (rsa, ec, ed25519) = (rsa(0), ec(), pair(1));
    let (r, e, d) = (rsa_jwk("r", &rsa), ec_jwk("e", &ec), ed25519_jwk("d", &ed25519));
    let short = base64([0xff; 128]);
    let left_out = [
        json!({ "kty": "oct", "kid": "o", "alg": "HS256", "k": base64(SECRET) }),
        json!({ "kty": "oct", "kid": "o", "alg": "RS256", "k": base64(SECRET) }),
        with(&r, &json!({ "use": "enc" })),
        with(&r, &json!({ "use": "SIG" })),
        with(&r, &json!({ "use": 5 })),
        with(&r, &json!({ "key_ops": ["encrypt"] })),
        with(&r, &json!({ "alg": "RS512" })),
        with(&r, &json!({ "alg": "PS256" })),
        with(&r, &json!({ "alg": "RSA-OAEP" })),
        with(&r, &json!({ "alg": "HS256" })),
        with(&r, &json!({ "n": short })),
        with(&r, &json!({ "n": "!" })),
        with(&r, &json!({ "n": null })),
        with(&r, &json!({ "e": "AQ" })),
        with(&r, &json!({ "kty": "rsa" })),
        with(&r, &json!({ "kid": 5 })),
        with(&e, &json!({ "crv": "P-384" })),
        with(&e, &json!({ "crv": "secp256k1" })),
        with(&e, &json!({ "alg": "EdDSA" })),
        with(&e, &json!({ "x": base64([1; 31]) })),
        with(&e, &json!({ "y": null })),
        with(&d, &json!({ "crv": "X25519" })),
        with(&d, &json!({ "crv": "Ed448" })),
        with(&d, &json!({ "x": base64([0; 32]) })),
        with(&d, &json!({ "x": base64([1; 33]) })),
        json!({}),
        json!(null),
        json!("key"),
    ];
    for key in &left_out {
        match token_verifier(std::slice::from_ref(key)) {
            Err(InvalidTokenSettings::Keys(KeysUnavailable::Invalid(
                InvalidKeySet::NoneUsable(1),
            ))) => {}
            other => panic!("{key}: {other:?}"),
        }
    }
    let mut all = left_out.to_vec();
    all.extend([with(&r, &json!({ "kid": "good", "use": null, "key_ops": ["verify"] })), e, d]);
    let token_verifier = token_verifier(&all).unwrap();
    let by_name = |signer, alg, kid| {
        present_token(&token_verifier, &token(signer, &json!({ "alg": alg, "kid": kid })))
    };
    assert_eq!(by_name(Signer::Rsa(&rsa), "RS256", "good"), Ok(ada()));
    assert_eq!(by_name(Signer::Ec(&ec), "ES256", "e"), Ok(ada()));
    assert_eq!(by_name(Signer::Ed25519(&ed25519), "EdDSA", "d"), Ok(ada()));
    assert_eq!(by_name(Signer::Rsa(&rsa), "RS256", "r"), Err(Refusal::UnknownKey));
    // A symmetric key that is published is no secret.
    let forged = by_name(Signer::Hmac(SECRET.as_bytes()), "HS256", "o");
    assert_eq!(forged, Err(Refusal::UnknownKey));
}

#[test]
fn what_is_no_set_is_an_error_that_says_what_to_do() {
    let invalid = |text: &str| match verifier_of(text) {
        Err(InvalidTokenSettings::Keys(KeysUnavailable::Invalid(invalid))) => invalid,
        other => panic!("{text}: {other:?}"),
    };
    for text in ["", "{}", "[]", "null", "{\"keys\":{}}", "{\"keys\":5}", "{\"keys\":[}", "\u{e9}"]
    {
        assert_eq!(invalid(text), InvalidKeySet::NoSet, "{text}");
    }
    assert_eq!(invalid("{\"keys\":[]}"), InvalidKeySet::NoneUsable(0));
    let jwk = ed25519_jwk("k", &pair(1));
    assert!(token_verifier(&vec![jwk.clone(); MAX_KEYS]).is_ok());
    let many = json!({ "keys": vec![jwk; MAX_KEYS + 1] }).to_string();
    assert_eq!(invalid(&many), InvalidKeySet::TooMany(MAX_KEYS + 1));
    let mut settings = crate::config::Settings::load(None).unwrap().api;
    settings.jwt_jwks = "/nowhere/jwks.json".into();
    let error = TokenVerifier::from_settings(&settings).unwrap_err().to_string();
    for part in ["/nowhere/jwks.json can't be read", "FLOODGATE_API__JWT_JWKS", "RFC 7517"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn one_of_the_three_is_set() {
    let mut settings = crate::config::Settings::load(None).unwrap().api;
    settings.jwt_jwks = "http://127.0.0.1:1/jwks".into();
    let token_verifier = TokenVerifier::from_settings(&settings).unwrap().unwrap();
    assert!(!token_verifier.has_keys(), "nothing is asked yet");
    let token = Signer::Rsa(&rsa(0)).token(&json!({ "alg": "RS256", "kid": "k" }), &good_claims());
    assert_eq!(present_token(&token_verifier, &token), Err(Refusal::NoKeys));
    assert!(malformed(&present_token(&token_verifier, "x")), "what is no token needs no key");
    for with_jwks in [true, false] {
        let mut both = settings.clone();
        both.jwt_secret = SECRET.into();
        if with_jwks {
            let refused = TokenVerifier::from_settings(&both);
            assert!(matches!(refused, Err(InvalidTokenSettings::Key(InvalidKey::Several))));
        } else {
            both.jwt_jwks = String::new();
        }
        both.jwt_public_key = base64(pair(1).public_key());
        assert!(matches!(
            TokenVerifier::from_settings(&both),
            Err(InvalidTokenSettings::Key(InvalidKey::Several))
        ));
        both.jwt_secret = "".into();
        assert_eq!(TokenVerifier::from_settings(&both).is_err(), with_jwks);
    }
}

proptest! {
    #[test]
    fn no_text_as_a_set_panics(text in "\\PC{0,80}|\\{\"keys\":\\[\\{(\"(kty|crv|n|e|x|y|use|kid)\":\"?[A-Za-z0-9-]{0,9}\"?,?){0,6}\\}\\]\\}") {
        prop_assert!(verifier_of(&text).is_err());
    }
}
