//! Rows of webhooks and of their deliveries.

use chrono::{DateTime, Utc};

use crate::domain::event::FeedStart;
use crate::domain::order::{OrderId, SaleId};
use crate::ledger::row::row;
use crate::webhooks::{
    Delivery, DeliveryState, Replay, Secret, Status, Target, Webhook, WebhookId,
};

row! {
    /// A row of `webhooks`, with how many of its deliveries wait or were given up.
    pub(super) struct WebhookRow {
        webhook_id: WebhookId as String,
        url: String,
        sale_id: Option<String>,
        secrets: String,
        created_at: DateTime<Utc>,
        after_place: Option<i64>,
        since: Option<DateTime<Utc>>,
        replay_sale_id: Option<String>,
        replay_after: Option<String>,
        failing_since: Option<DateTime<Utc>>,
        disabled_at: Option<DateTime<Utc>>,
        reason: Option<String>,
        missed_at: Option<DateTime<Utc>>,
        revision: i32,
        claimed_by: Option<String>,
        waiting: u64 as i64,
        given_up: u64 as i64,
    }
}

row! {
    /// A row of `webhook_deliveries`.
    pub(super) struct DeliveryRow {
        event_id: String,
        event_type: String,
        event: String,
        state: String,
        attempts: u32 as i32,
        first_ms: i64,
        last_ms: i64,
        next_ms: Option<i64>,
        status: Option<i32>,
        answer: String,
    }
}

/// A value in the database that this version cannot have written.
fn unexpected(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

impl TryFrom<WebhookRow> for Webhook {
    type Error = sqlx::Error;

    fn try_from(row: WebhookRow) -> Result<Self, sqlx::Error> {
        let sale = |id: Option<String>| id.map(SaleId::parse).transpose().map_err(unexpected);
        let start = match (row.after_place, row.since) {
            (Some(place), _) => FeedStart::After(place.cast_unsigned()),
            (None, Some(time)) => FeedStart::Since(time),
            (None, None) => FeedStart::Oldest,
        };
        let after = row.replay_after.map(OrderId::parse).transpose().map_err(unexpected)?;
        let replay = sale(row.replay_sale_id)?.map(|sale_id| Replay { sale_id, after });
        let status = Status {
            failing_since: row.failing_since,
            disabled_at: row.disabled_at,
            reason: row.reason,
            missed_at: row.missed_at,
            waiting: row.waiting,
            given_up: row.given_up,
        };
        Ok(Self {
            id: row.webhook_id,
            target: Target::stored(&row.url).map_err(unexpected)?,
            sale_id: sale(row.sale_id)?,
            secrets: Secret::from_text(&row.secrets).map_err(unexpected)?,
            created_at: row.created_at,
            start,
            replay,
            status,
            revision: row.revision,
            claimed_by: row.claimed_by,
        })
    }
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = sqlx::Error;

    fn try_from(row: DeliveryRow) -> Result<Self, sqlx::Error> {
        let state = DeliveryState::named(&row.state);
        let DeliveryRow {
            event_id,
            event_type,
            event,
            attempts,
            first_ms,
            last_ms,
            next_ms,
            answer,
            ..
        } = row;
        Ok(Self {
            event_id,
            event_type,
            event,
            state: state
                .ok_or_else(|| sqlx::Error::Decode("a delivery's state is not known".into()))?,
            attempts,
            first_ms,
            last_ms,
            next_ms,
            status: row.status.and_then(|status| u16::try_from(status).ok()),
            answer,
        })
    }
}
