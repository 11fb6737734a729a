//! What is done for one webhook, round by round: take what is due and what is new, send it, and write down what became
//! of it together with how far the feed was read.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::endpoint::Answer;
use super::{Shared, WebhookSender, schedule};
use crate::broker::{BrokerError, Fed, FeedError, FeedReader};
use crate::domain::event::{Event, FeedStart};
use crate::domain::event_batch::{data_of, structured_json};
use crate::ledger::LedgerError;
use crate::metrics::Sent;
use crate::retry::Backoff;
use crate::webhooks::{Delivery, DeliveryState, Replay, Round, Webhook, WebhookError};

/// Deliveries that are tried again in a round, and new ones.
const PART: u32 = 50;
/// No new events are taken while so many deliveries wait, so that an endpoint that is gone for days leaves few rows.
const MAX_WAITING: u64 = 1000;
/// How long to wait for a new event before looking what is due.
const IDLE: Duration = Duration::from_secs(1);
/// An event that is there comes within this time.
const AT_ONCE: Duration = Duration::from_millis(20);
/// How often it is written how far the feed was read, when nothing in it was for this webhook.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// When an endpoint accepts something again that has accepted nothing for so long, all that waits is tried again at once.
const LONG: Duration = Duration::from_mins(1);

/// The work for one webhook.
pub(super) struct Lane {
    shared: Arc<Shared>,
    webhook: Webhook,
    reader: Option<FeedReader>,
    /// After rounds in which nothing was accepted, no new events are taken until then.
    new_after: Instant,
    backoff: Backoff,
    /// When it was last written how far the feed was read.
    noted_at: Instant,
    /// That a sale was sent again to its end is to be written too.
    note_now: bool,
}

/// What a round is about.
struct Gathered {
    /// Deliveries that are tried again.
    due: Vec<Delivery>,
    /// Those that were not tried yet.
    new: Vec<Delivery>,
}

