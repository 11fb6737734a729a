//! Requests to endpoints.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response, StatusCode};

use crate::http;
use crate::webhooks::{Delivery, MAX_ANSWER_CHARS, Networks, Webhook, WebhookSettings, sign};

/// Of an event in structured mode, CloudEvents' HTTP binding.
const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";
/// The most bytes that are read of an answer.
const MAX_ANSWER_BYTES: usize = 4096;
/// Connections to one endpoint that are kept although nothing is sent.
const IDLE_CONNECTIONS: usize = 4;

/// Sends requests to endpoints, only where the settings allow it.
pub(super) struct Endpoint {
    with_tls: Client,
    without_tls: Client,
    networks: Networks,
}

/// What an endpoint has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its status, if there was an answer at all.
    pub status: Option<u16>,
    /// The beginning of its body, or why there was none.
    pub text: String,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl Answer {
    fn none(why: &str) -> Self {
        Self { status: None, text: shortened(why), retry_after: None }
    }

    /// Whether the event was accepted: with any status of success, as the specification says.
    pub(super) fn is_accepted(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether the endpoint wants no more requests, 410.
    pub(super) fn is_gone(&self) -> bool {
        self.status == Some(StatusCode::GONE.as_u16())
    }

    /// In a few words.
    pub(super) fn reason(&self) -> String {
        let (said, text) = (self.logged(), self.text.as_str());
        if self.status.is_none() || text.is_empty() {
            return said;
        }
        shortened(&format!("{said}: {text}"))
    }

    /// The same for logs: what an endpoint answers may have its URL, and that a token.
    pub(super) fn logged(&self) -> String {
        self.status.map_or_else(|| self.text.clone(), |status| format!("it answered {status}"))
    }
}

impl Endpoint {
    pub(super) fn new(settings: &WebhookSettings) -> Result<Self, reqwest::Error> {
        let client = |with_tls| {
            http::client()
                .timeout(settings.timeout)
                .connect_timeout(settings.timeout)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                // A proxy would look names up where nothing is checked.
                .no_proxy()
                .https_only(with_tls)
                .user_agent(concat!("floodgate/", env!("CARGO_PKG_VERSION")))
                .dns_resolver(Arc::new(Checked { networks: settings.networks(), with_tls }))
                .build()
        };
        let networks = settings.networks();
        Ok(Self { with_tls: client(true)?, without_tls: client(false)?, networks })
    }

    /// Sends the event of `delivery`, signed as of now, `now_s` seconds since 1970.
    pub(super) async fn post(&self, webhook: &Webhook, delivery: &Delivery, now_s: i64) -> Answer {
        let Webhook { target, secrets, .. } = webhook;
        if let Err(refused) = target.allowed_by(&self.networks) {
            return Answer::none(&refused.to_string());
        }
        let client = if target.has_tls() { &self.with_tls } else { &self.without_tls };
        let message_id = delivery.message_id();
        let signature = sign(secrets, &message_id, now_s, delivery.event.as_bytes());
        let sending = client
            .post(target.url().clone())
            .header("content-type", CONTENT_TYPE)
            .header("webhook-id", message_id)
            .header("webhook-timestamp", now_s.to_string())
            .header("webhook-signature", signature)
            .body(delivery.event.clone())
            .send();
        match sending.await {
            Ok(response) => read(response).await,
            Err(error) => Answer::none(&http::explain(error)),
        }
    }
}

/// What is needed of an answer.
async fn read(mut response: Response) -> Answer {
    let status = response.status();
    let retry_after = http::retry_after(response.headers());
    let mut body = Vec::new();
    // Whatever happens to the body, the status was there.
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            break;
        }
    }
    let text = shortened(&String::from_utf8_lossy(&body));
    Answer { status: Some(status.as_u16()), text, retry_after }
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_ANSWER_CHARS).collect::<String>().trim().to_owned()
}

/// Looks names up, and leaves out addresses to which no requests may go. What is connected to is what was checked.
struct Checked {
    networks: Networks,
    with_tls: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (networks, with_tls) = (self.networks.clone(), self.with_tls);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (mut allowed, mut refused) = (Vec::new(), None);
            for address in found {
                match networks.check(address.ip(), with_tls) {
                    Ok(()) => allowed.push(address),
                    Err(why) => refused = Some(why),
                }
            }
            match refused.filter(|_| allowed.is_empty()) {
                Some(why) => {
                    Err(Box::<dyn Error + Send + Sync>::from(format!("{} {why}", name.as_str())))
                }
                None => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}
