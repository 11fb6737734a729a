//! Every way a token can be right or wrong. Tokens are signed with ring, by hand.

mod algorithms;
mod random;
mod sets;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

use super::token::NOT_BASE64URL;
use super::*;

const SECRET: &str = "a secret that is long enough: 32.";
/// When the tests take place, in seconds since 1970.
const NOW: i64 = 1_800_000_000;

/// Signs what a token says, as the one who issues tokens or as one who would like to.
#[derive(Clone, Copy)]
enum Signer<'a> {
    Hmac(&'a [u8]),
    Ed25519(&'a Ed25519KeyPair),
    Rsa(&'a RsaKeyPair),
    Ec(&'a EcdsaKeyPair),
}

impl Signer<'_> {
    fn token(self, header: &Value, claims: &Value) -> String {
        self.sign(&format!("{}.{}", base64(header.to_string()), base64(claims.to_string())))
    }

    fn sign(self, message: &str) -> String {
        let signature = match self {
            Self::Hmac(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let (random, mut signature) = (SystemRandom::new(), vec![0; 256]);
                pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                signature
            }
            Self::Ec(pair) => {
                pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec()
            }
        };
        format!("{message}.{}", base64(signature))
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn public_key(pair: &Ed25519KeyPair) -> Key {
    Key::Ed25519(pair.public_key().as_ref().try_into().unwrap())
}

fn secret_verifier() -> TokenVerifier {
    TokenVerifier::new(&Key::Hs256(SECRET.into()), None, None)
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(NOW, 0).unwrap()
}

fn present_token(token_verifier: &TokenVerifier, token: &str) -> Result<Principal, Refusal> {
    token_verifier.verify(Some(&format!("Bearer {token}")), now())
}

/// What the token_verifier for [`SECRET`] says of a token that is in order but for `claims`.
fn with_claims(claims: &Value) -> Result<Principal, Refusal> {
    let token = Signer::Hmac(SECRET.as_bytes()).token(&json!({ "alg": "HS256" }), claims);
    present_token(&secret_verifier(), &token)
}

/// What the token_verifier for [`SECRET`] says of a token that is in order but for `header`.
fn with_header(header: &Value) -> Result<Principal, Refusal> {
    let token = Signer::Hmac(SECRET.as_bytes()).token(header, &good_claims());
    present_token(&secret_verifier(), &token)
}

fn good_claims() -> Value {
    json!({ "sub": "ada", "exp": NOW + 60, "scope": "floodgate:submit" })
}

fn good_token() -> String {
    Signer::Hmac(SECRET.as_bytes()).token(&json!({ "alg": "HS256", "typ": "JWT" }), &good_claims())
}

fn ada() -> Principal {
    Principal {
        subject: Some(UserId::parse("ada").unwrap()),
        admin: false,
        submit: true,
        metrics: false,
        events: false,
    }
}

fn malformed(result: &Result<Principal, Refusal>) -> bool {
    matches!(result, Err(Refusal::Malformed(_)))
}

#[test]
fn good_tokens_of_both_kinds_name_their_principal() {
    assert_eq!(present_token(&secret_verifier(), &good_token()), Ok(ada()));
    let pair = pair(1);
    let token_verifier = TokenVerifier::new(&public_key(&pair), None, None);
    let token = Signer::Ed25519(&pair).token(&json!({ "alg": "EdDSA" }), &good_claims());
    assert_eq!(present_token(&token_verifier, &token), Ok(ada()));
}

#[test]
fn the_scheme_is_in_any_case_and_any_number_of_spaces_follow() {
    let token = good_token();
    for prefix in ["Bearer ", "bearer ", "BEARER ", "bEaReR  ", "Bearer    "] {
        assert_eq!(secret_verifier().verify(Some(&format!("{prefix}{token}")), now()), Ok(ada()));
    }
}

#[test]
fn no_token_or_another_scheme_is_missing() {
    for header in [None, Some(""), Some("Basic YTpi"), Some("Bearers x"), Some(&*good_token())] {
        assert_eq!(secret_verifier().verify(header, now()), Err(Refusal::Missing), "{header:?}");
    }
    assert!(malformed(&secret_verifier().verify(Some("Bearer"), now())));
    assert!(malformed(&secret_verifier().verify(Some("Bearer   "), now())));
}

#[test]
fn what_is_no_token_is_malformed() {
    let token = good_token();
    let (message, signature) = token.rsplit_once('.').unwrap();
    for garbage in [
        "x".to_owned(),
        "...".into(),
        "..".into(),
        "a.b.c".into(),
        "\u{1f512}.\u{1f512}.\u{1f512}".into(),
        message.to_owned(),
        format!("{token}.x"),
        format!("{token}="),
        format!("{}.{}.{signature}", base64("[]"), base64("{}")),
        format!("{}.{}.{signature}", base64("{\"alg\":5}"), base64("{}")),
        format!("{}.{}.{signature}", base64("{\"alg\":\"HS256\",\"alg\":\"none\"}"), base64("{}")),
    ] {
        assert!(malformed(&present_token(&secret_verifier(), &garbage)), "{garbage:?}");
    }
    let spaced = format!("{message} .{signature}");
    assert_eq!(present_token(&secret_verifier(), &spaced), Err(Refusal::BadSignature));
}

#[test]
fn a_truncated_token_is_refused_wherever_it_ends() {
    let token = good_token();
    for end in 0..token.len() {
        assert!(present_token(&secret_verifier(), &token[..end]).is_err(), "{end}");
    }
}

#[test]
fn the_length_of_a_token_is_bounded() {
    let long = |bytes| "x".repeat(bytes);
    assert!(malformed(&present_token(&secret_verifier(), &long(MAX_TOKEN_BYTES))));
    for bytes in [MAX_TOKEN_BYTES + 1, 10 << 20] {
        assert_eq!(present_token(&secret_verifier(), &long(bytes)), Err(Refusal::TooLong));
    }
}

#[test]
fn the_algorithm_is_that_of_the_key_whatever_the_token_says() {
    let refused = Err(Refusal::WrongAlgorithm { accepted: "HS256" });
    for alg in ["none", "None", "", "hs256", "HS384", "HS512", "RS256", "ES256", "EdDSA"] {
        assert_eq!(with_header(&json!({ "alg": alg })), refused, "{alg}");
        let unsigned =
            format!("{}.{}.", base64(json!({ "alg": alg }).to_string()), base64("{\"exp\":9e9}"));
        assert_eq!(present_token(&secret_verifier(), &unsigned), refused, "{alg}");
    }
    let unsigned = format!("{}.{}.", base64("{\"alg\":\"HS256\"}"), base64("{\"exp\":9e9}"));
    assert_eq!(present_token(&secret_verifier(), &unsigned), Err(Refusal::BadSignature));
}

#[test]
fn a_public_key_is_no_secret_to_sign_with() {
    let pair = pair(1);
    let token_verifier = TokenVerifier::new(&public_key(&pair), None, None);
    let public = pair.public_key().as_ref();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", base64(public));
    for secret in [public, pem.as_bytes(), base64(public).as_bytes()] {
        let forge = |alg| Signer::Hmac(secret).token(&json!({ "alg": alg }), &good_claims());
        let refused = Err(Refusal::WrongAlgorithm { accepted: "EdDSA" });
        assert_eq!(present_token(&token_verifier, &forge("HS256")), refused);
        assert_eq!(present_token(&token_verifier, &forge("EdDSA")), Err(Refusal::BadSignature));
    }
}

#[test]
fn a_token_of_another_key_is_refused() {
    let header = json!({ "alg": "HS256" });
    let token = Signer::Hmac(&[7; 32]).token(&header, &good_claims());
    assert_eq!(present_token(&secret_verifier(), &token), Err(Refusal::BadSignature));
    let (own, other) = (pair(1), pair(2));
    let token_verifier = TokenVerifier::new(&public_key(&own), None, None);
    let token = Signer::Ed25519(&other).token(&json!({ "alg": "EdDSA" }), &good_claims());
    assert_eq!(present_token(&token_verifier, &token), Err(Refusal::BadSignature));
    // A key that the token brings along is not looked at.
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(other.public_key()) });
    let token =
        Signer::Ed25519(&other).token(&json!({ "alg": "EdDSA", "jwk": jwk }), &good_claims());
    assert_eq!(present_token(&token_verifier, &token), Err(Refusal::BadSignature));
}

#[test]
fn a_token_for_the_other_kind_of_key_is_refused() {
    let pair = pair(1);
    let token = Signer::Ed25519(&pair).token(&json!({ "alg": "EdDSA" }), &good_claims());
    let refused = Err(Refusal::WrongAlgorithm { accepted: "HS256" });
    assert_eq!(present_token(&secret_verifier(), &token), refused);
    let refused = Err(Refusal::WrongAlgorithm { accepted: "EdDSA" });
    let token_verifier = TokenVerifier::new(&public_key(&pair), None, None);
    assert_eq!(present_token(&token_verifier, &good_token()), refused);
}

#[test]
fn critical_extensions_are_refused_in_any_form() {
    for crit in [json!(["b64"]), json!([]), json!(["exp"]), json!(null), json!("exp"), json!(1)] {
        let header = json!({ "alg": "HS256", "crit": crit, "b64": false });
        assert_eq!(with_header(&header), Err(Refusal::CriticalExtension), "{crit}");
    }
}

#[test]
fn tokens_for_another_use_are_refused() {
    for typ in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
        assert_eq!(with_header(&json!({ "alg": "HS256", "typ": typ })), Ok(ada()), "{typ}");
    }
    for typ in ["", "logout+jwt", "secevent+jwt", "application/"] {
        let header = json!({ "alg": "HS256", "typ": typ });
        assert_eq!(with_header(&header), Err(Refusal::WrongType), "{typ}");
    }
}

#[test]
fn a_token_is_good_until_it_expires_and_a_leeway_longer() {
    let at = |exp: Value| with_claims(&json!({ "exp": exp })).map(drop);
    let leeway = i64::from(LEEWAY_S);
    assert_eq!(at(json!(NOW - leeway + 1)), Ok(()));
    assert_eq!(at(json!(NOW as f64 - 29.5)), Ok(()), "a fraction is allowed");
    assert_eq!(at(json!(1e300)), Ok(()));
    for past in [json!(NOW - leeway), json!(0), json!(-1), json!(-1e300), json!(i64::MIN)] {
        assert_eq!(at(past.clone()), Err(Refusal::Expired), "{past}");
    }
    assert_eq!(with_claims(&json!({ "sub": "ada" })), Err(Refusal::NoExpiry));
    assert_eq!(at(json!(null)), Err(Refusal::NoExpiry));
    assert!(malformed(&with_claims(&json!({ "exp": "tomorrow" }))));
    assert!(malformed(&with_claims(&json!({ "exp": NOW.to_string() }))));
    let later = now() + TimeDelta::seconds(60 + leeway);
    let header = format!("Bearer {}", good_token());
    assert_eq!(secret_verifier().verify(Some(&header), later), Err(Refusal::Expired));
}

#[test]
fn a_token_is_not_good_before_its_time_but_for_the_leeway() {
    let at = |nbf: Value| with_claims(&json!({ "exp": NOW + 999, "nbf": nbf })).map(drop);
    assert_eq!(at(json!(NOW + i64::from(LEEWAY_S))), Ok(()));
    assert_eq!(at(json!(NOW + i64::from(LEEWAY_S) + 1)), Err(Refusal::NotYet));
    assert_eq!(at(json!(u64::MAX)), Err(Refusal::NotYet));
}

#[test]
fn scopes_come_as_text_or_as_a_list() {
    let scopes = |claims: Value| {
        let mut claims = claims;
        claims["exp"] = json!(NOW + 60);
        with_claims(&claims).map(|principal| (principal.admin, principal.submit)).unwrap()
    };
    assert_eq!(scopes(json!({})), (false, false));
    assert_eq!(scopes(json!({ "scope": "a floodgate:admin  b floodgate:submit" })), (true, true));
    assert_eq!(scopes(json!({ "scp": ["a", "floodgate:admin"] })), (true, false));
    assert_eq!(scopes(json!({ "scp": "a floodgate:submit" })), (false, true));
    assert_eq!(
        scopes(json!({ "scope": "floodgate:submit", "scp": ["floodgate:admin"] })),
        (true, true)
    );
    for near in ["floodgate:administrator", "xfloodgate:admin", "FLOODGATE:ADMIN", "floodgate"] {
        assert_eq!(scopes(json!({ "scope": near, "scp": [near] })), (false, false), "{near}");
    }
    assert_eq!(scopes(json!({ "scp": ["a floodgate:admin"] })), (false, false));
    assert!(malformed(&with_claims(&json!({ "exp": NOW + 60, "scope": { "admin": true } }))));
}

#[test]
fn a_subject_is_a_user_id_or_absent() {
    let subject = |sub: Value| with_claims(&json!({ "exp": NOW + 60, "sub": sub }));
    assert_eq!(with_claims(&json!({ "exp": NOW + 60 })).unwrap().subject, None);
    assert_eq!(subject(json!("auth0:5f7c")).unwrap().subject.unwrap().as_str(), "auth0:5f7c");
    for bad in [json!(""), json!("a b"), json!("auth0|5f7c"), json!("x".repeat(65))] {
        assert!(matches!(subject(bad.clone()), Err(Refusal::BadSubject(_))), "{bad}");
    }
    assert!(malformed(&subject(json!(5))));
}

#[test]
fn issuer_and_audience_are_those_expected() {
    let key = Key::Hs256(SECRET.into());
    let token_verifier =
        TokenVerifier::new(&key, Some("https://id".into()), Some("floodgate".into()));
    let says = |token_verifier: &TokenVerifier, iss: Value, aud: Value| {
        let claims = json!({ "exp": NOW + 60, "iss": iss, "aud": aud });
        let token = Signer::Hmac(SECRET.as_bytes()).token(&json!({ "alg": "HS256" }), &claims);
        present_token(token_verifier, &token).map(drop)
    };
    let (id, us) = (|| json!("https://id"), || json!("floodgate"));
    assert_eq!(says(&token_verifier, id(), us()), Ok(()));
    assert_eq!(says(&token_verifier, id(), json!(["other", "floodgate"])), Ok(()));
    for iss in [json!(null), json!("https://id/"), json!("")] {
        assert_eq!(says(&token_verifier, iss, us()), Err(Refusal::WrongIssuer));
    }
    for aud in [json!(null), json!("other"), json!([]), json!("floodgate other")] {
        assert_eq!(says(&token_verifier, id(), aud), Err(Refusal::WrongAudience));
    }
    for odd in [json!(5), json!(["floodgate", 5])] {
        assert!(matches!(says(&token_verifier, id(), odd), Err(Refusal::Malformed(_))));
    }
    assert_eq!(says(&secret_verifier(), id(), json!(null)), Ok(()), "any issuer, no audience");
    for aud in [us(), json!([])] {
        assert_eq!(says(&secret_verifier(), id(), aud), Err(Refusal::WrongAudience));
    }
}

#[test]
fn a_challenge_says_what_is_wrong_in_characters_that_are_allowed() {
    assert_eq!(Refusal::Missing.challenge(), "Bearer");
    assert_eq!(
        Refusal::Expired.challenge(),
        "Bearer error=\"invalid_token\", error_description=\"the token has expired\""
    );
    let refusals = [
        Refusal::Malformed(NOT_BASE64URL),
        Refusal::TooLong,
        Refusal::WrongAlgorithm { accepted: "HS256" },
        Refusal::CriticalExtension,
        Refusal::WrongType,
        Refusal::UnknownKey,
        Refusal::NoKeyId,
        Refusal::BadSignature,
        Refusal::NoExpiry,
        Refusal::NotYet,
        Refusal::WrongIssuer,
        Refusal::WrongAudience,
        Refusal::BadSubject(UserId::parse("\"\\\n").unwrap_err()),
    ];
    for refusal in refusals {
        // RFC 6750 section 3: %x20-21 / %x23-5B / %x5D-7E.
        let allowed = |b: u8| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        assert!(refusal.to_string().bytes().all(allowed), "{refusal}");
    }
}

#[test]
fn a_verifier_shows_no_secret() {
    let shown = format!("{:?}", secret_verifier());
    assert!(!shown.contains("long enough"), "{shown}");
    assert!(!shown.contains(&format!("{:?}", SECRET.as_bytes())), "{shown}");
}
