//! Sending events to a webhook again.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use utoipa::ToSchema;

use super::views::WebhookView;
use super::{change, must_exist, read};
use crate::api::Shared;
use crate::api::access::AsOperator;
use crate::api::contracts::problems::WebhookReplayProblems;
use crate::api::feed::unreadable;
use crate::api::problem::{Problem, ProblemType};
use crate::api::requests::{Id, Json};
use crate::broker::FeedError;
use crate::domain::event::FeedStart;
use crate::domain::order::SaleId;
use crate::operator_log::{Action, Operator};
use crate::webhooks::{Replay, Webhook, WebhookChange, WebhookId};

/// How long to wait for the first event since a time.
const FIRST_EVENT: Duration = Duration::from_secs(1);

/// What to send again: exactly one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ReplayRequest {
    /// All decisions of this sale, from the ledger
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
    sale_id: Option<String>,
    /// All events since this time that the feed keeps; RFC 3339
    #[schema(format = DateTime, value_type = Option<String>)]
    since: Option<DateTime<Utc>>,
}

/// Send events again
///
/// Under the ids that they had: the receiver leaves out what it has. They go to this webhook only.
#[utoipa::path(
    post, path = "/v1/webhooks/{webhook_id}/replay", tag = "Webhooks", operation_id = "replayWebhook",
    security(("bearerAuth" = [])),
    params(("webhook_id" = inline(crate::api::contracts::schemas::WebhookIdParam), Path, description = "The webhook")),
    request_body = ReplayRequest,
    responses((status = 202, description = "They will be sent", body = WebhookView), WebhookReplayProblems),
)]
pub(in crate::api) async fn replay(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<WebhookId>,
    Json(ReplayRequest { sale_id, since }): Json<ReplayRequest>,
) -> Result<(StatusCode, axum::Json<WebhookView>), Problem> {
    let sale_id = sale_id.map(SaleId::parse).transpose()?;
    if sale_id.is_some() == since.is_some() {
        return Err(ProblemType::Invalid.because("accepted: either sale_id or since"));
    }
    let replayed = match (sale_id, since) {
        (Some(sale), None) => replay_sale(&api, &by, id, sale).await?,
        (None, Some(time)) => replay_since(&api, &by, id, time).await?,
        _ => return Err(ProblemType::Invalid.because("accepted: either sale_id or since")),
    };
    Ok((StatusCode::ACCEPTED, axum::Json(WebhookView::of(&replayed))))
}

async fn replay_sale(
    api: &Shared,
    by: &Operator,
    id: WebhookId,
    sale: SaleId,
) -> Result<Webhook, Problem> {
    if must_exist(api, &sale).await?.archived {
        let detail = format!(
            "decisions of sale {sale} are in files; floodgate sale restore brings them back"
        );
        return Err(ProblemType::Archived.because(detail));
    }
    let what = (Action::WebhookReplayed, WebhookChange::Replay);
    let replayed = change(api, by, id, what, |webhook| {
        if webhook.sale_id.as_ref().is_some_and(|own| *own != sale) {
            let detail = format!("the webhook gets no events of sale {sale}");
            return Err(ProblemType::Invalid.because(detail));
        }
        if let Some(Replay { sale_id, .. }) =
            webhook.replay.as_ref().filter(|other| other.sale_id != sale)
        {
            let detail = format!("sale {sale_id} is being sent again");
            return Err(ProblemType::Replaying.because(detail));
        }
        webhook.replay = Some(Replay { sale_id: sale.clone(), after: None });
        Ok(())
    });
    replayed.await
}

async fn replay_since(
    api: &Shared,
    by: &Operator,
    id: WebhookId,
    time: DateTime<Utc>,
) -> Result<Webhook, Problem> {
    if time < DateTime::UNIX_EPOCH || time > Utc::now() {
        return Err(ProblemType::Invalid
            .because("since is not accepted; accepted: a time from 1970 to now"));
    }
    let Some(place) = place_at(api, time).await? else { return read(api, id).await };
    let what = (Action::WebhookReplayed, WebhookChange::Place);
    let replayed = change(api, by, id, what, |webhook| {
        // Never forward: what was not sent yet would be left out.
        webhook.start = match (webhook.start, place) {
            (FeedStart::Since(begun), _) => FeedStart::Since(begun.min(time)),
            (FeedStart::After(now), FeedStart::After(then)) => FeedStart::After(now.min(then)),
            _ => FeedStart::Oldest,
        };
        Ok(())
    });
    replayed.await
}

/// The place before what was published at `time` and later, if there is any.
async fn place_at(api: &Shared, time: DateTime<Utc>) -> Result<Option<FeedStart>, Problem> {
    let reader = api.broker.feed(FeedStart::Since(time)).await;
    let mut reader = reader.map_err(unreadable)?;
    match tokio::time::timeout(FIRST_EVENT, reader.next()).await {
        Err(_) => Ok(None),
        Ok(Ok(fed)) => {
            Ok(Some(fed.offset.checked_sub(1).map_or(FeedStart::Oldest, FeedStart::After)))
        }
        Ok(Err(FeedError::NotKept)) => Ok(Some(FeedStart::Oldest)),
        Ok(Err(error)) => Err(unreadable(error)),
    }
}
