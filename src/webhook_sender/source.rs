//! What is to be sent to a webhook and was not tried yet: new events of the feed, and the decisions of a sale that is
//! sent again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::WebhookSender;
use crate::broker::{Fed, FeedError, FeedReader};
use crate::domain::event::{Event, FeedStart};
use crate::domain::event_batch::{events_of, structured_json};
use crate::ledger::LedgerError;
use crate::webhooks::{Delivery, Replay, Webhook, WebhookError};

/// About the most deliveries that are taken at once from each of the two.
pub(super) const PART: u32 = 50;
/// The most messages that are looked at for them: most may be of other sales.
const MAX_SCANNED: usize = 1000;
/// What is there comes within this time.
const AT_ONCE: Duration = Duration::from_millis(20);

/// How far a webhook has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    /// With the feed.
    pub start: FeedStart,
    /// With a sale that is sent again.
    pub replay: Option<Replay>,
    /// When events were found to be removed from the feed.
    pub missed_at: Option<DateTime<Utc>>,
}

impl Progress {
    pub(super) fn of(webhook: &Webhook) -> Self {
        let Webhook { start, replay, status, .. } = webhook;
        Self { start: *start, replay: replay.clone(), missed_at: status.missed_at }
    }

    /// Writes it into the webhook.
    pub(super) fn apply(self, webhook: &mut Webhook) {
        let Self { start, replay, missed_at } = self;
        (webhook.start, webhook.replay, webhook.status.missed_at) = (start, replay, missed_at);
    }
}

/// What was taken, and how far the webhook has come once it is sent.
pub(super) struct Taken {
    pub deliveries: Vec<Delivery>,
    pub progress: Progress,
}

/// Why nothing can be taken. It passes.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Reads for one webhook.
#[derive(Default)]
pub(super) struct Source {
    /// Reads on behind the last message that was taken.
    reader: Option<FeedReader>,
}

impl Source {
    /// Forgets what was read ahead: the next take begins where the webhook stands.
    pub(super) fn rewind(&mut self) {
        self.reader = None;
    }

    /// Takes what comes next; waits up to `wait` for something new. To be rewound after an error, and when what was
    /// taken is not sent.
    pub(super) async fn take(
        &mut self,
        sender: &WebhookSender,
        webhook: &Webhook,
        wait: Duration,
    ) -> Result<Taken, SourceError> {
        let (mut progress, mut deliveries) = (Progress::of(webhook), Vec::new());
        if let Some(Replay { sale_id, after }) = progress.replay.take() {
            let decisions = sender.books.decided(&sale_id, after.as_ref(), PART).await?;
            progress.replay =
                decisions.last().map(|last| Replay { sale_id, after: Some(last.order.id.clone()) });
            deliveries =
                decisions.iter().map(|decision| delivery(sender, &Event::of(decision))).collect();
        }
        // New events do not wait for a sale that is sent again.
        let wait = if deliveries.is_empty() { wait } else { AT_ONCE };
        let new = self.new_events(sender, webhook, &mut progress, wait).await?;
        deliveries.extend(new);
        Ok(Taken { deliveries, progress })
    }

    async fn new_events(
        &mut self,
        sender: &WebhookSender,
        webhook: &Webhook,
        progress: &mut Progress,
        wait: Duration,
    ) -> Result<Vec<Delivery>, SourceError> {
        // Connecting is not part of the wait.
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => open(sender, webhook, progress).await?,
        };
        let (mut by, mut deliveries) = (Instant::now() + wait.max(AT_ONCE), Vec::new());
        for _ in 0..MAX_SCANNED {
            let Fed { offset, body } = match tokio::time::timeout_at(by, reader.next()).await {
                Err(_) => break,
                Ok(Ok(fed)) => fed,
                // What was taken before is sent.
                Ok(Err(_)) if !deliveries.is_empty() => return Ok(deliveries),
                Ok(Err(error)) => return Err(error.into()),
            };
            progress.start = FeedStart::After(offset);
            let Some(events) = events_of(&body) else {
                tracing::warn!(webhook = %webhook.id, offset, "a message of the feed is no event, and not sent");
                continue;
            };
            let is_wanted =
                |event: &Event| webhook.sale_id.as_ref().is_none_or(|sale| event.is_of(sale));
            let wanted = events.iter().filter(|event| is_wanted(event));
            deliveries.extend(wanted.map(|event| delivery(sender, event)));
            if deliveries.len() >= PART as usize {
                break;
            }
            if !deliveries.is_empty() {
                by = by.min(Instant::now() + AT_ONCE);
            }
        }
        self.reader = Some(reader);
        Ok(deliveries)
    }
}

/// Opens the feed where the webhook stands, or at its beginning if that is not kept any more.
async fn open(
    sender: &WebhookSender,
    webhook: &Webhook,
    progress: &mut Progress,
) -> Result<FeedReader, FeedError> {
    match sender.broker.feed(progress.start).await {
        Err(FeedError::NotKept) => {
            tracing::warn!(
                webhook = %webhook.id,
                "events were removed from the feed before they were sent; replay their sales"
            );
            (progress.missed_at, progress.start) = (Some(Utc::now()), FeedStart::Oldest);
            sender.broker.feed(progress.start).await
        }
        opened => opened,
    }
}

fn delivery(sender: &WebhookSender, event: &Event) -> Delivery {
    let json = String::from_utf8(structured_json(event, &sender.source));
    let json = json.unwrap_or_else(|error| unreachable!("JSON: {error}"));
    Delivery::new(event.id.clone(), event.kind, json)
}
