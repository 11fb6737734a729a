//! The contract of `Webhooks` and `WebhookQueue`, which the same adapters have.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use floodgate::app::Records;
use floodgate::domain::event::FeedStart;
use floodgate::webhooks::{
    Delivery, DeliveryState, Networks, Replay, Round, Secret, Status, Target, Webhook,
    WebhookChange, WebhookId, WebhookQueue, Webhooks,
};

use super::on_every_adapter;
use crate::harness::{order, sale_id};

on_every_adapter!(
    real: |stage: &crate::harness::Stage| stage.records.clone();
    embedded: |embedded: &crate::harness::embedded::Embedded| embedded.records.clone();
    a_webhook_is_read_as_it_was_registered,
    a_change_is_for_those_who_have_read_the_latest,
    one_sender_has_a_webhook_at_a_time,
    what_became_of_deliveries_is_written_with_the_place,
);

fn parts(records: Records) -> (Arc<dyn Webhooks>, Arc<dyn WebhookQueue>) {
    (records.webhooks, records.webhook_queue)
}

fn webhook(url: &str) -> Webhook {
    let target = Target::parse(url, &Networks::default()).expect("a target");
    Webhook {
        id: WebhookId::of(&target, None),
        target,
        sale_id: None,
        secrets: vec![Secret::new()],
        created_at: DateTime::from_timestamp_millis(1_795_680_000_123).expect("a time"),
        start: FeedStart::Since(
            DateTime::from_timestamp_millis(1_795_680_000_000).expect("a time"),
        ),
        replay: None,
        status: Status::default(),
        revision: 0,
        claimed_by: None,
    }
}

fn delivery(id: &str, state: DeliveryState, next_ms: Option<i64>) -> Delivery {
    let new =
        Delivery::new(id.to_owned(), "dev.floodgate.order.created.v1", "{\"é\": \"'\"}".into());
    Delivery {
        state,
        attempts: 1,
        last_ms: 7,
        next_ms,
        status: Some(500),
        answer: "no\u{e9}".into(),
        ..new
    }
}

async fn read(webhooks: &Arc<dyn Webhooks>, id: WebhookId) -> Webhook {
    webhooks.webhooks(Some(id)).await.expect("read").pop().expect("the webhook")
}

async fn a_webhook_is_read_as_it_was_registered(records: Records) {
    let (webhooks, _) = parts(records);
    let first = webhook("https://a.example/?x='");
    let of_sale = Webhook {
        id: WebhookId::of(&first.target, Some(&sale_id("s"))),
        sale_id: Some(sale_id("s")),
        start: FeedStart::After(u64::from(u32::MAX) + 1),
        replay: Some(Replay { sale_id: sale_id("s"), after: Some(order("o-1", "s", "u", 1).id) }),
        status: Status {
            failing_since: Some(first.created_at),
            disabled_at: Some(first.created_at),
            reason: Some("it answered 500".to_owned()),
            missed_at: Some(first.created_at),
            ..Status::default()
        },
        ..first.clone()
    };
    for webhook in [&first, &of_sale] {
        assert!(webhooks.register(webhook).await.expect("registered"));
        assert!(!webhooks.register(webhook).await.expect("known"));
        let found = read(&webhooks, webhook.id).await;
        assert_eq!(found.target, webhook.target);
        assert_eq!(found.secrets[0].expose(), webhook.secrets[0].expose());
        assert_eq!((found.created_at, found.start), (webhook.created_at, webhook.start));
        assert_eq!((&found.replay, &found.status), (&webhook.replay, &webhook.status));
        assert_eq!((found.revision, &found.sale_id), (0, &webhook.sale_id));
    }
    assert_eq!(webhooks.webhooks(None).await.expect("read").len(), 2);
    assert!(webhooks.delete(first.id).await.expect("deleted"));
    assert!(!webhooks.delete(first.id).await.expect("gone"));
    assert_eq!(webhooks.webhooks(None).await.expect("read").len(), 1);
}

async fn a_change_is_for_those_who_have_read_the_latest(records: Records) {
    let (webhooks, _) = parts(records);
    let first = webhook("https://a.example/");
    webhooks.register(&first).await.expect("registered");
    let mut changed = read(&webhooks, first.id).await;
    changed.start = FeedStart::Oldest;
    changed.secrets.insert(0, Secret::new());
    changed.replay = Some(Replay { sale_id: sale_id("s"), after: None });
    let change = WebhookChange::Secrets;
    assert!(webhooks.change(&changed, change).await.expect("changed"));
    assert!(!webhooks.change(&changed, change).await.expect("stale"));
    let found = read(&webhooks, first.id).await;
    assert_eq!((found.revision, found.start, found.secrets.len()), (1, first.start, 2));
    assert_eq!(found.replay, None, "nothing else is changed");
    for (revision, change) in [(1, WebhookChange::Place), (2, WebhookChange::Replay)] {
        changed.revision = revision;
        assert!(webhooks.change(&changed, change).await.expect("changed"));
    }
    let found = read(&webhooks, first.id).await;
    assert_eq!((found.start, &found.replay), (FeedStart::Oldest, &changed.replay));
}

