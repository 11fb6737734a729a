//! Replies: best effort, on a connection of their own, so that whatever becomes of one delays nothing
//! else and costs no other reply.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use lapin::{Channel, Connection};
use tokio::sync::mpsc;

use super::publisher::{confirming, publish, receipt};
use super::wire;
use super::{Frames, Link};
use crate::broker::{BrokerError, Receipt, Reply};
use crate::retry::Backoff;

/// Replies that wait to be sent, about 1 KiB each. While the broker keeps up there are none.
const MAX_WAITING: usize = 4096;
/// Replies taken at once.
const CHUNK: usize = 256;

/// Sends replies.
pub(super) struct Replies {
    link: Arc<Link>,
    /// Starts with the first reply.
    waiting: OnceLock<mpsc::Sender<Reply>>,
}

/// Sends them.
struct Replier {
    link: Arc<Link>,
    connection: Option<Connection>,
    channel: Option<Channel>,
}

impl Replies {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, waiting: OnceLock::new() }
    }

    /// Hands a reply in, or drops it when too many wait or it wants to go to one of our queues.
    pub(super) fn hand_in(&self, reply: Reply) {
        let waiting = self.waiting.get_or_init(|| {
            let (hand_in, waiting) = mpsc::channel(MAX_WAITING);
            let replier = Replier { link: self.link.clone(), connection: None, channel: None };
            // Ends with the broker, which holds the only sender.
            tokio::spawn(replier.run(waiting));
            hand_in
        });
        if self.link.topology.is_own(&reply.to) || waiting.try_send(reply).is_err() {
            self.link.metrics.dropped_replies.inc();
        }
    }
}

impl Replier {
    async fn run(mut self, mut waiting: mpsc::Receiver<Reply>) {
        let mut backoff = Backoff::step();
        let mut replies = Vec::new();
        while waiting.recv_many(&mut replies, CHUNK).await > 0 {
            if let Err(error) = self.ready().await {
                tracing::debug!(%error, "no connection for replies");
                self.drop_all(replies.drain(..).len());
                tokio::time::sleep(backoff.next_delay()).await;
                continue;
            }
            backoff.reset();
            let messages = together(&replies);
            let left = self.send(&messages).await;
            if left.len() == messages.len() && left.len() == 1 {
                self.drop_all(messages[0].len());
            } else {
                // One of them may have closed the channel on all. Alone, each hurts only itself.
                for place in left {
                    let alone = std::slice::from_ref(&messages[place]);
                    let sent = self.ready().await.is_ok() && self.send(alone).await.is_empty();
                    self.drop_all(if sent { 0 } else { alone[0].len() });
                }
            }
            drop(messages);
            replies.clear();
        }
    }

    fn drop_all(&self, count: usize) {
        self.link.metrics.dropped_replies.inc_by(count as u64);
    }

    /// Opens what is not open.
    async fn ready(&mut self) -> Result<(), BrokerError> {
        if self.channel.as_ref().is_some_and(|channel| channel.status().connected()) {
            return Ok(());
        }
        if self.connection.as_ref().is_none_or(|connection| !connection.status().connected()) {
            self.connection = Some(self.link.connect("replies", Frames::Large).await?);
        }
        if let Some(connection) = &self.connection {
            self.channel = Some(self.link.within(confirming(connection)).await?);
        }
        Ok(())
    }

    /// Sends messages of replies, and returns the places of those of which it is not known that they have
    /// arrived or cannot.
    async fn send(&mut self, messages: &[Vec<&Reply>]) -> Vec<usize> {
        let Some(channel) = self.channel.clone() else { return (0..messages.len()).collect() };
        let mut left: Vec<usize> = Vec::new();
        let sending = async {
            let mut confirms = Vec::new();
            let publications =
                messages.iter().filter_map(|replies| wire::replies(replies, &self.link.topology));
            for publication in publications {
                confirms.push(publish(&channel, publication, false).await);
            }
            let mut receipts = Vec::new();
            for confirm in confirms {
                receipts.push(match confirm {
                    Ok(confirm) => confirm
                        .await
                        .map_or(Receipt::Unconfirmed, |confirmation| receipt(&confirmation)),
                    Err(_) => Receipt::Unconfirmed,
                });
            }
            Ok(receipts)
        };
        match self.link.within(sending).await {
            Ok(receipts) => {
                for (place, receipt) in receipts.into_iter().enumerate() {
                    match receipt {
                        Receipt::Full => self.drop_all(messages[place].len()),
                        Receipt::Unconfirmed => left.push(place),
                        _ => {}
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "replies are not confirmed in time");
                self.drop_all(messages.iter().map(Vec::len).sum());
                (self.channel, self.connection) = (None, None);
            }
        }
        left
    }
}

/// The messages of replies: those that may come together, by address and correlation id, and every other one
/// alone.
fn together(replies: &[Reply]) -> Vec<Vec<&Reply>> {
    let mut messages: Vec<Vec<&Reply>> = Vec::new();
    let mut batches: HashMap<(&str, &str), usize> = HashMap::new();
    for reply in replies {
        let key = (reply.to.as_str(), reply.correlation_id.as_str());
        match batches.get(&key) {
            Some(&place) if reply.in_batches => messages[place].push(reply),
            _ => {
                if reply.in_batches {
                    batches.insert(key, messages.len());
                }
                messages.push(vec![reply]);
            }
        }
    }
    messages
}
