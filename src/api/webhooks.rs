//! Webhooks, for operators: where events are sent to by HTTP requests.

pub(super) mod replays;
mod views;

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Shared;
use super::access::AsOperator;
use super::contracts::problems::{WebhookListProblems, WebhookProblems, WebhookRegisterProblems};
use super::problem::{Problem, ProblemType};
use super::requests::{Id, Json};
use super::sales::unknown;
use crate::domain::event::{FeedStart, rfc3339};
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;
use crate::operator_log::{Action, Entry, Operator};
use crate::webhooks::{
    DeliveryState, Secret, Status, Target, Webhook, WebhookChange, WebhookError, WebhookId,
};
use views::{DeliveryView, RegisteredView, SecretView, WebhookView};

/// The most webhooks of a deployment: each is read for by its sender.
const MAX_WEBHOOKS: usize = 100;
/// How often a change is tried while others change the same webhook.
const TRIES: usize = 5;
/// A webhook begins with what was published so long before: RabbitMQ may have another clock.
const CLOCKS_DIFFER: Duration = Duration::from_secs(10);
/// Deliveries in one answer, if nothing else is asked for, and at most.
const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// A webhook to be registered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterRequest {
    /// Where events are sent to. It may hold a token; it is shown to operators only, and not logged
    #[schema(max_length = 2048, example = "https://shop.example/events")]
    url: String,
    /// Only events of this sale and its orders; all if left out
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
    sale_id: Option<String>,
}

/// Register a webhook
///
/// Events that are published from now on, and those of the last 10 s, are sent to it, each at least once, as POST requests that are signed after the
/// Standard Webhooks specification; a process of `floodgate webhooks` sends them. Registering the same URL for the same
/// sale again changes nothing, and shows no secret: make another one.
#[utoipa::path(
    post, path = "/v1/webhooks", tag = "Webhooks", operation_id = "registerWebhook",
    security(("bearerAuth" = [])), request_body = RegisterRequest,
    responses(
        (status = 201, description = "Registered", body = RegisteredView, headers(("Location" = String, description = "Where the webhook is"))),
        (status = 200, description = "It was registered before", body = RegisteredView),
        WebhookRegisterProblems,
    ),
)]
pub(super) async fn register(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Json(RegisterRequest { url, sale_id }): Json<RegisterRequest>,
) -> Result<Response, Problem> {
    if !api.webhooks.has_feed {
        return Err(ProblemType::NoFeed
            .because("webhooks are sent from the feed, and feed.enabled is false"));
    }
    let sale_id = sale_id.map(SaleId::parse).transpose()?;
    let target = Target::parse(&url, &api.webhooks.settings.networks());
    let target = target.map_err(|bad| ProblemType::Invalid.because(bad.to_string()))?;
    if let Some(sale) = &sale_id {
        must_exist(&api, sale).await?;
    }
    let id = WebhookId::of(&target, sale_id.as_ref());
    let all = api.webhooks.store.webhooks(None).await?;
    if let Some(known) = all.iter().find(|webhook| webhook.id == id) {
        let registered = RegisteredView { webhook: WebhookView::of(known), secret: None };
        return Ok(axum::Json(registered).into_response());
    }
    if all.len() >= MAX_WEBHOOKS {
        let detail = format!("there are {} webhooks; accepted: up to {MAX_WEBHOOKS}", all.len());
        return Err(ProblemType::Invalid.because(detail));
    }
    let (now, secret) = (Utc::now(), Secret::new());
    let start = FeedStart::Since(now - TimeDelta::from_std(CLOCKS_DIFFER).unwrap_or_default());
    let webhook = Webhook {
        id,
        target,
        sale_id,
        secrets: vec![secret.clone()],
        created_at: now,
        start,
        replay: None,
        status: Status::default(),
        // Another one than of one with its id that was deleted just now, so that its sender notices.
        revision: i32::try_from(now.timestamp_subsec_nanos()).unwrap_or_default(),
        claimed_by: None,
    };
    let is_new = api.webhooks.store.register(&webhook).await?;
    if is_new {
        note(&api, &by, Action::WebhookRegistered, &webhook).await;
    }
    let secret = is_new.then(|| secret.expose().to_owned());
    let registered = axum::Json(RegisteredView { webhook: WebhookView::of(&webhook), secret });
    let location = [(header::LOCATION, format!("/v1/webhooks/{id}"))];
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, location, registered).into_response())
}

