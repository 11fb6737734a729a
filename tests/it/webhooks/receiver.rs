//! An endpoint in this process, as a test wants it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;
use ring::hmac;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::api::client;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    accepted: bool,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).expect("a header")
    }

    /// Whether one of its signatures is by `secret`, as the specification has it.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let key =
            STANDARD.decode(secret.strip_prefix("whsec_").expect("a secret")).expect("base64");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let signed = format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp"));
        let signed = [signed.as_bytes(), &self.body].concat();
        self.header("webhook-signature").split(' ').any(|signature| {
            let signature = STANDARD.decode(signature.strip_prefix("v1,").expect("v1"));
            hmac::verify(&key, &signed, &signature.expect("base64")).is_ok()
        })
    }

    /// How many signatures it has.
    pub fn signatures(&self) -> usize {
        self.header("webhook-signature").split(' ').count()
    }

    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Sends it on, with another body, and gives the status of the answer.
    pub async fn send_to(&self, url: &str, body: Vec<u8>) -> StatusCode {
        let mut request = client().post(url).body(body);
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            request = request.header(name, self.header(name));
        }
        request.send().await.expect("an answer").status()
    }
}

#[derive(Default)]
struct Behaviour {
    requests: Vec<Request>,
    status: StatusCode,
    hangs: bool,
    takes: Duration,
}

/// Listens until it is dropped.
pub struct Receiver {
    url: String,
    behaviour: Arc<Mutex<Behaviour>>,
    _serving: AbortOnDropHandle<()>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url =
            format!("http://{}/events?token=hush", listener.local_addr().expect("an address"));
        let behaviour = Arc::<Mutex<Behaviour>>::default();
        let routes = Router::new().fallback(receive).with_state(behaviour.clone());
        let serving =
            tokio::spawn(async move { axum::serve(listener, routes).await.expect("serve") });
        Self { url, behaviour, _serving: AbortOnDropHandle::new(serving) }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn change(&self, how: impl FnOnce(&mut Behaviour)) {
        how(&mut self.behaviour.lock().expect("a lock"));
    }

    /// Answers with this status from now on.
    pub fn answer(&self, status: StatusCode) {
        self.change(|behaviour| (behaviour.status, behaviour.hangs) = (status, false));
    }

    /// Never answers.
    pub fn hang(&self) {
        self.change(|behaviour| behaviour.hangs = true);
    }

    /// Takes so long for each request.
    pub fn take(&self, time: Duration) {
        self.change(|behaviour| behaviour.takes = time);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.behaviour.lock().expect("a lock").requests.clone()
    }

    /// The ids of the events that it has accepted.
    pub fn ids(&self) -> HashSet<String> {
        let requests = self.requests();
        let accepted = requests.iter().filter(|request| request.accepted);
        accepted.map(|request| request.event()["id"].as_str().expect("an id").to_owned()).collect()
    }
}

async fn receive(
    State(behaviour): State<Arc<Mutex<Behaviour>>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let (hangs, takes) = {
        let behaviour = behaviour.lock().expect("a lock");
        (behaviour.hangs, behaviour.takes)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(takes).await;
    let mut behaviour = behaviour.lock().expect("a lock");
    let status = behaviour.status;
    let request = Request { headers, body: body.to_vec(), accepted: status.is_success() };
    behaviour.requests.push(request);
    (status, "as the test wants it")
}
