//! Keys that an identity provider publishes, and changes.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tokens::claims;
use super::{refused, until, wanted};
use crate::harness::api::{answer, client, problem};
use crate::harness::issuer::{IssuingKey, JwksServer, jwks};
use crate::harness::process::{bare_floodgate, free_port};

const ADMIN: &str = "floodgate:admin";

/// An embedded `floodgate up` in a temporary folder; killed when dropped.
pub(super) struct Up {
    child: Child,
    client: Client,
    url: String,
    folder: TempDir,
}

impl Up {
    /// Starts it with these settings, and waits until it answers.
    pub(super) async fn start(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = File::create(folder.path().join("log")).expect("a log");
        let port = free_port();
        let child = bare_floodgate(&["up"])
            .env("FLOODGATE_EMBEDDED__FILE", folder.path().join("floodgate.db"))
            .env("FLOODGATE_API__LISTEN", format!("127.0.0.1:{port}"))
            .envs(variables.iter().copied())
            .stderr(Stdio::from(log))
            .spawn()
            .expect("floodgate starts");
        let up = Self { child, client: client(), url: format!("http://127.0.0.1:{port}"), folder };
        until("floodgate answers", async || up.get("/livez").send().await.is_ok()).await;
        up
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    /// What it answers to a question that needs a token: 404 if the token is good.
    pub(super) async fn status(&self, token: &str) -> u16 {
        let asked = self.get("/v1/sales/s/orders/none").bearer_auth(token).send().await;
        asked.expect("an answer").status().as_u16()
    }

    async fn until_it_takes(&self, token: &str) {
        until("the token is taken", async || self.status(token).await == 404).await;
    }

    /// The token must be refused, with `hint` in the challenge.
    pub(super) async fn refuses(&self, token: &str, hint: &str) {
        let asked = || self.get("/v1/sales/s/orders/none").bearer_auth(token);
        let detail = refused(asked(), 401, "unauthorized").await;
        assert!(detail.contains(hint), "{detail}");
    }

    /// How many lines of its log hold `text`.
    fn lines(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("log")).expect("a log");
        log.lines().filter(|line| line.contains(text)).count()
    }

    async fn until_the_log_has(&self, count: usize, text: &str) {
        until(&format!("{count} of {text}"), async || self.lines(text) >= count).await;
    }