/// Webhooks by their ids.
#[derive(Serialize, ToSchema)]
pub(super) struct WebhookList {
    webhooks: Vec<WebhookView>,
}

/// List webhooks
#[utoipa::path(
    get, path = "/v1/webhooks", tag = "Webhooks", operation_id = "listWebhooks",
    security(("bearerAuth" = [])),
    responses((status = 200, description = "All webhooks", body = inline(WebhookList)), WebhookListProblems),
)]
pub(super) async fn list(
    State(api): State<Shared>,
    AsOperator(_): AsOperator,
) -> Result<axum::Json<WebhookList>, Problem> {
    let all = api.webhooks.store.webhooks(None).await?;
    Ok(axum::Json(WebhookList { webhooks: all.iter().map(WebhookView::of).collect() }))
}

/// Show a webhook
#[utoipa::path(
    get, path = "/v1/webhooks/{webhook_id}", tag = "Webhooks", operation_id = "showWebhook",
    security(("bearerAuth" = [])),
    params(("webhook_id" = inline(super::contracts::schemas::WebhookIdParam), Path, description = "The webhook")),
    responses((status = 200, description = "The webhook", body = WebhookView), WebhookProblems),
)]
pub(super) async fn show(
    State(api): State<Shared>,
    AsOperator(_): AsOperator,
    Id(id): Id<WebhookId>,
) -> Result<axum::Json<WebhookView>, Problem> {
    Ok(axum::Json(WebhookView::of(&read(&api, id).await?)))
}

/// Delete a webhook
///
/// What is under way to it may still arrive.
#[utoipa::path(
    delete, path = "/v1/webhooks/{webhook_id}", tag = "Webhooks", operation_id = "deleteWebhook",
    security(("bearerAuth" = [])),
    params(("webhook_id" = inline(super::contracts::schemas::WebhookIdParam), Path, description = "The webhook")),
    responses((status = 204, description = "Deleted"), WebhookProblems),
)]
pub(super) async fn delete(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<WebhookId>,
) -> Result<StatusCode, Problem> {
    let webhook = read(&api, id).await?;
    if !api.webhooks.store.delete(id).await? {
        return Err(unknown_webhook(id));
    }
    note(&api, &by, Action::WebhookDeleted, &webhook).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Enable a webhook
///
/// One that was disabled goes on where it was, as far as the feed is kept, and all that waits is tried at once.
#[utoipa::path(
    post, path = "/v1/webhooks/{webhook_id}/enable", tag = "Webhooks", operation_id = "enableWebhook",
    security(("bearerAuth" = [])),
    params(("webhook_id" = inline(super::contracts::schemas::WebhookIdParam), Path, description = "The webhook")),
    responses((status = 200, description = "Enabled, now or earlier", body = WebhookView), WebhookProblems),
)]
pub(super) async fn enable(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<WebhookId>,
) -> Result<axum::Json<WebhookView>, Problem> {
    let what = (Action::WebhookEnabled, WebhookChange::Enabled);
    let enabled = change(&api, &by, id, what, |webhook| {
        let status = &mut webhook.status;
        (status.failing_since, status.disabled_at, status.reason) = (None, None, None);
        Ok(())
    });
    Ok(axum::Json(WebhookView::of(&enabled.await?)))
}

/// Make another secret
///
/// Requests are signed with the new one within a second or two, and for `webhooks.old_secret_s` also with the one before,
/// so that receivers can be switched meanwhile. At most five sign at once.
#[utoipa::path(
    post, path = "/v1/webhooks/{webhook_id}/secret", tag = "Webhooks", operation_id = "rotateWebhookSecret",
    security(("bearerAuth" = [])),
    params(("webhook_id" = inline(super::contracts::schemas::WebhookIdParam), Path, description = "The webhook")),
    responses((status = 200, description = "The new secret", body = SecretView), WebhookProblems),
)]
pub(super) async fn rotate(
    State(api): State<Shared>,
    AsOperator(by): AsOperator,
    Id(id): Id<WebhookId>,
) -> Result<axum::Json<SecretView>, Problem> {
    let overlap = TimeDelta::from_std(api.webhooks.settings.old_secret).unwrap_or_default();
    let now = Utc::now();
    let what = (Action::WebhookSecretMade, WebhookChange::Secrets);
    let rotated = change(&api, &by, id, what, |webhook| {
        webhook.secrets = Secret::rotated(std::mem::take(&mut webhook.secrets), now, now + overlap);
        Ok(())
    });
    let webhook = rotated.await?;
    let secret = webhook.secrets.first().map_or("", Secret::expose).to_owned();
    Ok(axum::Json(SecretView { secret, old_until: rfc3339(now + overlap) }))
}