async fn one_sender_has_a_webhook_at_a_time(records: Records) {
    let (webhooks, queue) = parts(records);
    let (first, disabled) = (webhook("https://a.example/"), webhook("https://b.example/"));
    let status = Status { disabled_at: Some(Utc::now()), ..Status::default() };
    for webhook in [first.clone(), Webhook { status, ..disabled }] {
        webhooks.register(&webhook).await.expect("registered");
    }
    let claimed = async |sender: &str, until_ms, now_ms| {
        let all = queue.claim(sender, until_ms, now_ms).await.expect("claimed");
        assert_eq!(all.len(), 2);
        let claimed =
            all.into_iter().filter(|webhook| webhook.claimed_by.as_deref() == Some(sender));
        claimed.map(|webhook| webhook.id).collect::<Vec<_>>()
    };
    assert_eq!(claimed("one", 1100, 1000).await, [first.id]);
    assert_eq!(claimed("two", 1150, 1050).await, []);
    assert_eq!(claimed("one", 1160, 1060).await, [first.id], "prolonged");
    assert_eq!(claimed("two", 1250, 1150).await, []);
    assert_eq!(claimed("two", 1261, 1161).await, [first.id], "it has run out");
    let webhook = read(&webhooks, first.id).await;
    let round = Round { webhook: &webhook, deliveries: &[], retry_before_ms: None };
    assert_eq!(queue.record("one", round).await.expect("refused"), None);
    assert_eq!(queue.record("two", round).await.expect("recorded"), Some(0));
    webhooks.change(&webhook, WebhookChange::Secrets).await.expect("changed");
    assert_eq!(queue.record("two", round).await.expect("refused: it was changed"), None);
    queue.release("two").await.expect("released");
    assert_eq!(claimed("one", 1300, 1200).await, [first.id]);
}

async fn what_became_of_deliveries_is_written_with_the_place(records: Records) {
    let (webhooks, queue) = parts(records);
    let first = webhook("https://a.example/");
    webhooks.register(&first).await.expect("registered");
    queue.claim("one", 1100, 1000).await.expect("claimed");
    let mut now = read(&webhooks, first.id).await;
    now.start = FeedStart::After(7);
    now.status.reason = Some("it answered 500".to_owned());
    let (late, soon) = (
        delivery("late", DeliveryState::Waiting, Some(9000)),
        delivery("soon", DeliveryState::Waiting, Some(8000)),
    );
    let given_up = delivery("given-up", DeliveryState::GivenUp, None);
    let deliveries = [late.clone(), soon.clone(), given_up];
    let record = async |webhook: &Webhook, deliveries: &[Delivery], retry_before_ms| {
        let round = Round { webhook, deliveries, retry_before_ms };
        queue.record("one", round).await.expect("recorded")
    };
    assert_eq!(record(&now, &deliveries, None).await, Some(2));
    let found = read(&webhooks, first.id).await;
    assert_eq!(
        (found.start, found.status.waiting, found.status.given_up),
        (FeedStart::After(7), 2, 1)
    );
    let due = async |now_ms| queue.due(first.id, now_ms, 10).await.expect("read");
    assert_eq!(due(7999).await, []);
    assert_eq!(due(9000).await, [soon.clone(), late.clone()]);
    let listed =
        async |state, limit| webhooks.deliveries(first.id, state, limit).await.expect("read");
    assert_eq!(listed(Some(DeliveryState::GivenUp), 10).await, deliveries[2..]);
    assert_eq!(listed(None, 2).await.len(), 2);
    // Another attempt takes the place of the first.
    let delivered = Delivery {
        state: DeliveryState::Delivered,
        attempts: 2,
        last_ms: 8,
        next_ms: None,
        ..soon
    };
    let refused =
        Delivery { status: Some(400), ..delivery("refused", DeliveryState::Waiting, Some(9500)) };
    assert_eq!(record(&now, &[delivered.clone(), refused], Some(8)).await, Some(2));
    assert_eq!(listed(None, 1).await, [delivered]);
    assert_eq!(due(0).await.len(), 1, "what failed without its fault is due at once");
    assert!(webhooks.change(&now, WebhookChange::Enabled).await.expect("enabled"));
    let due_now = due(0).await;
    assert_eq!(due_now.len(), 2, "all that waits is");
    assert!(due_now.iter().all(|delivery| delivery.first_ms > 7));
    queue.forget(first.id, 1).await.expect("forgotten");
    assert_eq!(listed(None, 10).await.len(), 4, "one of each is kept");
    queue.forget(first.id, 0).await.expect("forgotten");
    assert_eq!(listed(None, 10).await.len(), 2);
    webhooks.delete(first.id).await.expect("deleted");
    assert_eq!(listed(None, 10).await, []);
}
