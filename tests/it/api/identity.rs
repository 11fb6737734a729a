//! Who chooses order ids, and what a buyer's key stands for.

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::tokens::{SECRET, Signer, claims, with_secret};
use super::{header, refused, wanted};
use crate::harness::api::{Served, answer, json as body_of};

const ORDERS: &str = "/v1/sales/s/orders";

fn token(subject: &str, scope: &str) -> String {
    Signer::Hs256(SECRET).sign(&claims(subject, scope))
}

/// A buyer's request for `quantity` units, with a key.
fn keyed(served: &Served, buyer: &str, key: &str, quantity: u32) -> RequestBuilder {
    let request = served.post(ORDERS, &json!({ "quantity": quantity }));
    request.bearer_auth(token(buyer, "")).header("idempotency-key", key)
}

fn order_id(body: &Value) -> &str {
    body["order_id"].as_str().expect("an order id")
}

#[tokio::test]
async fn a_buyers_key_names_the_request_and_the_server_makes_the_order_id() {
    let (stage, served) = with_secret("derived").await;
    let ask = |quantity| keyed(&served, "me", "\"first/click\"", quantity);
    let response = ask(2).send().await.expect("an answer");
    assert_eq!(response.status(), 202);
    let location = header(&response, "location").expect("Location").to_owned();
    let accepted = body_of(response).await;
    let id = order_id(&accepted).to_owned();
    assert!(id.starts_with("k-") && id.len() == 34, "{id}");
    assert_eq!(location, format!("{ORDERS}/{id}"));

    let (status, decision) = answer(ask(2).header("prefer", "wait=30")).await;
    assert_eq!((status, order_id(&decision)), (200, id.as_str()), "the same key, the same order");
    assert_eq!(decision["outcome"], "created");
    assert_eq!(answer(ask(2)).await, (200, decision.clone()));
    let mine = served.get(&location).bearer_auth(token("me", ""));
    assert_eq!(answer(mine).await, (200, decision));
    let detail = refused(ask(1), 422, "idempotency-mismatch").await;
    assert!(detail.contains("quantity"), "{detail}");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_buyer_chooses_no_order_id() {
    let (stage, served) = with_secret("chosen").await;
    let named = json!({ "order_id": "o", "quantity": 1 });
    for scope in ["", "read", "floodgate:admin"] {
        let asked = served.post(ORDERS, &named).bearer_auth(token("me", scope));
        let detail = refused(asked, 422, "invalid-request").await;
        assert!(detail.contains("order_id") && detail.contains("floodgate:submit"), "{detail}");
    }
    // A client that acts for many buyers does, also for an operator who has that scope too.
    for (id, scope) in [("o-1", "floodgate:submit"), ("o-2", "floodgate:admin floodgate:submit")] {
        let order = |key: &str| {
            let asked = served.post(ORDERS, &wanted("buyer", 1)).header("idempotency-key", key);
            asked.bearer_auth(token("desk", scope))
        };
        let (status, accepted) = answer(order(id)).await;
        assert_eq!((status, order_id(&accepted)), (202, id), "{scope}");
        refused(order("a/b"), 400, "bad-header").await;
        refused(order(&"x".repeat(65)), 400, "bad-header").await;
    }
    // An operator's own order is like a buyer's.
    let operator = served.post(ORDERS, &json!({ "quantity": 1 })).header("idempotency-key", "o-1");
    let (status, accepted) = answer(operator.bearer_auth(token("desk", "floodgate:admin"))).await;
    assert_eq!(status, 202);
    assert!(order_id(&accepted).starts_with("k-"), "{accepted}");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn two_buyers_with_the_same_key_have_two_orders() {
    let (stage, served) = with_secret("same-key").await;
    let mut decisions = Vec::new();
    for buyer in ["one", "other"] {
        let (status, decision) =
            answer(keyed(&served, buyer, "k", 1).header("prefer", "wait=30")).await;
        assert_eq!((status, &decision["user_id"]), (200, &buyer.into()), "{decision}");
        assert_eq!(decision["outcome"], "created");
        assert_eq!(answer(keyed(&served, buyer, "k", 1)).await, (200, decision.clone()));
        decisions.push(decision);
    }
    assert_ne!(order_id(&decisions[0]), order_id(&decisions[1]));
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_buyer_neither_sees_nor_takes_nor_blocks_the_order_of_another() {
    let (stage, served) = with_secret("others").await;
    let (_, theirs) = answer(keyed(&served, "other", "k", 1).header("prefer", "wait=30")).await;
    let id = order_id(&theirs).to_owned();
    let show = |path: &str| served.get(path).bearer_auth(token("me", ""));
    let taken = refused(show(&format!("{ORDERS}/{id}")), 404, "unknown-order").await;
    let free = refused(show(&format!("{ORDERS}/k-{}", "0".repeat(32))), 404, "unknown-order").await;
    let unknown = refused(show(&format!("/v1/sales/t/orders/{id}")), 404, "unknown-order").await;
    let text = |detail: &str| detail.split_once(" is ").expect("a sentence").1.to_owned();
    assert_eq!(text(&taken), text(&free), "nothing tells a used id from a free one");
    assert_eq!(text(&taken), text(&unknown));
    // As a key it is a text like any other.
    let (status, mine) = answer(keyed(&served, "me", &id, 3).header("prefer", "wait=30")).await;
    assert_eq!((status, &mine["user_id"], &mine["quantity"]), (200, &"me".into(), &3.into()));
    assert_ne!(order_id(&mine), id);
    let again = keyed(&served, "other", "k", 1);
    assert_eq!(answer(again).await, (200, theirs), "it is as it was");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_buyers_key_is_bounded() {
    let (stage, served) = with_secret("keys").await;
    let long = "x".repeat(255);
    let mut ids = std::collections::HashSet::new();
    for good in ["a/b", "~!@#$%^&*()", r#""with_\"quotes\"_and_a_\\""#, long.as_str()] {
        let (status, body) = answer(keyed(&served, "me", good, 1)).await;
        assert_eq!(status, 202, "{good}: {body}");
        assert!(ids.insert(order_id(&body).to_owned()), "{good}");
    }
    for bad in ["\"\"", "a b", "é", "\"half", "\"a\"b", &"x".repeat(256)] {
        refused(keyed(&served, "me", bad, 1), 400, "bad-header").await;
    }
    served.stop().await;
    stage.remove().await;
}
