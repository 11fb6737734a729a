//! What is done for one webhook, round by round: take what is due and what is new, send it, and record the results
//! together with how far the feed was read.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::endpoint::Answer;
use super::source::{PART, Progress, Source, SourceError, Taken};
use super::{Shared, WebhookSender, schedule};
use crate::metrics::Sent;
use crate::retry::Backoff;
use crate::webhooks::{Delivery, DeliveryState, Round, Webhook};

/// No new events are taken while so many deliveries wait, so that an endpoint that is gone for days leaves few rows.
const MAX_WAITING: u64 = 1000;
/// How long to wait for a new event before looking what is due.
const IDLE: Duration = Duration::from_secs(1);
/// How often the place is recorded while nothing in the feed is for this webhook.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// When an endpoint that has accepted nothing for so long accepts something, what waits is tried again at once.
const LONG: Duration = Duration::from_mins(1);

/// The work for one webhook.
pub(super) struct Lane {
    shared: Arc<Shared>,
    webhook: Webhook,
    source: Source,
    /// No new events are taken until then: the endpoint accepts nothing, or wants to be left alone.
    new_after: Instant,
    backoff: Backoff,
    /// When the place was last recorded.
    noted_at: Instant,
}

/// What a round is about.
struct Gathered {
    /// Deliveries that are tried again, and new ones.
    deliveries: Vec<Delivery>,
    /// How far the webhook has come once they are sent.
    progress: Progress,
}

/// A delivery with what the endpoint has answered; `None`: there was no time to send it.
type Attempt = (Delivery, Option<Answer>);

