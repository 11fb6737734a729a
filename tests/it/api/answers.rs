//! What answers say besides their body: where a problem is explained, which request it was, what is left of
//! a rate, and whether anything has changed.

use reqwest::Response;
use serde_json::json;

use super::raw::{Raw, head};
use super::{header, stage, stage_with, wanted};
use crate::harness::api::{Served, answer, json as body};
use crate::harness::process::{bare_floodgate, free_port};
use crate::harness::sale;

const ORDERS: &str = "/v1/sales/s/orders";

async fn sent(request: reqwest::RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

#[tokio::test]
async fn the_type_of_a_problem_is_the_address_of_its_page() {
    let stage = stage("types").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let problem = body(sent(served.get("/v1/sales/never")).await).await;
    let kind = problem["type"].as_str().expect("a type");
    assert_eq!(kind, format!("{}/problems/unknown-sale", served.url()));
    let page = sent(served.get("/problems/unknown-sale")).await;
    assert_eq!(header(&page, "content-type"), Some("text/html; charset=utf-8"));
    assert!(page.text().await.expect("a page").contains("There is no such sale"));
    assert_eq!(sent(served.get("/problems/nothing")).await.status(), 404);
    served.stop().await;
    stage.remove().await;

    let public = stage_with("public", "[api]\npublic_url = \"https://shop.example/orders/\"").await;
    let served = Served::without_worker(&public.deployment.app).await;
    let problem = body(sent(served.get("/nothing")).await).await;
    assert_eq!(problem["type"], "https://shop.example/orders/problems/not-found");
    served.stop().await;
    public.remove().await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_with_a_problem_too() {
    let stage = stage("bare").await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let big = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(100));
    let after_another = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nnonsense\r\n\r\n";
    for (bytes, kind) in [
        ("nonsense\r\n\r\n", "400 bad-request"),
        ("GET / HTTP/1.1\r\nHost localhost\r\n\r\n", "400 bad-request"),
        (after_another, "400 bad-request"),
        (big.as_str(), "431 head-too-large"),
        (many.as_str(), "431 head-too-large"),
        // Ten seconds later.
        ("GET / HTTP/1.1\r\nHost: loc", "408 timeout"),
    ] {
        let mut raw = Raw::open(&served).await;
        raw.send(bytes).await;
        let (_, text) = raw.answer().await;
        let last = text.rsplit("HTTP/1.1 ").next().expect("an answer");
        let (head, problem) = last.split_once("\r\n\r\n").expect("a body");
        let problem: serde_json::Value = serde_json::from_str(problem).expect("JSON");
        let (status, slug) = kind.split_once(' ').expect("two words");
        assert!(head.starts_with(status), "{text}");
        assert!(
            head.contains("application/problem+json") && head.contains("x-request-id"),
            "{head}"
        );
        let expected = format!("{}/problems/{slug}", served.url());
        assert_eq!(
            (&problem["type"], problem["status"].to_string()),
            (&json!(expected), status.into())
        );
    }
    // A client that sends nothing is not spoken to.
    let (status, text) = Raw::open(&served).await.answer().await;
    assert_eq!((status, text.as_str()), (0, ""));
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let stage = stage("request-id").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let id = async |given: Option<&str>, path: &str| {
        let request =
            given.into_iter().fold(served.get(path), |r, id| r.header("x-request-id", id));
        let response = sent(request).await;
        header(&response, "x-request-id").expect("an id").to_owned()
    };
    for path in ["/", "/v1/sales/s", "/v1/sales/never", "/livez", "/v1/sales/s/stream"] {
        assert_eq!(id(Some("abc-1.2:3"), path).await, "abc-1.2:3", "{path}");
        assert_ne!(id(None, path).await, id(None, path).await, "{path}");
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert_eq!(id(Some(bad), path).await.len(), 36, "{path} {bad}");
        }
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_buyer_is_told_what_is_left_of_its_rate() {
    let stage = stage_with("ratelimit", "[api]\nbuyer_orders_per_s = 1\nbuyer_burst = 3").await;
    stage.open(sale("s", 100)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let mut left = Vec::new();
    for _ in 0..4 {
        let response = sent(served.post(ORDERS, &wanted("u", 1))).await;
        assert_eq!(header(&response, "ratelimit-policy"), Some("\"buyer\";q=3;w=3"));
        left.push((response.status().as_u16(), header(&response, "ratelimit").map(str::to_owned)));
    }
    assert_eq!(left[0], (202, Some("\"buyer\";r=2;t=1".into())));
    // A slow machine may have given one back meanwhile.
    let last = left.iter().find(|(status, _)| *status == 429).unwrap_or(&left[3]);
    assert!(last.1.as_ref().is_some_and(|left| left.starts_with("\"buyer\";r=")), "{left:?}");
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let stage = stage("etag").await;
    stage.open(sale("s", 10)).await;
    let served = Served::up(&stage.deployment.app).await;
    let order = json!({ "order_id": "o", "user_id": "u", "quantity": 1 });
    assert_eq!(answer(served.post(ORDERS, &order).header("prefer", "wait=30")).await.0, 200);
    for path in ["/v1/sales/s", "/v1/sales/s/orders/o"] {
        let first = sent(served.get(path)).await;
        let tag = header(&first, "etag").expect("a tag").to_owned();
        let again = sent(served.get(path).header("if-none-match", &tag)).await;
        assert_eq!((again.status().as_u16(), header(&again, "etag")), (304, Some(tag.as_str())));
        assert_eq!(again.text().await.expect("nothing"), "");
    }
    let tag = header(&sent(served.get("/v1/sales/s")).await, "etag").expect("a tag").to_owned();
    answer(served.post("/v1/sales/s/close", &json!(null))).await;
    let changed = sent(served.get("/v1/sales/s").header("if-none-match", &tag)).await;
    assert_eq!(changed.status(), 200);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_order_that_waits_is_told_from_one_that_was_never_seen() {
    let stage = stage("seen").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let order = json!({ "order_id": "o", "user_id": "u", "quantity": 1 });
    assert_eq!(answer(served.post(ORDERS, &order)).await.0, 202);
    super::refused(served.get(&format!("{ORDERS}/o")), 404, "not-decided").await;
    super::refused(served.get(&format!("{ORDERS}/p")), 404, "unknown-order").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn pages_of_the_sites_that_are_named_may_use_the_api() {
    let stage = stage_with("cors", "[api]\ncors_origins = [\"https://shop.example\"]").await;
    stage.open(sale("s", 10)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let mut ask = Raw::open(&served).await;
    let preflight = head(0).replace("POST", "OPTIONS").replace(
        "Content-Type: application/json",
        "Origin: https://shop.example\r\n\
            Access-Control-Request-Method: POST\r\n\
            Access-Control-Request-Headers: content-type,idempotency-key",
    );
    ask.send(preflight).await;
    let (status, text) = ask.answer().await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("access-control-allow-origin: https://shop.example"), "{text}");
    assert!(text.contains("idempotency-key"), "{text}");
    let order = |origin: &str| served.post(ORDERS, &wanted("u", 1)).header("origin", origin);
    let response = sent(order("https://shop.example")).await;
    assert_eq!(response.status(), 202);
    let allowed = header(&response, "access-control-allow-origin");
    assert_eq!(allowed, Some("https://shop.example"));
    let exposed = header(&response, "access-control-expose-headers").expect("headers");
    assert!(exposed.contains("location") && exposed.contains("x-request-id"), "{exposed}");
    let other = sent(order("https://evil.example")).await;
    assert_eq!(
        (other.status().as_u16(), header(&other, "access-control-allow-origin")),
        (403, None)
    );
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn what_is_logged_of_a_request_names_it_and_its_client() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut command = bare_floodgate(&["up"]);
    let address = format!("127.0.0.1:{}", free_port());
    let mut child = command
        .env("FLOODGATE_EMBEDDED__FILE", folder.path().join("floodgate.db"))
        .env("FLOODGATE_API__LISTEN", &address)
        .env("FLOODGATE_API__TRUSTED_PROXIES", "127.0.0.0/8, ::1")
        .stderr(std::fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("floodgate starts");
    let client = crate::harness::api::client();
    // Users are to be checked, and nobody does it: that is worth a line.
    let sale = json!({ "sale_id": "s", "stock": 1, "verification": true });
    super::until("a sale opened", async || {
        let open = client.post(format!("http://{address}/v1/sales")).json(&sale);
        let open = open.header("x-request-id", "trace-me").header("x-forwarded-for", "192.0.2.7");
        open.send().await.is_ok_and(|answer| answer.status() == 201)
    })
    .await;
    child.kill().expect("kill");
    child.wait().expect("wait");
    let log = std::fs::read_to_string(log).expect("a log");
    let line = log.lines().find(|line| line.contains("users are to be checked")).expect("a line");
    assert!(line.contains("trace-me") && line.contains("192.0.2.7"), "{line}");
}
