//! Publish: tell subscribers and askers, park dead letters, then acknowledge.

use std::borrow::Cow;
use std::sync::Arc;

use super::batch::{Entry, PutOff};
use super::record::DecidedBatch;
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
    /// long the broker is away.
    pub(super) async fn publish(&self, batch: DecidedBatch) {
        let DecidedBatch { decided, sold_out, parked, put_off } = batch;
        let (entries, events): (Vec<Entry>, Vec<Event>) =
            decided.into_iter().map(|(entry, decision)| (entry, Event::of(&decision))).unzip();
        // Before the intents are acknowledged, so that a crash can't keep a sale's end from being told.
        let sold_out: Vec<Event> = sold_out.iter().map(Event::sold_out).collect();
        let mut messages: Vec<Message<'_>> =
            events.iter().chain(&sold_out).map(Message::Event).collect();
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
        self.put_off(put_off).await;
        crash_point("acked");
    }

    /// Publishes orders once more, to wait on a delay queue.
    async fn put_off(&self, put_off: Vec<PutOff>) {
        let (entries, delays): (Vec<Entry>, Vec<Delay>) =
            put_off.into_iter().map(|put_off| (put_off.entry, put_off.delay)).unzip();
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
            crash_point("put_off");
        }
        self.tally.put_off(messages.len());
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

/// The bytes an order came in. One that came without a time of submission gets it, or it would never
/// be too old.
fn body(entry: &Entry) -> Cow<'_, [u8]> {
    if entry.dated {
        Cow::Borrowed(&entry.ticket.body()[entry.place.clone()])
    } else {
        Cow::Owned(intent::to_json(&entry.candidate.order, entry.candidate.at))
    }
}

/// The reply that an order asked for, if it did.
fn reply<'a>(entry: &'a Entry, event: &'a Event) -> Option<Message<'a>> {
    let properties = entry.ticket.properties();
    let (to, correlation_id) =
        (properties.reply_to.as_deref()?, properties.correlation_id.as_deref()?);
    Some(Message::Reply { to, correlation_id, event })
}
