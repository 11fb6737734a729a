//! The statements and rows of webhooks, the same in every database.

mod rows;

use chrono::Utc;
use serde_json::{Value, json};

use super::row::row;
use super::statements::{Sql, json_text};
use crate::domain::event::FeedStart;
use crate::webhooks::{
    Delivery, DeliveryState, Round, Secret, Status, Webhook, WebhookChange, WebhookId,
};
use rows::{DeliveryRow, WebhookRow};

/// What a sender changes.
const SENT: [&str; 8] = [
    "after_place",
    "since",
    "replay_sale_id",
    "replay_after",
    "failing_since",
    "disabled_at",
    "reason",
    "missed_at",
];
/// The columns of [`WebhookRow`] that are stored, without those of the claim.
const WEBHOOK: &str =
    "webhook_id, url, sale_id, secrets, created_at, after_place, since, replay_sale_id,
    replay_after, failing_since, disabled_at, reason, missed_at, revision";
/// The columns of [`DeliveryRow`].
const DELIVERY: &str =
    "webhook_id, event_id, event_type, event, state, attempts, first_ms, last_ms, next_ms,
    status, answer";

row! {
    struct CountRow {
        total: u64 as i64,
    }
}

row! {
    struct IdRow {
        webhook_id: String,
    }
}

fn values(webhook: &Webhook) -> Value {
    let Webhook {
        id,
        target,
        sale_id,
        secrets,
        created_at,
        start,
        replay,
        status,
        revision,
        claimed_by,
    } = webhook;
    let (after_place, since) = match start {
        FeedStart::Oldest => (None, None),
        FeedStart::After(place) => (Some(place.cast_signed()), None),
        FeedStart::Since(time) => (None, Some(time)),
    };
    let Status { failing_since, disabled_at, reason, missed_at, .. } = status;
    json!({
        "webhook_id": id, "url": target.url().as_str(), "sale_id": sale_id, "secrets": Secret::to_text(secrets),
        "created_at": created_at, "after_place": after_place, "since": since,
        "replay_sale_id": replay.as_ref().map(|replay| &replay.sale_id),
        "replay_after": replay.as_ref().and_then(|replay| replay.after.as_ref()),
        "failing_since": failing_since, "disabled_at": disabled_at, "reason": reason, "missed_at": missed_at,
        "revision": revision, "claimed_by": claimed_by,
    })
}

/// The webhook's key and revision with the values of `columns`: no statement is told secrets that it does not store.
fn only(webhook: &Webhook, columns: &[&str]) -> Value {
    let mut values = values(webhook);
    if let Some(values) = values.as_object_mut() {
        values.retain(|name, _| {
            ["webhook_id", "revision"].contains(&name.as_str()) || columns.contains(&name.as_str())
        });
    }
    values
}

/// Whether a statement has changed a webhook: those that do return its id.
async fn has_changed<C: Sql>(db: &mut C, sql: String, set: &Value) -> Result<bool, sqlx::Error> {
    let rows: Vec<IdRow> = db.read(sql, json_text(&[set])).await?;
    Ok(rows.iter().any(|row| !row.webhook_id.is_empty()))
}

/// What `columns` are set to, from a set `i`.
fn assignments(columns: &[&str]) -> String {
    columns.iter().map(|column| format!("{column} = i.{column}")).collect::<Vec<_>>().join(", ")
}

pub(super) async fn register<C: Sql>(db: &mut C, webhook: &Webhook) -> Result<bool, sqlx::Error> {
    let set = C::set("webhooks", WEBHOOK);
    let sql = format!(
        "insert into webhooks ({WEBHOOK}) select {WEBHOOK} from {set} i where true
         on conflict (webhook_id) do nothing returning webhook_id"
    );
    has_changed(db, sql, &values(webhook)).await
}