/// Why nothing can be gathered. It passes.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What to do after a round.
enum Next {
    GoOn,
    /// Someone else has the webhook, it was changed, or it is disabled now.
    End,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, webhook: Webhook) -> Self {
        let now = Instant::now();
        let backoff = Backoff::endpoint();
        Self {
            shared,
            webhook,
            reader: None,
            new_after: now,
            backoff,
            noted_at: now,
            note_now: false,
        }
    }

    /// Works until `stop`, and finishes the round that is under way.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::reconnect();
        loop {
            let gathering = stop.run_until_cancelled(self.gather());
            match gathering.await {
                None => return,
                Some(Err(error)) => {
                    tracing::debug!(webhook = %self.webhook.id, %error, "nothing can be taken");
                    self.reader = None;
                    if stop
                        .run_until_cancelled(tokio::time::sleep(backoff.next_delay()))
                        .await
                        .is_none()
                    {
                        return;
                    }
                }
                Some(Ok(gathered)) => {
                    backoff.reset();
                    if let Next::End = self.round(gathered).await {
                        return;
                    }
                }
            }
        }
    }

    /// What to send now; nothing if there is nothing for a while.
    async fn gather(&mut self) -> Result<Gathered, LaneError> {
        let queue = &self.shared.sender.queue;
        let due = queue.due(self.webhook.id, Utc::now().timestamp_millis(), PART).await?;
        let is_full = self.webhook.status.waiting >= MAX_WAITING;
        let mut new = Vec::new();
        if is_full || Instant::now() < self.new_after {
            if due.is_empty() {
                tokio::time::sleep(IDLE).await;
            }
        } else {
            // New events do not wait for a sale that is sent again.
            if let Some(replay) = self.webhook.replay.take() {
                new = self.replayed(replay).await?;
            }
            let is_idle = due.is_empty() && new.is_empty();
            new.extend(self.new_events(if is_idle { IDLE } else { AT_ONCE }).await?);
        }
        let mut seen: HashSet<String> =
            due.iter().map(|delivery| delivery.event_id.clone()).collect();
        new.retain(|delivery| seen.insert(delivery.event_id.clone()));
        Ok(Gathered { due, new })
    }

    /// The next decisions of a sale that is sent again.
    async fn replayed(&mut self, replay: Replay) -> Result<Vec<Delivery>, LaneError> {
        let Replay { sale_id, after } = &replay;
        let books = &self.shared.sender.books;
        let read = books.decided(sale_id, after.as_ref(), PART).await;
        let decisions = match read {
            Ok(decisions) => decisions,
            Err(error) => {
                self.webhook.replay = Some(replay);
                return Err(error.into());
            }
        };
        self.webhook.replay = decisions
            .last()
            .map(|last| Replay { sale_id: replay.sale_id, after: Some(last.order.id.clone()) });
        self.note_now = true;
        Ok(decisions.iter().map(|decision| self.delivery(&Event::of(decision))).collect())
    }

    /// What comes next in the feed, for the first of which `wait` may pass.
    async fn new_events(&mut self, wait: Duration) -> Result<Vec<Delivery>, LaneError> {
        let first_by = Instant::now() + wait;
        let mut deliveries = Vec::new();
        while deliveries.len() < PART as usize {
            let by = if deliveries.is_empty() { first_by } else { Instant::now() + AT_ONCE };
            let fed = match tokio::time::timeout_at(by, self.next()).await {
                Err(_) => break,
                Ok(Ok(fed)) => fed,
                Ok(Err(LaneError::Feed(FeedError::NotKept))) => {
                    tracing::warn!(
                        webhook = %self.webhook.id,
                        "events were removed from the feed before they were sent; its sales can be sent again"
                    );
                    self.webhook.status.missed_at = Some(Utc::now());
                    (self.webhook.start, self.reader) = (FeedStart::Oldest, None);
                    continue;
                }
                Ok(Err(error)) => return Err(error),
            };
            self.webhook.start = FeedStart::After(fed.offset);
            let data = data_of(&fed.body).unwrap_or_default();
            for event in data.into_iter().filter_map(Event::of_data) {
                if self.webhook.sale_id.as_ref().is_none_or(|sale| event.is_of(sale)) {
                    deliveries.push(self.delivery(&event));
                }
            }
        }
        Ok(deliveries)
    }

    async fn next(&mut self) -> Result<Fed, LaneError> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(self.shared.sender.broker.feed(self.webhook.start).await?),
        };
        Ok(reader.next().await?)
    }

    fn delivery(&self, event: &Event) -> Delivery {
        let json = structured_json(event, &self.shared.sender.source);
        let json = String::from_utf8(json).unwrap_or_else(|error| unreachable!("JSON: {error}"));
        Delivery::new(event.id.clone(), event.kind, json)
    }

    /// Sends what was gathered, and writes down what became of it.
    async fn round(&mut self, Gathered { due, new }: Gathered) -> Next {
        let were_waiting = due.len() as u64;
        let deliveries: Vec<Delivery> = due.into_iter().chain(new).collect();
        let is_noted = !self.note_now && self.noted_at.elapsed() < NOTE_EVERY;
        if deliveries.is_empty() && is_noted {
            return Next::GoOn;
        }
        let (shared, webhook) = (&self.shared, &self.webhook);
        let sending = stream::iter(deliveries).map(|delivery| async move {
            let now_s = Utc::now().timestamp();
            let answer = shared.endpoint.post(webhook, &delivery, now_s).await;
            (delivery, answer)
        });
        let at_once = shared.sender.settings.max_in_flight;
        let sent: Vec<(Delivery, Answer)> = sending.buffer_unordered(at_once).collect().await;
        let now = Utc::now();
        let retry_all = self.judge(&sent, now);
        let settle = |(delivery, answer)| self.settled(delivery, &answer, now);
        let deliveries: Vec<Delivery> = sent.into_iter().map(settle).collect();
        let is_waiting = |delivery: &&Delivery| delivery.state == DeliveryState::Waiting;
        let now_waiting = deliveries.iter().filter(is_waiting).count() as u64;
        let status = &mut self.webhook.status;
        status.waiting = (status.waiting + now_waiting).saturating_sub(were_waiting);
        self.record(&deliveries, retry_all).await
    }

    /// What the answers say of the endpoint. Whether all that waits is to be tried at once.
    fn judge(&mut self, sent: &[(Delivery, Answer)], now: DateTime<Utc>) -> bool {
        let status = &mut self.webhook.status;
        if sent.iter().any(|(_, answer)| answer.is_accepted()) {
            self.backoff.reset();
            self.new_after = Instant::now();
            let failing_since = status.failing_since.take();
            status.reason = None;
            let long = TimeDelta::from_std(LONG).unwrap_or_default();
            return failing_since.is_some_and(|since| now - since >= long);
        }
        let Some((_, last)) = sent.last() else { return false };
        let since = *status.failing_since.get_or_insert(now);
        let disable_after = self.shared.sender.settings.disable_after;
        let is_over = TimeDelta::from_std(disable_after).is_ok_and(|after| now - since >= after);
        status.reason = Some(last.reason());
        if last.is_gone() || is_over {
            status.disabled_at = Some(now);
            let reason = status.reason.as_deref();
            tracing::warn!(webhook = %self.webhook.id, reason, "disabled a webhook");
        }
        self.new_after = Instant::now() + self.backoff.next_delay();
        false
    }

    /// The delivery after an attempt at `now`.
    fn settled(&self, mut delivery: Delivery, answer: &Answer, now: DateTime<Utc>) -> Delivery {
        let now_ms = now.timestamp_millis();
        if delivery.attempts == 0 {
            delivery.first_ms = now_ms;
        }
        delivery.attempts += 1;
        (delivery.last_ms, delivery.status) = (now_ms, answer.status);
        delivery.answer.clone_from(&answer.text);
        let WebhookSender { settings, metrics, .. } = &self.shared.sender;
        let tried = Duration::from_millis((now_ms - delivery.first_ms).unsigned_abs());
        let sent = if answer.is_accepted() {
            delivery.state = DeliveryState::Delivered;
            Sent::Delivered
        } else if tried >= settings.give_up_after {
            delivery.state = DeliveryState::GivenUp;
            Sent::GivenUp
        } else {
            let delay = schedule::delay(delivery.attempts, answer.retry_after);
            delivery.next_ms = Some(now_ms + i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
            Sent::Failed
        };
        metrics.webhooks.sent(sent);
        if delivery.state != DeliveryState::Waiting {
            (delivery.next_ms, delivery.event) = (None, String::new());
        }
        delivery
    }

    /// Writes what became of `deliveries`, for as long as it takes.
    async fn record(&mut self, deliveries: &[Delivery], retry_all: bool) -> Next {
        let Shared { sender, id, .. } = &*self.shared;
        let mut backoff = Backoff::reconnect();
        loop {
            let round = Round { webhook: &self.webhook, deliveries, retry_all };
            match sender.queue.record(id, round).await {
                Ok(true) => break,
                Ok(false) => return Next::End,
                Err(error) => {
                    tracing::debug!(webhook = %self.webhook.id, %error, "what was sent can't be written down");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
        (self.noted_at, self.note_now) = (Instant::now(), false);
        if self.webhook.status.disabled_at.is_some() { Next::End } else { Next::GoOn }
    }
}
