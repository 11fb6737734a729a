//! Publishing: everything is confirmed, nothing waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection};
use tokio::sync::Mutex;

use super::wire::{self, Publication};
use super::{Link, sorted};
use crate::broker::{BrokerError, Message, Published};
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
}

/// The channels of a connection.
#[derive(Clone)]
struct Lanes {
    connection: Arc<Connection>,
    /// For events and replies, which may well have no taker.
    events: Channel,
    /// For messages that must arrive in a queue. The client library may hand a returned message to
    /// the confirm of another one, so only a channel with one batch at a time tells whose it was.
    exact: Arc<[Mutex<Channel>; EXACT_CHANNELS]>,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, lanes: Mutex::new(None), next_exact: AtomicUsize::new(0) }
    }

    /// A channel to ask the server something; the answer may close it.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let lanes = self.lanes().await?;
        self.link.within(lanes.connection.create_channel()).await
    }

    pub(super) async fn publish(&self, messages: &[Message<'_>]) -> Result<Published, BrokerError> {
        let lanes = self.lanes().await?;
        if lanes.connection.status().blocked() {
            return Err(BLOCKED);
        }
        let (events, exact): (Vec<_>, Vec<_>) = messages
            .iter()
            .partition(|message| matches!(message, Message::Event(_) | Message::Reply { .. }));
        let published = async {
            let unrouted = self.send(&lanes.events, &events).await?;
            if !exact.is_empty() {
                let turn = self.next_exact.fetch_add(1, Ordering::Relaxed) % EXACT_CHANNELS;
                let channel = lanes.exact[turn].lock().await;
                if self.send(&channel, &exact).await? > 0 {
                    return Err(BrokerError::Unroutable(match exact[0] {
                        Message::DeadLetter(_) => "dead letters",
                        _ => "intents",
                    }));
                }
            }
            Ok(Published { unrouted })
        }
        .await;
        // RabbitMQ tells a connection that it is blocked at its first publish. That one waits in
        // the connection until the alarm is over; opening others meanwhile would only add to it.
        let published = match published {
            Err(_) if lanes.connection.status().blocked() => Err(BLOCKED),
            other => other,
        };
        match &published {
            // What is wrong is not the connection, and a new one would change nothing.
            Ok(_) | Err(BrokerError::Full(_)) => {}
            Err(_) => self.give_up(&lanes).await,
        }
        published
    }

    /// Publishes all of `messages` and waits for their confirms. Returns how many came back,
    /// having found no queue.
    async fn send(
        &self,
        channel: &Channel,
        messages: &[&Message<'_>],
    ) -> Result<usize, BrokerError> {
        let names = &self.link.topology;
        let sending = messages.iter().map(|message| async move {
            let Publication { exchange, routing_key, body, properties } =
                wire::publication(message, names);
            // A reply whose asker has left is of no interest to anyone.
            let mandatory = !matches!(message, Message::Reply { .. });
            let options = BasicPublishOptions { mandatory, ..Default::default() };
            channel.basic_publish(exchange, routing_key, options, body, properties).await
        });
        let confirms = self.link.within(try_join_all(sending)).await?;
        crash_point("published");
        let confirmed = self.link.within(try_join_all(confirms)).await?;
        let mut returned = 0;
        for confirmation in confirmed {
            match confirmation {
                Confirmation::Ack(message) => returned += usize::from(message.is_some()),
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    return Err(BrokerError::Full("a queue is full"));
                }
            }
        }
        Ok(returned)
    }

    async fn lanes(&self) -> Result<Lanes, BrokerError> {
        let mut lanes = self.lanes.lock().await;
        if let Some(lanes) = &*lanes
            && lanes.connection.status().connected()
            && lanes.events.status().connected()
        {
            return Ok(lanes.clone());
        }
        let connection = self.link.connect("publisher").await?;
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
            let _ = tokio::time::timeout(timeout, async { closing.await.map_err(sorted) }).await;
        });
    }
}

/// A channel whose publishes are confirmed.
async fn confirming(connection: &Connection) -> Result<Channel, lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}