pub(super) async fn webhooks<C: Sql>(
    db: &mut C,
    id: Option<WebhookId>,
) -> Result<Vec<Webhook>, sqlx::Error> {
    // An id has no character that means anything in SQL.
    let which = id.map_or_else(String::new, |id| format!("and w.webhook_id = '{id}'"));
    let count = |state: DeliveryState| {
        format!(
            "(select count(*) from webhook_deliveries d
              where d.webhook_id = w.webhook_id and d.state = '{}') as {}",
            state.name(),
            state.name()
        )
    };
    let (waiting, given_up) = (count(DeliveryState::Waiting), count(DeliveryState::GivenUp));
    let sql = format!(
        "select {WEBHOOK}, claimed_by, {waiting}, {given_up} from webhooks w
         where $1 = '' {which} order by webhook_id"
    );
    let rows: Vec<WebhookRow> = db.read(sql, String::new()).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

pub(super) async fn change<C: Sql>(
    db: &mut C,
    webhook: &Webhook,
    change: WebhookChange,
) -> Result<bool, sqlx::Error> {
    let columns: &[&str] = match change {
        WebhookChange::Secrets => &["secrets"],
        WebhookChange::Enabled => &["failing_since", "disabled_at", "reason"],
        WebhookChange::Place => &["after_place", "since"],
        WebhookChange::Replay => &["replay_sale_id", "replay_after"],
    };
    let (set, id) = (C::set("webhooks", WEBHOOK), webhook.id);
    let sql = format!(
        "update webhooks set {}, revision = i.revision + 1 from {set} i
         where webhooks.webhook_id = i.webhook_id and webhooks.revision = i.revision
         returning webhooks.webhook_id",
        assignments(columns)
    );
    let has_changed = has_changed(db, sql, &only(webhook, columns)).await?;
    if has_changed && change == WebhookChange::Enabled {
        let now_ms = Utc::now().timestamp_millis();
        let sql = format!(
            "update webhook_deliveries set next_ms = 0, first_ms = {now_ms}
             where $1 = '' and webhook_id = '{id}' and state = 'waiting'"
        );
        db.write(sql, String::new()).await?;
    }
    Ok(has_changed)
}

pub(super) async fn delete<C: Sql>(db: &mut C, id: WebhookId) -> Result<bool, sqlx::Error> {
    let set = C::set("webhooks", "webhook_id");
    let which = format!("webhook_id in (select i.webhook_id from {set} i)");
    let key = json!({ "webhook_id": id });
    // First, so that a sender that has just written deliveries is waited for.
    let sql = format!("delete from webhooks where {which} returning webhook_id");
    let was_there = has_changed(db, sql, &key).await?;
    db.write(format!("delete from webhook_deliveries where {which}"), json_text(&[&key])).await?;
    Ok(was_there)
}

pub(super) async fn deliveries<C: Sql>(
    db: &mut C,
    id: WebhookId,
    state: Option<DeliveryState>,
    limit: u32,
) -> Result<Vec<Delivery>, sqlx::Error> {
    let state = state.map_or_else(String::new, |state| format!("and state = '{}'", state.name()));
    select(
        db,
        &format!("webhook_id = '{id}' {state} order by last_ms desc, event_id limit {limit}"),
    )
    .await
}

pub(super) async fn due<C: Sql>(
    db: &mut C,
    id: WebhookId,
    now_ms: i64,
    limit: u32,
) -> Result<Vec<Delivery>, sqlx::Error> {
    let due = format!(
        "webhook_id = '{id}' and state = 'waiting' and next_ms <= {now_ms} order by next_ms limit {limit}"
    );
    select(db, &due).await
}