    /// Opens a sale and buys from it.
    pub(super) async fn sell(&self, sale: &str, operator: &str, buyer: &str) {
        let open = self.post("/v1/sales", &json!({ "sale_id": sale, "stock": 10 }));
        assert_eq!(answer(open.bearer_auth(operator)).await.0, 201);
        let order = self.post(&format!("/v1/sales/{sale}/orders"), &wanted("ada", 1));
        let (status, decision) = answer(order.bearer_auth(buyer).header("prefer", "wait=30")).await;
        assert_eq!((status, &decision["outcome"]), (200, &"created".into()), "{decision}");
        let restock = self.post(&format!("/v1/sales/{sale}/close"), &json!(null));
        refused(restock.bearer_auth(buyer), 403, "forbidden").await;
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has `link` lead to `to` from one moment to the next, as Kubernetes does with what it mounts.
fn lead(link: &Path, to: &Path) {
    let next = link.with_extension("next");
    symlink(to, &next).expect("a link");
    std::fs::rename(next, link).expect("another link");
}

#[tokio::test]
async fn keys_in_a_file_that_is_replaced_are_followed() {
    let (old, new) = (IssuingKey::rsa("old"), IssuingKey::ec("new"));
    let folder = tempfile::tempdir().expect("a folder");
    let version = |name: &str, text: &str| {
        let version = folder.path().join(name);
        std::fs::create_dir(&version).expect("a folder");
        std::fs::write(version.join("jwks.json"), text).expect("written");
        version
    };
    let data = folder.path().join("data");
    lead(&data, &version("1", &jwks(&[&old])));
    let file = data.join("jwks.json");
    let up = Up::start(&[("FLOODGATE_API__JWT_JWKS", file.to_str().expect("UTF-8"))]).await;
    until("ready", async || up.get("/readyz").send().await.expect("an answer").status() == 200)
        .await;
    let token = |key: &IssuingKey| key.token(&claims("ada", ""));
    up.sell("a", &old.token(&claims("desk", ADMIN)), &token(&old)).await;
    up.refuses(&token(&new), "kid").await;

    lead(&data, &version("2", &jwks(&[&new])));
    up.until_it_takes(&token(&new)).await;
    up.refuses(&token(&old), "kid").await;
    up.sell("b", &new.token(&claims("desk", ADMIN)), &token(&new)).await;

    // What can't be read changes nothing.
    lead(&data, &version("3", "{\"keys\":["));
    up.until_the_log_has(1, "unavailable;").await;
    lead(&data, Path::new("nowhere"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((up.status(&token(&new)).await, up.status(&token(&old)).await), (404, 401));
    assert_eq!(up.get("/readyz").send().await.expect("an answer").status(), 200);
    lead(&data, &version("4", &jwks(&[&old, &new])));
    up.until_it_takes(&token(&old)).await;
    up.until_it_takes(&token(&new)).await;
    up.until_the_log_has(1, "available again").await;
    assert_eq!((up.lines("unavailable;"), up.lines("available again")), (1, 1));
    assert_eq!((up.lines("WARN") - 1, up.lines("ERROR")), (1, 0), "one says it runs embedded");
}

#[tokio::test]
async fn keys_at_a_url_are_followed_through_an_outage() {
    let (old, new) = (IssuingKey::rsa("old"), IssuingKey::ed25519("new"));
    let token = |key: &IssuingKey| key.token(&claims("ada", ""));
    let issuer = JwksServer::start().await;
    let up = Up::start(&[
        ("FLOODGATE_API__JWT_JWKS", issuer.url.as_str()),
        ("FLOODGATE_API__JWT_JWKS_REFRESH_S", "1"),
        // Whatever the environment says, nothing in plain text leaves this machine.
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("http_proxy", "http://127.0.0.1:1"),
    ])
    .await;
    let asking = || up.get("/v1/sales/s/orders/none").bearer_auth(token(&old));
    refused(asking(), 503, "keys-unavailable").await;
    until("only the keys are missing", async || {
        let (status, body) = answer(up.get("/readyz")).await;
        (status, problem(&body)) == (503, "keys-unavailable")
    })
    .await;
    // What is wrong with a token whatever the keys are is said at once, and what needs none is answered.
    up.refuses("x", "three parts").await;
    assert_eq!(up.get("/v1/sales").send().await.expect("an answer").status(), 200);
    up.until_the_log_has(1, "unavailable;").await;

    issuer.publish(&jwks(&[&old]));
    up.until_it_takes(&token(&old)).await;
    until("ready", async || up.get("/readyz").send().await.expect("an answer").status() == 200)
        .await;
    up.until_the_log_has(1, "available again").await;
    up.sell("a", &old.token(&claims("desk", ADMIN)), &token(&old)).await;
    issuer.publish(&jwks(&[&new]));
    up.until_it_takes(&token(&new)).await;
    up.refuses(&token(&old), "kid").await;

    let elsewhere = JwksServer::start().await;
    elsewhere.publish(&jwks(&[&old]));
    let huge = format!("{}{}", jwks(&[&old]), " ".repeat(256 * 1024));
    let redirect =
        format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url);
    let refusal = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec();
    let wrong = [Some(Vec::new()), Some(refusal), Some(redirect.into_bytes()), None];
    let nothing = [huge, jwks(&[]), "[]".to_owned()];
    let acts = wrong.map(Err).into_iter().chain(nothing.map(Ok));
    for act in acts {
        match &act {
            Ok(body) => issuer.publish(body),
            Err(raw) => issuer.answer_with(raw.clone()),
        }
        let before = issuer.asked();
        until("it is asked twice", async || issuer.asked() >= before + 2).await;
        assert_eq!((up.status(&token(&new)).await, up.status(&token(&old)).await), (404, 401));
    }
    assert_eq!(elsewhere.asked(), 0, "a redirect is not followed");
    assert_eq!(up.get("/readyz").send().await.expect("an answer").status(), 200);
    issuer.publish(&jwks(&[&old, &new]));
    up.until_it_takes(&token(&old)).await;
    up.until_the_log_has(2, "available again").await;
    assert_eq!((up.lines("unavailable;"), up.lines("available again")), (2, 2));
    assert_eq!((up.lines("WARN") - 1, up.lines("ERROR")), (2, 0), "one says it runs embedded");
}

#[tokio::test]
async fn tokens_with_unknown_keys_do_not_have_the_url_asked_often() {
    let (old, new) = (IssuingKey::ec("old"), IssuingKey::ec("new"));
    let token = |key: &IssuingKey| key.token(&claims("ada", ""));
    let issuer = JwksServer::start().await;
    issuer.publish(&jwks(&[&old]));
    let started = Instant::now();
    let up = Up::start(&[("FLOODGATE_API__JWT_JWKS", issuer.url.as_str())]).await;
    up.until_it_takes(&token(&old)).await;
    assert_eq!(issuer.asked(), 1);
    let unknown = IssuingKey::ec("unknown");
    let bounded = || {
        let most = 1 + usize::try_from(started.elapsed().as_secs() / 10).expect("small");
        assert!(issuer.asked() <= most, "asked {} times, at most {most}", issuer.asked());
    };
    let flood = async |seconds| {
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            let asked = Instant::now();
            up.refuses(&token(&unknown), "kid").await;
            assert!(asked.elapsed() < Duration::from_secs(2), "it does not wait for the keys");
            assert_eq!(up.status(&token(&old)).await, 404);
            bounded();
        }
    };
    flood(3).await;
    // The keys are changed long before they are due to be read: a token that names the new one is enough.
    issuer.publish(&jwks(&[&old, &new]));
    up.until_it_takes(&token(&new)).await;
    assert!(started.elapsed() < Duration::from_secs(30), "well within api.jwt_jwks_refresh_s");
    bounded();
    flood(12).await;
    assert!(issuer.asked() >= 3, "it is asked again as long as unknown keys are named");
}
