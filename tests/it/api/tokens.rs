//! Who may do what, by bearer tokens.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::Utc;
use reqwest::RequestBuilder;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::{header, refused, wanted};
use crate::harness::api::{Served, answer, on_free_port};
use crate::harness::{Stage, sale};

const ORDERS: &str = "/v1/sales/s/orders";
pub const SECRET: &str = "a secret of tests, of 32 bytes or more";

/// What signs tokens.
pub enum Signer {
    Hs256(&'static str),
    Ed25519([u8; 32]),
    None,
}

impl Signer {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::Ed25519(_) => "EdDSA",
            Self::None => "none",
        }
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.algorithm(), claims)
    }

    /// A token that says it is signed with `algorithm`.
    fn sign_as(&self, algorithm: &str, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed =
            format!("{}.{}", part(&json!({ "alg": algorithm, "typ": "JWT" })), part(claims));
        let signature = match self {
            Self::Hs256(secret) => {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
                ring::hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
            }
            Self::Ed25519(seed) => {
                let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("a key");
                pair.sign(signed.as_bytes()).as_ref().to_vec()
            }
            Self::None => Vec::new(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Claims that are good for an hour.
pub fn claims(subject: &str, scope: &str) -> Value {
    json!({ "sub": subject, "scope": scope, "exp": Utc::now().timestamp() + 3600 })
}

pub async fn with_secret(what: &str) -> (Stage, Served) {
    let stage = Stage::with(what, |settings| {
        on_free_port(settings);
        settings.api.jwt_secret = SECRET.into();
    })
    .await;
    stage.open(sale("s", 100)).await;
    let served = Served::up(&stage.deployment.app).await;
    (stage, served)
}

/// The answer must be 401 with a challenge that has `hint` in it.
async fn unauthorized(request: impl Fn() -> RequestBuilder, hint: &str) {
    refused(request(), 401, "unauthorized").await;
    let response = request().send().await.expect("an answer");
    let challenge = header(&response, "www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer") && challenge.contains(hint), "{challenge}");
}

#[tokio::test]
async fn a_token_that_is_not_good_opens_nothing() {
    let (stage, served) = with_secret("tokens").await;
    let signer = Signer::Hs256(SECRET);
    let past = Utc::now().timestamp() - 3600;
    let other = Signer::Hs256("another secret, which is as long as it");
    let good = signer.sign(&claims("u", ""));
    let (body, _) = good.rsplit_once('.').expect("three parts");
    for (token, hint) in [
        (String::new(), "malformed"),
        ("x".into(), "three parts"),
        (format!("{body}."), "invalid_token"),
        (format!("{good}x"), "invalid_token"),
        (other.sign(&claims("u", "")), "signature"),
        (signer.sign(&json!({ "sub": "u", "exp": past })), "expired"),
        (signer.sign(&json!({ "sub": "u" })), "no exp"),
        (Signer::None.sign(&claims("u", "")), "alg is not HS256"),
        (signer.sign_as("none", &claims("u", "")), "alg is not HS256"),
        (signer.sign_as("EdDSA", &claims("u", "")), "alg is not HS256"),
        (signer.sign(&claims("a b", "")), "sub"),
        (format!("{good}{}", "x".repeat(9000)), "longer"),
    ] {
        unauthorized(|| served.post(ORDERS, &wanted("u", 1)).bearer_auth(&token), hint).await;
    }
    unauthorized(|| served.post(ORDERS, &wanted("u", 1)), "Bearer").await;
    unauthorized(|| served.post(ORDERS, &wanted("u", 1)).basic_auth("u", Some("p")), "Bearer")
        .await;
    for path in ["/v1/sales/s/orders/o", "/v1/status/stream"] {
        unauthorized(|| served.get(path), "Bearer").await;
    }
    for path in
        ["/v1/sales", "/v1/sales/s/restock", "/v1/sales/s/verification", "/v1/sales/s/close"]
    {
        unauthorized(|| served.post(path, &json!({})), "Bearer").await;
    }
    let twice = served.post(ORDERS, &wanted("u", 1)).bearer_auth(&good).bearer_auth(&good);
    refused(twice, 400, "bad-header").await;
    // What is for everybody.
    for path in ["/v1/sales", "/v1/sales/s", "/v1/sales/s/stream", "/", "/docs", "/openapi.json"] {
        let with_bad_token = served.get(path).bearer_auth("x");
        assert_eq!(with_bad_token.send().await.expect("an answer").status(), 200, "{path}");
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_buyer_orders_for_nobody_else_and_sees_nothing_of_others() {
    let (stage, served) = with_secret("buyer").await;
    let signer = Signer::Hs256(SECRET);
    let (mine, others) = (signer.sign(&claims("me", "")), signer.sign(&claims("other", "")));
    let order = |body: &Value| served.post(ORDERS, body).header("prefer", "wait=30");
    let (status, decision) = answer(order(&wanted("me", 1)).bearer_auth(&mine)).await;
    assert_eq!((status, &decision["user_id"]), (200, &"me".into()));
    // The token says who; there is no need to repeat it.
    let (_, unnamed) = answer(order(&json!({ "quantity": 1 })).bearer_auth(&mine)).await;
    assert_eq!(unnamed["user_id"], "me");
    refused(order(&wanted("other", 1)).bearer_auth(&mine), 403, "forbidden").await;

    let path = format!("{ORDERS}/{}", decision["order_id"].as_str().expect("an id"));
    let show = |token: &str| served.get(&path).bearer_auth(token);
    assert_eq!(answer(show(&mine)).await, (200, decision.clone()));
    refused(show(&others), 404, "unknown-order").await;
    for scope in ["floodgate:admin", "floodgate:submit", "read floodgate:submit"] {
        let token = signer.sign(&claims("desk", scope));
        assert_eq!(answer(show(&token)).await, (200, decision.clone()), "{scope}");
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn scopes_allow_what_they_say_and_no_more() {
    let (stage, served) = with_secret("scopes").await;
    let signer = Signer::Hs256(SECRET);
    let token = |scope: &str| signer.sign(&claims("desk", scope));
    let restock = json!({ "adjustment_id": "a", "units": 1 });
    let open = json!({ "sale_id": "t", "stock": 1 });
    let switch = json!({ "verification": true });
    let operations = || {
        [
            (served.post("/v1/sales", &open), 201),
            (served.post("/v1/sales/s/restock", &restock), 200),
            (served.post("/v1/sales/t/verification", &switch), 200),
            (served.post("/v1/sales/t/close", &json!(null)), 200),
            (served.get("/v1/status/stream"), 200),
        ]
    };
    for scope in ["", "floodgate:submit", "floodgate:administrator", "FLOODGATE:ADMIN"] {
        for (request, _) in operations() {
            let asked = request.bearer_auth(token(scope));
            let response = asked.try_clone().expect("no stream").send().await.expect("an answer");
            assert_eq!(
                header(&response, "www-authenticate"),
                Some("Bearer error=\"insufficient_scope\", scope=\"floodgate:admin\"")
            );
            refused(asked, 403, "forbidden").await;
        }
    }
    for (request, status) in operations() {
        let response = request.bearer_auth(token("floodgate:admin")).send().await;
        assert_eq!(response.expect("an answer").status(), status);
    }
    // Who may operate may not order for others; who may submit may, also without a sub.
    let order = || served.post(ORDERS, &wanted("buyer", 1)).header("prefer", "wait=30");
    refused(order().bearer_auth(token("floodgate:admin")), 403, "forbidden").await;
    let service = json!({ "scope": "floodgate:submit", "exp": Utc::now().timestamp() + 60 });
    for token in [token("floodgate:submit"), signer.sign(&service)] {
        let (status, decision) = answer(order().bearer_auth(token)).await;
        assert_eq!((status, &decision["user_id"]), (200, &"buyer".into()));
    }
    let nobody = served.post(ORDERS, &json!({ "quantity": 1 })).bearer_auth(signer.sign(&service));
    refused(nobody, 422, "invalid-request").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_server_with_a_public_key_takes_no_other_kind_of_token() {
    let seed = [7; 32];
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a key");
    let public = STANDARD.encode(pair.public_key());
    let key = public.clone();
    let stage = Stage::with("ed25519", |settings| {
        on_free_port(settings);
        settings.api.jwt_public_key = key;
        settings.api.jwt_issuer = "https://issuer.example".into();
        settings.api.jwt_audience = "shop".into();
    })
    .await;
    stage.open(sale("s", 100)).await;
    let served = Served::up(&stage.deployment.app).await;
    let with = |issuer: &str, audience: Value| {
        let mut claims = claims("u", "");
        claims["iss"] = issuer.into();
        claims["aud"] = audience;
        claims
    };
    let good = with("https://issuer.example", json!(["other", "shop"]));
    let signer = Signer::Ed25519(seed);
    let order = |token: &str| served.post(ORDERS, &wanted("u", 1)).bearer_auth(token);
    assert_eq!(answer(order(&signer.sign(&good))).await.0, 202);
    // The public key, which everybody may know, as the secret of a token.
    let leaked: &'static str = public.leak();
    for (token, hint) in [
        (Signer::Hs256(leaked).sign(&good), "alg is not EdDSA"),
        (Signer::Hs256(SECRET).sign(&good), "alg is not EdDSA"),
        (Signer::Hs256(leaked).sign_as("EdDSA", &good), "signature"),
        (Signer::Ed25519([8; 32]).sign(&good), "signature"),
        (Signer::None.sign(&good), "alg is not EdDSA"),
        (signer.sign(&with("https://evil.example", json!("shop"))), "iss"),
        (signer.sign(&with("https://issuer.example", json!("elsewhere"))), "aud"),
        (signer.sign(&claims("u", "")), "iss"),
    ] {
        unauthorized(|| order(&token), hint).await;
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn with_a_key_it_answers_by_any_name() {
    let (stage, served) = with_secret("names").await;
    let response = served.get("/v1/sales/s").header("host", "shop.example").send().await;
    assert_eq!(response.expect("an answer").status(), 200);
    let token = Signer::Hs256(SECRET).sign(&claims("u", ""));
    let order = served.post(ORDERS, &wanted("u", 1)).bearer_auth(token);
    let elsewhere = order.header("origin", "https://shop.example");
    assert_eq!(answer(elsewhere).await.0, 202, "a token is proof enough");
    served.stop().await;
    stage.remove().await;
}
