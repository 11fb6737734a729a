//! Webhooks and deliveries as they are shown.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;
use crate::webhooks::{Delivery, DeliveryState, Status, Webhook, WebhookId};

/// A webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(in crate::api) struct WebhookView {
    #[schema(value_type = String, pattern = "^wh-[0-9a-f]{32}$")]
    webhook_id: WebhookId,
    url: String,
    /// The sale whose events it gets; null: all
    #[schema(required, value_type = Option<String>)]
    sale_id: Option<SaleId>,
    #[schema(value_type = crate::api::contracts::schemas::WebhookStateName, inline)]
    state: &'static str,
    /// Why it fails, or is disabled
    #[schema(required)]
    reason: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    /// Since when no request was accepted
    #[schema(format = DateTime, required)]
    failing_since: Option<String>,
    /// Since when nothing is sent any more
    #[schema(format = DateTime, required)]
    disabled_at: Option<String>,
    /// When events were last found to be removed from the feed before they were sent. Replay the sales of the time
    /// before
    #[schema(format = DateTime, required)]
    missed_at: Option<String>,
    /// Deliveries that are tried again
    waiting: u64,
    /// Deliveries that were given up, as far as they are kept
    given_up: u64,
    /// The sale that is being sent again
    #[schema(required, value_type = Option<String>)]
    replaying: Option<SaleId>,
}

impl WebhookView {
    pub(super) fn of(webhook: &Webhook) -> Self {
        let Status { failing_since, disabled_at, reason, missed_at, waiting, given_up } =
            &webhook.status;
        let time = |time: &Option<DateTime<Utc>>| time.map(rfc3339);
        Self {
            webhook_id: webhook.id,
            url: webhook.target.url().to_string(),
            sale_id: webhook.sale_id.clone(),
            state: webhook.status.name(),
            reason: reason.clone(),
            created_at: rfc3339(webhook.created_at),
            failing_since: time(failing_since),
            disabled_at: time(disabled_at),
            missed_at: time(missed_at),
            waiting: *waiting,
            given_up: *given_up,
            replaying: webhook.replay.as_ref().map(|replay| replay.sale_id.clone()),
        }
    }
}

/// A secret. It is shown once.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct SecretView {
    /// What requests are signed with: give it to the receiver
    #[schema(pattern = "^whsec_[A-Za-z0-9+/]+=*$")]
    pub(super) secret: String,
    /// Until when requests are signed with the one before too
    #[schema(format = DateTime)]
    pub(super) old_until: String,
}

/// A webhook that was just registered, with its secret, which is shown only now.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct RegisteredView {
    #[serde(flatten)]
    pub(super) webhook: WebhookView,
    /// What requests are signed with; missing if the webhook was registered before
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = String, pattern = "^whsec_[A-Za-z0-9+/]+=*$")]
    pub(super) secret: Option<String>,
}

/// A delivery.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookDelivery)]
pub(in crate::api) struct DeliveryView {
    event_id: String,
    event_type: String,
    /// The header `webhook-id` of its requests
    message_id: String,
    #[schema(value_type = crate::api::contracts::schemas::DeliveryStateName, inline)]
    state: DeliveryState,
    /// How often it was tried
    attempts: u32,
    #[schema(format = DateTime)]
    first_at: String,
    #[schema(format = DateTime)]
    last_at: String,
    /// When it is tried again
    #[schema(format = DateTime, required)]
    next_at: Option<String>,
    /// The status of the last answer; null: there was none
    #[schema(required)]
    status: Option<u16>,
    /// The beginning of the last answer, or why there was none
    answer: String,
}

impl DeliveryView {
    pub(super) fn of(delivery: Delivery) -> Self {
        let time = |ms| DateTime::from_timestamp_millis(ms).map_or_else(String::new, rfc3339);
        let message_id = delivery.message_id();
        let Delivery {
            event_id,
            event_type,
            state,
            attempts,
            first_ms,
            last_ms,
            next_ms,
            status,
            answer,
            ..
        } = delivery;
        let (first_at, last_at, next_at) = (time(first_ms), time(last_ms), next_ms.map(time));
        Self {
            event_id,
            event_type,
            message_id,
            state,
            attempts,
            first_at,
            last_at,
            next_at,
            status,
            answer,
        }
    }
}