async fn select<C: Sql>(db: &mut C, which: &str) -> Result<Vec<Delivery>, sqlx::Error> {
    let sql = format!("select {DELIVERY} from webhook_deliveries where $1 = '' and {which}");
    let rows: Vec<DeliveryRow> = db.read(sql, String::new()).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

pub(super) async fn claim<C: Sql>(
    db: &mut C,
    sender: &str,
    until_ms: i64,
    now_ms: i64,
) -> Result<Vec<Webhook>, sqlx::Error> {
    let set = C::set("webhooks", "claimed_by");
    // A claim is prolonged when half of it has passed.
    let half_ms = now_ms.midpoint(until_ms);
    let sql = format!(
        "update webhooks set claimed_by = i.claimed_by, claimed_until_ms = {until_ms} from {set} i
         where webhooks.disabled_at is null and (webhooks.claimed_until_ms < {now_ms}
               or webhooks.claimed_by = i.claimed_by and webhooks.claimed_until_ms < {half_ms})"
    );
    db.write(sql, json_text(&[json!({ "claimed_by": sender })])).await?;
    webhooks(db, None).await
}

pub(super) async fn release<C: Sql>(db: &mut C, sender: &str) -> Result<(), sqlx::Error> {
    let set = C::set("webhooks", "claimed_by");
    let sql = format!(
        "update webhooks set claimed_by = null, claimed_until_ms = 0
         where claimed_by in (select i.claimed_by from {set} i)"
    );
    db.write(sql, json_text(&[json!({ "claimed_by": sender })])).await
}

pub(super) async fn record<C: Sql>(
    db: &mut C,
    sender: &str,
    round: Round<'_>,
) -> Result<Option<u64>, sqlx::Error> {
    let Round { webhook, deliveries, retry_before_ms } = round;
    let (set, id) = (C::set("webhooks", &format!("{WEBHOOK}, claimed_by")), webhook.id);
    let sql = format!(
        "update webhooks set {} from {set} i
         where webhooks.webhook_id = i.webhook_id and webhooks.revision = i.revision
           and webhooks.claimed_by = i.claimed_by
         returning webhooks.webhook_id",
        assignments(&SENT)
    );
    let mut claimed = only(webhook, &SENT);
    claimed["claimed_by"] = json!(sender);
    if !has_changed(db, sql, &claimed).await? {
        return Ok(None);
    }
    write(db, id, deliveries).await?;
    if let Some(before_ms) = retry_before_ms {
        let sql = format!(
            "update webhook_deliveries set next_ms = 0
             where $1 = '' and webhook_id = '{id}' and state = 'waiting' and last_ms < {before_ms}
               and coalesce(status, 500) >= 500"
        );
        db.write(sql, String::new()).await?;
    }
    let sql = format!(
        "select count(*) as total from webhook_deliveries
         where $1 = '' and webhook_id = '{id}' and state = 'waiting'"
    );
    let rows: Vec<CountRow> = db.read(sql, String::new()).await?;
    Ok(Some(rows.first().map_or(0, |row| row.total)))
}

async fn write<C: Sql>(
    db: &mut C,
    id: WebhookId,
    deliveries: &[Delivery],
) -> Result<(), sqlx::Error> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let set = C::set("webhook_deliveries", DELIVERY);
    let sql = format!(
        "insert into webhook_deliveries ({DELIVERY}) select {DELIVERY} from {set} i where true
         on conflict (webhook_id, event_id) do update set event = excluded.event, state = excluded.state,
             attempts = excluded.attempts, first_ms = excluded.first_ms, last_ms = excluded.last_ms,
             next_ms = excluded.next_ms, status = excluded.status, answer = excluded.answer"
    );
    let rows = deliveries.iter().map(|delivery| {
        let Delivery { event_id, event_type, event, state, attempts, first_ms, last_ms, next_ms, status, answer } =
            delivery;
        json!({ "webhook_id": id, "event_id": event_id, "event_type": event_type, "event": event,
                "state": state.name(), "attempts": attempts, "first_ms": first_ms, "last_ms": last_ms,
                "next_ms": next_ms, "status": status, "answer": answer })
    });
    db.write(sql, json_text(&rows.collect::<Vec<_>>())).await
}

pub(super) async fn forget<C: Sql>(
    db: &mut C,
    id: WebhookId,
    keep: u32,
) -> Result<(), sqlx::Error> {
    for state in [DeliveryState::Delivered, DeliveryState::GivenUp] {
        let over = format!("webhook_id = '{id}' and state = '{}'", state.name());
        let sql = format!(
            "delete from webhook_deliveries where $1 = '' and {over} and event_id not in (
                 select event_id from webhook_deliveries where {over} order by last_ms desc limit {keep})"
        );
        db.write(sql, String::new()).await?;
    }
    Ok(())
}
