//! Webhooks: where subscribers without AMQP get events, by HTTP requests that are signed after the Standard Webhooks
//! specification, version 1.
//!
//! The ports: the ledger's database keeps the webhooks and what became of their deliveries. `floodgate webhooks`
//! sends, see [`crate::webhook_sender`].

mod delivery;
mod secret;
mod settings;
mod target;
mod webhook;

use async_trait::async_trait;

pub use delivery::{Delivery, DeliveryState, MAX_ANSWER_CHARS};
pub use secret::{Secret, sign};
pub use settings::WebhookSettings;
pub use target::{BadTarget, Networks, Target};
pub use webhook::{NoWebhookId, Replay, Status, Webhook, WebhookId};

/// Keeps webhooks, for those who register them.
#[async_trait]
pub trait Webhooks: Send + Sync {
    /// Registers a webhook, unless there is one with its id. Whether it is new.
    async fn register(&self, webhook: &Webhook) -> Result<bool, WebhookError>;

    /// The webhook with this id, or all, by id.
    async fn webhooks(&self, id: Option<WebhookId>) -> Result<Vec<Webhook>, WebhookError>;

    /// Stores what a request has changed, and nothing else of `webhook`. A sender that is at work on it begins anew.
    /// False: it was changed meanwhile, so it must be read again, or it is gone.
    async fn change(&self, webhook: &Webhook, change: WebhookChange) -> Result<bool, WebhookError>;

    /// Deletes a webhook with its deliveries. Whether it was there.
    async fn delete(&self, id: WebhookId) -> Result<bool, WebhookError>;

    /// The latest deliveries, newest first, at most `limit`; only those in `state` if one is given.
    async fn deliveries(
        &self,
        id: WebhookId,
        state: Option<DeliveryState>,
        limit: u32,
    ) -> Result<Vec<Delivery>, WebhookError>;
}

/// Keeps what a sender does. Each webhook has one sender at a time, which holds a claim on it.
#[async_trait]
pub trait WebhookQueue: Send + Sync {
    /// Claims the webhooks that no other sender has, and prolongs the claims that `sender` has. Returns all webhooks, by id.
    async fn claim(
        &self,
        sender: &str,
        until_ms: i64,
        now_ms: i64,
    ) -> Result<Vec<Webhook>, WebhookError>;

    /// Gives up every claim of `sender`.
    async fn release(&self, sender: &str) -> Result<(), WebhookError>;

    /// Deliveries of a webhook that are to be tried again by now, the earliest first, at most `limit`.
    async fn due(
        &self,
        id: WebhookId,
        now_ms: i64,
        limit: u32,
    ) -> Result<Vec<Delivery>, WebhookError>;

    /// Stores the results of deliveries and the webhook's place together, and says how many deliveries wait now.
    /// `None`, and nothing is stored, if `sender` has no claim on it any more, or it was changed.
    async fn record(&self, sender: &str, round: Round<'_>) -> Result<Option<u64>, WebhookError>;

    /// Forgets deliveries that are over, but for the latest `keep` that were delivered and as many that were given up.
    async fn forget(&self, id: WebhookId, keep: u32) -> Result<(), WebhookError>;
}

/// What a sender has done for a webhook.
#[derive(Debug, Clone, Copy)]
pub struct Round<'a> {
    /// The webhook, as it is now.
    pub webhook: &'a Webhook,
    /// The results of deliveries.
    pub deliveries: &'a [Delivery],
    /// Deliveries that were last tried before this time, in milliseconds since 1970, and failed for want of an answer
    /// or with a server's error, are tried again at once.
    pub retry_before_ms: Option<i64>,
}

/// What a request changes of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookChange {
    /// Its secrets.
    Secrets,
    /// Whether it is disabled or fails. All that waits is tried again at once, as if for the first time.
    Enabled,
    /// Where in the feed to go on.
    Place,
    /// The sale that is sent again.
    Replay,
}

/// Webhooks could not be read or written. Whether anything was written is unknown.
#[derive(Debug, thiserror::Error)]
#[error("webhooks: {0}")]
pub struct WebhookError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl WebhookError {
    /// An error because of `source`.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}