/// What to do after a round.
enum Next {
    GoOn,
    /// Another sender has the webhook, it was changed, or it is disabled now.
    End,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, webhook: Webhook) -> Self {
        let (now, backoff) = (Instant::now(), Backoff::endpoint());
        let source = Source::default();
        Self { shared, webhook, source, new_after: now, backoff, noted_at: now }
    }

    /// Works until `stop`, and records what is under way then.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::reconnect();
        let mut is_failing = false;
        while let Some(gathered) = stop.run_until_cancelled(self.gather()).await {
            match gathered {
                Ok(gathered) => {
                    backoff.reset();
                    is_failing = false;
                    if let Next::End = self.round(gathered, &stop).await {
                        return;
                    }
                }
                Err(error) => {
                    self.source.rewind();
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(webhook = %self.webhook.id, %error, "reading events failed, retrying");
                    }
                    let wait = tokio::time::sleep(backoff.next_delay());
                    if stop.run_until_cancelled(wait).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// What to send now; nothing if there is nothing for a while.
    async fn gather(&mut self) -> Result<Gathered, SourceError> {
        let Shared { sender, .. } = &*self.shared;
        let webhook = &self.webhook;
        let now_ms = Utc::now().timestamp_millis();
        let mut deliveries = sender.queue.due(webhook.id, now_ms, PART).await?;
        if webhook.status.waiting >= MAX_WAITING || Instant::now() < self.new_after {
            // It may be long until more is wanted.
            self.source.rewind();
            if deliveries.is_empty() {
                tokio::time::sleep(IDLE).await;
            }
            return Ok(Gathered { deliveries, progress: Progress::of(webhook) });
        }
        let wait = if deliveries.is_empty() { IDLE } else { Duration::ZERO };
        let taken = match self.source.take(sender, webhook, wait).await {
            // What is due is in the ledger, and does not wait for the feed.
            Err(error) if !deliveries.is_empty() => {
                tracing::debug!(webhook = %webhook.id, %error, "reading events failed, sending what is due");
                self.source.rewind();
                Taken { deliveries: Vec::new(), progress: Progress::of(webhook) }
            }
            taken => taken?,
        };
        let Taken { deliveries: new, progress } = taken;
        let mut seen: HashSet<String> =
            deliveries.iter().map(|delivery| delivery.event_id.clone()).collect();
        deliveries
            .extend(new.into_iter().filter(|delivery| seen.insert(delivery.event_id.clone())));
        Ok(Gathered { deliveries, progress })
    }

    /// Sends what was gathered, and records the results. It takes about two time limits of a request at most: what is
    /// not sent in one is recorded as waiting.
    async fn round(&mut self, gathered: Gathered, stop: &CancellationToken) -> Next {
        let Gathered { deliveries, progress } = gathered;
        let before = Progress::of(&self.webhook);
        let is_same = (&before.replay, before.missed_at) == (&progress.replay, progress.missed_at);
        progress.apply(&mut self.webhook);
        if deliveries.is_empty() && is_same && self.noted_at.elapsed() < NOTE_EVERY {
            return Next::GoOn;
        }
        let (shared, webhook, begun_at) = (&self.shared, &self.webhook, Utc::now());
        let deadline = Instant::now() + shared.sender.settings.timeout;
        let sending = stream::iter(deliveries).map(|delivery| async move {
            if stop.is_cancelled() || Instant::now() >= deadline {
                return (delivery, None);
            }
            let answer = shared.endpoint.post(webhook, &delivery, Utc::now().timestamp()).await;
            (delivery, Some(answer))
        });
        let at_once = shared.sender.settings.max_in_flight;
        let attempts: Vec<Attempt> = sending.buffer_unordered(at_once).collect().await;
        let now = Utc::now();
        let retry_all = self.judge(&attempts, now);
        let settle = |(delivery, answer)| self.settled(delivery, answer, now);
        let deliveries: Vec<Delivery> = attempts.into_iter().map(settle).collect();
        self.record(&deliveries, retry_all.then_some(begun_at)).await
    }

    /// What the answers say of the endpoint. Whether all that waits is to be tried at once.
    fn judge(&mut self, attempts: &[Attempt], now: DateTime<Utc>) -> bool {
        let answers: Vec<&Answer> =
            attempts.iter().filter_map(|(_, answer)| answer.as_ref()).collect();
        let status = &mut self.webhook.status;
        if let Some(wanted) = answers.iter().filter_map(|answer| answer.retry_after).max() {
            self.new_after = Instant::now() + schedule::bounded(wanted);
        }
        if answers.iter().any(|answer| answer.is_accepted()) {
            self.backoff.reset();
            let failing_since = status.failing_since.take();
            status.reason = None;
            let long = TimeDelta::from_std(LONG).unwrap_or_default();
            return failing_since.is_some_and(|since| now - since >= long);
        }
        let Some(last) = answers.last() else { return false };
        let is_gone = answers.iter().any(|answer| answer.is_gone());
        let since = *status.failing_since.get_or_insert(now);
        let disable_after = self.shared.sender.settings.disable_after;
        let is_over = TimeDelta::from_std(disable_after).is_ok_and(|after| now - since >= after);
        status.reason = Some(last.reason());
        if is_gone || is_over {
            status.disabled_at = Some(now);
            tracing::warn!(webhook = %self.webhook.id, reason = last.logged(), "disabled a webhook");
        }
        self.new_after = self.new_after.max(Instant::now() + self.backoff.next_delay());
        false
    }

    /// The delivery after an attempt that has ended at `now`, or without one.
    fn settled(
        &self,
        mut delivery: Delivery,
        answer: Option<Answer>,
        now: DateTime<Utc>,
    ) -> Delivery {
        let now_ms = now.timestamp_millis();
        if delivery.attempts == 0 {
            (delivery.first_ms, delivery.last_ms) = (now_ms, now_ms);
        }
        let Some(answer) = answer else {
            delivery.next_ms = Some(now_ms);
            return delivery;
        };
        delivery.attempts += 1;
        (delivery.last_ms, delivery.status) = (now_ms, answer.status);
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
        delivery.answer = answer.text;
        if delivery.state != DeliveryState::Waiting {
            (delivery.next_ms, delivery.event) = (None, String::new());
        }
        delivery
    }

    /// Records the results of `deliveries`, for as long as it takes.
    async fn record(
        &mut self,
        deliveries: &[Delivery],
        retry_before: Option<DateTime<Utc>>,
    ) -> Next {
        let Shared { sender, id, .. } = &*self.shared;
        let retry_before_ms = retry_before.map(|time| time.timestamp_millis());
        let mut backoff = Backoff::reconnect();
        let waiting = loop {
            let round = Round { webhook: &self.webhook, deliveries, retry_before_ms };
            match sender.queue.record(id, round).await {
                Ok(Some(waiting)) => break waiting,
                Ok(None) => return Next::End,
                Err(error) => {
                    tracing::debug!(webhook = %self.webhook.id, %error, "deliveries not recorded, retrying");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        };
        (self.noted_at, self.webhook.status.waiting) = (Instant::now(), waiting);
        if self.webhook.status.disabled_at.is_some() { Next::End } else { Next::GoOn }
    }
}
