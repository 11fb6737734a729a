//! Publishing: everything is confirmed, nothing waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, PublisherConfirm};
use tokio::sync::Mutex;

use super::wire::{self, Publication};
use super::{Frames, Link, classify_error};
use crate::broker::{BrokerError, Message, Published, Receipt};
use crate::fault::crash_point;

/// Channels for messages that must arrive; so many batches of them can be on their way at once.
const EXACT_CHANNELS: usize = 4;

/// RabbitMQ's page on `connection.blocked`.
const BLOCKED: BrokerError = BrokerError::Full("RabbitMQ is short of memory or disk");

/// Publishes on one connection, made when it is needed and given up after any failure.
pub(super) struct Publisher {
    link: Arc<Link>,
    lanes: Mutex<Option<Lanes>>,
    next_exact: AtomicUsize,
    /// It had a connection before.
    has_connected: AtomicBool,
}

/// The channels of a connection.
#[derive(Clone)]
struct Lanes {
    connection: Arc<Connection>,
    /// For events, which may well have no taker.
    events: Channel,
    /// For messages that must arrive in a queue. The client library may hand a returned message to
    /// the confirm of another one, so only a channel with one batch at a time tells whose it was.
    exact: Arc<[Mutex<Channel>; EXACT_CHANNELS]>,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let (next_exact, has_connected) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { link, lanes: Mutex::new(None), next_exact, has_connected }
    }

    /// A channel to ask the server something; the answer may close it.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let lanes = self.lanes().await?;
        self.link.within(lanes.connection.create_channel()).await
    }

    pub(super) async fn publish(&self, messages: &[Message<'_>]) -> Published {
        let unconfirmed =
            |error| Published::alike(messages.len(), Receipt::Unconfirmed, Some(error));
        let lanes = match self.lanes().await {
            Ok(lanes) if lanes.connection.status().blocked() => return unconfirmed(BLOCKED),
            Ok(lanes) => lanes,
            Err(error) => return unconfirmed(error),
        };
        let is_event = |place: &usize| messages[*place].is_for_subscribers();
        let (events, exact): (Vec<_>, Vec<_>) = (0..messages.len()).partition(is_event);
        let mut published = unconfirmed(BLOCKED);
        published.error = None;
        self.send(&lanes.events, messages, &events, &mut published).await;
        if !exact.is_empty() {
            let turn = self.next_exact.fetch_add(1, Ordering::Relaxed) % EXACT_CHANNELS;
            let channel = lanes.exact[turn].lock().await;
            self.send(&channel, messages, &exact, &mut published).await;
            // It may not be the right ones that are said to have found no queue.
            if exact.iter().any(|&place| published.receipts[place] == Receipt::NoSubscriber) {
                for place in exact {
                    published.receipts[place] = Receipt::NoQueue;
                }
                // A new connection declares what is missing.
                published.error = Some(BrokerError::NoQueue);
            }
        }
        match &published.error {
            None => self.link.outage.answered(),
            Some(BrokerError::NoQueue) => {}
            Some(error) => self.link.outage.failed(error),
        }
        if published.error.is_some() {
            // RabbitMQ tells a connection that it is blocked at its first publish. That one waits in
            // the connection until the alarm is over; opening others meanwhile would only add to it.
            if lanes.connection.status().blocked() {
                published.error = Some(BLOCKED);
            } else {
                self.give_up(&lanes).await;
            }
        }
        published
    }

    /// Publishes those of `messages` that stand at `places`, and notes what became of each.
    async fn send(
        &self,
        channel: &Channel,
        messages: &[Message<'_>],
        places: &[usize],
        published: &mut Published,
    ) {
        let names = &self.link.topology;
        let sending = places.iter().map(|&place| async move {
            let publication = wire::publication(&messages[place], names);
            publish(channel, publication, true).await.map(|confirm| (place, confirm))
        });
        let sent = match self.link.within(try_join_all(sending)).await {
            Ok(sent) => sent,
            Err(error) => {
                published.error = Some(error);
                return;
            }
        };
        crash_point("published");
        let _unconfirmed = self.link.metrics.unconfirmed(sent.len());
        let mut waiting = sent.into_iter();
        let confirming = self.link.within(async {
            for (place, confirm) in &mut waiting {
                published.receipts[place] = receipt(&confirm.await?);
            }
            Ok(())
        });
        if let Err(error) = confirming.await {
            published.error = Some(error);
            // Those behind the one that failed may be confirmed all the same.
            for (place, confirm) in waiting {
                if let Some(Ok(confirmation)) = confirm.now_or_never() {
                    published.receipts[place] = receipt(&confirmation);
                }
            }
        }
    }

    async fn lanes(&self) -> Result<Lanes, BrokerError> {
        let mut lanes = self.lanes.lock().await;
        if let Some(lanes) = &*lanes
            && lanes.connection.status().connected()
            && lanes.events.status().connected()
        {
            return Ok(lanes.clone());
        }
        let connection = self.link.connect("publisher", Frames::Large).await?;
        if self.has_connected.swap(true, Ordering::Relaxed) {
            self.link.metrics.reconnects.inc();
        }
        let opening = async {
            let events = confirming(&connection).await?;
            let exact = [
                Mutex::new(confirming(&connection).await?),
                Mutex::new(confirming(&connection).await?),
                Mutex::new(confirming(&connection).await?),
                Mutex::new(confirming(&connection).await?),
            ];
            Ok((events, exact))
        };
        let (events, exact) = self.link.within(opening).await?;
        let opened = Lanes { connection: Arc::new(connection), events, exact: Arc::new(exact) };
        *lanes = Some(opened.clone());
        Ok(opened)
    }

    /// Closes the connection that failed, unless a new one has taken its place. Confirms that are
    /// still to come on it mean nothing to anyone.
    async fn give_up(&self, failed: &Lanes) {
        let mut lanes = self.lanes.lock().await;
        if lanes.as_ref().is_some_and(|lanes| Arc::ptr_eq(&lanes.connection, &failed.connection)) {
            *lanes = None;
        }
        let (connection, timeout) = (failed.connection.clone(), self.link.timeout);
        tokio::spawn(async move {
            // Best effort: a connection that is gone needs no closing.
            let closing = connection.close(200, "given up".into());
            let _ = tokio::time::timeout(timeout, async { closing.await.map_err(classify_error) })
                .await;
        });
    }
}

/// The receipt for a confirmation. For a returned message it is [`Receipt::NoSubscriber`]; the caller
/// corrects that where the message is no event.
pub(super) fn receipt(confirmation: &Confirmation) -> Receipt {
    match confirmation {
        Confirmation::Ack(None) => Receipt::Confirmed,
        Confirmation::Ack(Some(_)) => Receipt::NoSubscriber,
        Confirmation::Nack(_) => Receipt::Full,
        Confirmation::NotRequested => Receipt::Unconfirmed,
    }
}

/// Publishes on a channel; the confirm comes later. If `mandatory`, a message without a queue comes back.
pub(super) async fn publish(
    channel: &Channel,
    publication: Publication<'_>,
    mandatory: bool,
) -> Result<PublisherConfirm, lapin::Error> {
    let Publication { exchange, routing_key, body, properties } = publication;
    let options = BasicPublishOptions { mandatory, ..Default::default() };
    channel.basic_publish(exchange, routing_key, options, &body, properties).await
}

/// A channel whose publishes are confirmed.
pub(super) async fn confirming(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}