/// Which deliveries to show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    state: Option<DeliveryState>,
    limit: Option<u32>,
}

/// Deliveries of a webhook.
#[derive(Serialize, ToSchema)]
pub(super) struct DeliveryList {
    deliveries: Vec<DeliveryView>,
}

/// List deliveries
///
/// What was sent to a webhook and what it answered: all that waits, and the latest of the others, as many as
/// `webhooks.keep_deliveries` says.
#[utoipa::path(
    get, path = "/v1/webhooks/{webhook_id}/deliveries", tag = "Webhooks", operation_id = "listWebhookDeliveries",
    security(("bearerAuth" = [])),
    params(
        ("webhook_id" = inline(super::contracts::schemas::WebhookIdParam), Path, description = "The webhook"),
        ("state" = inline(Option<super::contracts::schemas::DeliveryStateName>), Query, description = "Only those"),
        ("limit" = Option<u32>, Query, description = "The most in the answer: 1 to 1000, 100 if left out", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "The latest first", body = inline(DeliveryList)), WebhookProblems),
)]
pub(super) async fn deliveries(
    State(api): State<Shared>,
    AsOperator(_): AsOperator,
    Id(id): Id<WebhookId>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<axum::Json<DeliveryList>, Problem> {
    let Query(Wanted { state, limit }) =
        wanted.map_err(|error| ProblemType::Invalid.because(error.body_text()))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let detail = format!("limit is {limit}; accepted: 1 to {MAX_LIMIT}");
        return Err(ProblemType::Invalid.because(detail));
    }
    read(&api, id).await?;
    let found = api.webhooks.store.deliveries(id, state, limit).await?;
    Ok(axum::Json(DeliveryList { deliveries: found.into_iter().map(DeliveryView::of).collect() }))
}

async fn must_exist(api: &Shared, sale: &SaleId) -> Result<SaleState, Problem> {
    api.sale_cache.sale(sale).await?.ok_or_else(|| unknown(sale))
}

async fn read(api: &Shared, id: WebhookId) -> Result<Webhook, Problem> {
    let found = api.webhooks.store.webhooks(Some(id)).await?.pop();
    found.ok_or_else(|| unknown_webhook(id))
}

/// Changes a webhook as `how` says, and writes it down.
async fn change(
    api: &Shared,
    by: &Operator,
    id: WebhookId,
    (action, what): (Action, WebhookChange),
    how: impl Fn(&mut Webhook) -> Result<(), Problem>,
) -> Result<Webhook, Problem> {
    for _ in 0..TRIES {
        let mut webhook = read(api, id).await?;
        how(&mut webhook)?;
        if api.webhooks.store.change(&webhook, what).await? {
            note(api, by, action, &webhook).await;
            return Ok(webhook);
        }
    }
    Err(ProblemType::LedgerUnavailable.because("the webhook is being changed by others"))
}

/// Writes down what an operator did.
async fn note(api: &Shared, by: &Operator, action: Action, webhook: &Webhook) {
    let detail = format!("{} to {}", webhook.id, webhook.target.place());
    let entry = Entry::new(by, action, webhook.sale_id.clone(), &detail);
    api.operations.journal.record(&[entry]).await;
}

fn unknown_webhook(id: WebhookId) -> Problem {
    ProblemType::UnknownWebhook.because(format!("there is no webhook {id}"))
}

impl From<WebhookError> for Problem {
    fn from(error: WebhookError) -> Self {
        tracing::debug!(%error, "webhooks can't be read or written");
        ProblemType::LedgerUnavailable.because("webhooks can't be read or written for now")
    }
}
