//! Publish: tell subscribers and askers, park dead letters, then acknowledge.

use std::borrow::Cow;
use std::sync::Arc;

use super::batch::{Deferred, Entry};
use super::decide::DecidedBatch;
use super::tally::Tally;
use crate::broker::{Broker, Delay, Message};
use crate::event::Event;
use crate::fault::crash_point;
use crate::intent;
use crate::retry::Backoff;

/// Publishes batches.
pub(super) struct Outlet {
    pub broker: Arc<dyn Broker>,
    pub tally: Arc<Tally>,
}

impl Outlet {
    /// Publishes what came of `batch` and acknowledges it. Returns only when that is done, however
    /// long the broker is unavailable.
    pub(super) async fn publish(&self, batch: DecidedBatch) {
        let DecidedBatch { decided, parked, deferred, amendments: _ } = batch;
        let (entries, events): (Vec<Entry>, Vec<Event>) =
            decided.into_iter().map(|(entry, decision)| (entry, Event::of(&decision))).unzip();
        let mut messages: Vec<Message<'_>> = events.iter().map(Message::Event).collect();
        messages
            .extend(entries.iter().zip(&events).filter_map(|(entry, event)| reply(entry, event)));
        self.until_confirmed(&messages).await;
        crash_point("confirmed");
        for entry in entries {
            entry.ticket.done();
        }

        let letters: Vec<Message<'_>> =
            parked.iter().map(|parked| Message::DeadLetter(&parked.letter)).collect();
        self.until_confirmed(&letters).await;
        for parked in parked {
            self.tally.parked(parked.letter.reason);
            parked.ticket.done();
        }
        self.defer(deferred).await;
        crash_point("acked");
    }

    /// Publishes orders once more, to wait on a delay queue.
    async fn defer(&self, deferred: Vec<Deferred>) {
        let (entries, delays): (Vec<Entry>, Vec<Delay>) =
            deferred.into_iter().map(|deferred| (deferred.entry, deferred.delay)).unzip();
        let bodies: Vec<Cow<'_, [u8]>> = entries.iter().map(body).collect();
        let messages: Vec<Message<'_>> = entries
            .iter()
            .zip(&bodies)
            .zip(delays)
            .map(|((entry, body), delay)| Message::Intent {
                routing_key: entry.candidate.order.sale_id.as_str(),
                body,
                properties: Some(entry.ticket.properties()),
                delay: Some(delay),
            })
            .collect();
        self.until_confirmed(&messages).await;
        if !messages.is_empty() {
            crash_point("deferred");
        }
        self.tally.deferred(messages.len());
        drop(messages);
        drop(bodies);
        for entry in entries {
            entry.ticket.done();
        }
    }

    async fn until_confirmed(&self, messages: &[Message<'_>]) {
        if messages.is_empty() {
            return;
        }
        let mut backoff = Backoff::step();
        loop {
            match self.broker.publish(messages).await {
                Ok(published) => return self.tally.unrouted(published.unrouted),
                Err(error) => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?delay, messages = messages.len(), "can't publish");
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }
}

/// The bytes an order came in. One whose time was given by the ledger gets that written in, or it would
/// never expire.
fn body(entry: &Entry) -> Cow<'_, [u8]> {
    match entry.candidate.submitted_at {
        Some(submitted_at) if entry.has_ledger_time => {
            Cow::Owned(intent::to_json(&entry.candidate.order, submitted_at))
        }
        _ => Cow::Borrowed(&entry.ticket.body()[entry.place.clone()]),
    }
}

/// The reply that an order asked for, if it did.
fn reply<'a>(entry: &'a Entry, event: &'a Event) -> Option<Message<'a>> {
    let properties = entry.ticket.properties();
    let (to, correlation_id) =
        (properties.reply_to.as_deref()?, properties.correlation_id.as_deref()?);
    Some(Message::Reply { to, correlation_id, event })
}
