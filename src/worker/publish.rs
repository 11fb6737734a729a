//! Publish: events for subscribers, replies for requesters, dead letters and deferred orders; then acknowledge.

use std::sync::Arc;
use std::time::Duration;

use super::batch::{Deferred, Entry, PendingDeadLetter};
use super::blocked::Blocked;
use super::decide::{DecidedBatch, Settled};
use super::outgoing::Outgoing;
use crate::broker::{Broker, Delay, EventSettings, Message, Receipt, Reply};
use crate::domain::event::Event;
use crate::domain::order::SaleId;
use crate::domain::trace::TraceContext;
use crate::fault::crash_point;
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::traces::Traced;

/// Publishes batches.
pub(super) struct EventPublisher {
    pub broker: Arc<dyn Broker>,
    pub metrics: Arc<Metrics>,
    pub blocked: Blocked,
    pub settings: EventSettings,
}

impl EventPublisher {
    /// Publishes what came of `batch` and acknowledges it. Returns only when that is done, however
    /// long the broker is unavailable. What a full queue refuses is deferred, and holds up nothing.
    pub(super) async fn publish(&self, batch: DecidedBatch) {
        let orders = batch.len();
        let DecidedBatch { decided, dead_letters, mut deferred, traced, .. } = batch;
        deferred.extend(self.publish_decisions(decided, &traced).await);
        deferred.extend(self.publish_dead_letters(dead_letters).await);
        self.defer(deferred).await;
        self.metrics.worker.done(orders);
        crash_point("acked");
    }

    /// Publishes decisions. Returns the orders whose events were refused.
    async fn publish_decisions(&self, decided: Vec<Settled>, traced: &Traced) -> Vec<Deferred> {
        let mut refused = Vec::new();
        let (mut published, mut events) = (Vec::new(), Vec::new());
        for settled in decided {
            let mut event = Event::of(&settled.decision);
            event.trace = trace(&settled.entry);
            if !settled.is_new && self.blocked.holds(&event.routing_key) {
                refused.push(Deferred::order(settled.entry, Delay::ThirtySeconds));
                continue;
            }
            if let Some(reply) = reply(&settled.entry, &event) {
                self.broker.reply(reply);
            }
            published.push(settled);
            events.push(event);
        }
        let sales: Vec<&SaleId> =
            published.iter().map(|settled| &settled.decision.order.sale_id).collect();
        let outgoing = Outgoing::of(&events, &sales, self.settings);
        let sending = traced.as_ref().map(|batch| batch.send_events());
        let receipts = self.until_known(&outgoing.messages()).await;
        drop(sending);
        let fates = outgoing.fates(&receipts, events.len());
        drop(outgoing);
        crash_point("confirmed");
        let _settling = traced.as_ref().map(|batch| batch.settle());
        for ((settled, event), fate) in published.into_iter().zip(&events).zip(fates) {
            if fate.is_refused {
                self.blocked.refused(&event.routing_key);
                let again = if settled.is_new { Delay::FiveSeconds } else { Delay::ThirtySeconds };
                refused.push(Deferred::order(settled.entry, again));
            } else {
                self.metrics.worker.unrouted_events.inc_by((!fate.has_subscriber).into());
                self.blocked.passed(&event.routing_key);
                settled.entry.handle.ack();
            }
        }
        refused
    }

    /// Publishes dead letters. Returns those that were refused, to be decided again.
    async fn publish_dead_letters(&self, dead_letters: Vec<PendingDeadLetter>) -> Vec<Deferred> {
        let letters: Vec<Message<'_>> =
            dead_letters.iter().map(|dead| Message::DeadLetter(&dead.letter)).collect();
        let receipts = self.until_known(&letters).await;
        let mut refused = Vec::new();
        for (dead, receipt) in dead_letters.into_iter().zip(receipts) {
            if receipt.is_done() {
                self.metrics.worker.dead_lettered(&dead.letter.reason);
                dead.handle.ack();
            } else {
                tracing::warn!(reason = %dead.letter.reason, "the queue of dead letters is full");
                refused.push(Deferred::letter(dead, Delay::ThirtySeconds));
            }
        }
        refused
    }

    /// Publishes orders once more, to wait on a delay queue.
    async fn defer(&self, deferred: Vec<Deferred>) {
        if deferred.is_empty() {
            return;
        }
        let messages: Vec<Message<'_>> = deferred
            .iter()
            .map(|Deferred { handle, routing_key, body, delay, since: _ }| Message::Intent {
                routing_key,
                body,
                properties: Some(handle.properties()),
                delay: *delay,
            })
            .collect();
        let mut backoff = Backoff::step();
        let mut left = messages;
        while !left.is_empty() {
            let receipts = self.until_known(&left).await;
            let mut receipts = receipts.into_iter();
            left.retain(|_| receipts.next().is_some_and(|receipt| !receipt.is_done()));
            if !left.is_empty() {
                let delay = backoff.next_delay();
                tracing::warn!(
                    ?delay,
                    messages = left.len(),
                    "a queue for deferred orders is full"
                );
                tokio::time::sleep(delay).await;
            }
        }
        crash_point("deferred");
        let waiting = deferred.iter().filter(|deferred| deferred.delay.is_some());
        self.metrics.worker.deferred.inc_by(waiting.count() as u64);
        for deferred in deferred {
            if let (Some(since), Some(delay)) = (deferred.since, deferred.delay) {
                self.metrics.broker.deferred(since, Duration::from_millis(delay.ms().into()));
            }
            deferred.handle.ack();
        }
    }

    /// Publishes until the broker has taken or refused each message, however long it is unavailable. What
    /// it has confirmed is not published again.
    async fn until_known(&self, messages: &[Message<'_>]) -> Vec<Receipt> {
        let mut receipts = vec![Receipt::Unconfirmed; messages.len()];
        let mut backoff = Backoff::step();
        loop {
            let is_open =
                |index: &usize| matches!(receipts[*index], Receipt::Unconfirmed | Receipt::NoQueue);
            let open: Vec<usize> = (0..messages.len()).filter(is_open).collect();
            if open.is_empty() {
                return receipts;
            }
            let again: Vec<Message<'_>> =
                open.iter().map(|&index| messages[index].clone()).collect();
            let published = self.broker.publish(&again).await;
            for (index, receipt) in open.into_iter().zip(published.receipts) {
                receipts[index] = receipt;
            }
            if let Some(error) = published.error {
                let delay = backoff.next_delay();
                tracing::debug!(%error, ?delay, messages = again.len(), "cannot publish");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// What subscribers are told of the trace that an order belongs to: where it is recorded here, or else what came with
/// it.
fn trace(entry: &Entry) -> Option<TraceContext> {
    let recorded = entry.traced.as_ref().and_then(|traced| traced.context());
    recorded.or_else(|| entry.handle.properties().trace.clone())
}

/// The reply that an order asked for, if it did.
fn reply(entry: &Entry, event: &Event) -> Option<Reply> {
    let properties = entry.handle.properties();
    let (to, correlation_id) = (properties.reply_to.clone()?, properties.correlation_id.clone()?);
    let in_batches = properties.accepts_batches;
    Some(Reply { to, correlation_id, in_batches, event: event.clone() })
}
