//! The HTTP API, as its clients see it.

mod admission;
mod answers;
mod batch;
mod faults;
mod identity;
mod keys;
mod limits;
mod orders;
mod pause;
mod raw;
mod refusals;
mod sales;
mod sold_out;
mod streams;
mod token_command;
pub mod tokens;

use std::io::Write;
use std::time::Duration;

use floodgate::config::Settings;
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::harness::api::{Served, on_free_port, problem};
use crate::harness::{PATIENCE, Stage};

async fn stage(what: &str) -> Stage {
    Stage::with(what, on_free_port).await
}

/// A stage whose settings are also those of `toml`, for those that code can't change.
async fn stage_with(what: &str, toml: &str) -> Stage {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a file");
    file.write_all(toml.as_bytes()).expect("write");
    Stage::with(what, |settings| {
        *settings = Settings::load(Some(file.path())).expect("settings");
        on_free_port(settings);
    })
    .await
}

/// An order of `quantity` units, without an id.
fn wanted(user: &str, quantity: i64) -> Value {
    json!({ "user_id": user, "quantity": quantity })
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().expect("ASCII"))
}

/// The answer must be a problem of this kind, whole and with the headers that go with it. Gives the
/// detail.
async fn refused(request: RequestBuilder, status: u16, kind: &str) -> String {
    let response = request.send().await.expect("an answer");
    let path = response.url().path().to_owned();
    let retry_after = header(&response, "retry-after").map(|s| s.parse::<u32>().expect("seconds"));
    let content_type = header(&response, "content-type").map(str::to_owned);
    let got = response.status().as_u16();
    let text = response.text().await.expect("a body");
    assert_eq!(got, status, "{path}: {text}");
    assert_eq!(content_type.as_deref(), Some("application/problem+json"), "{path}: {text}");
    let body: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(problem(&body), kind, "{body}");
    assert_eq!(body["status"], status);
    assert_eq!(body["instance"], path.as_str());
    assert!(body["title"].as_str().is_some_and(|title| !title.is_empty()), "{body}");
    if matches!(status, 429 | 503) {
        assert!(retry_after.is_some_and(|seconds| seconds >= 1), "{kind} has no Retry-After");
    }
    body["detail"].as_str().expect("a detail").to_owned()
}

/// Waits until `done`.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Posts orders of one unit, each of another buyer, until one gets `status`.
async fn order_until(served: &Served, sale: &str, status: u16) {
    let mut n = 0;
    until(&format!("{status} of an order for {sale}"), async || {
        n += 1;
        let body = wanted(&format!("until-{status}-{n}"), 1);
        let sent = served.post(&format!("/v1/sales/{sale}/orders"), &body).send().await;
        sent.expect("an answer").status().as_u16() == status
    })
    .await;
}
