//! The feed: every event, kept for a while besides, and read from any place.

use std::time::Duration;

use serde::Deserialize;
use serde_with::{DurationSeconds, serde_as};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{BrokerError, PublishedAs, Topic};

/// Messages to read ahead, of about half a kilobyte, and batches, of up to `events.max_batch_bytes`: there may be
/// hundreds of readers.
const AHEAD: u16 = 100;
const BATCHES_AHEAD: u16 = 4;

/// Section `feed` of the settings, described in `config/floodgate.toml`.
#[serde_as]
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct FeedSettings {
    pub enabled: bool,
    #[serde(rename = "max_age_s")]
    #[serde_as(as = "DurationSeconds<u64>")]
    pub max_age: Duration,
    pub max_bytes: u64,
}

/// How the feed is kept.
#[derive(Debug, Clone, Copy)]
pub struct FeedBounds {
    /// In which form it has the events of orders.
    pub publish: PublishedAs,
    /// The age from which on events are removed, about.
    pub max_age: Duration,
    /// The size from which on the oldest are removed, about.
    pub max_bytes: u64,
}

impl FeedBounds {
    /// What `settings` say, where events are published as `publish`; `None`: there is no feed.
    pub fn of(settings: FeedSettings, publish: PublishedAs) -> Option<Self> {
        let FeedSettings { enabled, max_age, max_bytes } = settings;
        enabled.then_some(Self { publish, max_age, max_bytes })
    }

    /// How many messages to read ahead, from the broker and then for who reads.
    pub(super) fn ahead(&self) -> u16 {
        if self.publish.has_single() { AHEAD } else { BATCHES_AHEAD }
    }

    /// What the feed gets.
    pub(super) fn topics(&self) -> Vec<Topic<'static>> {
        if self.publish.has_single() {
            vec![Topic::Events("#")]
        } else {
            vec![Topic::Events("sale.#"), Topic::Batches("#")]
        }
    }
}

/// A message of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fed {
    /// Its place. Later ones have higher places.
    pub offset: u64,
    /// The data of an event, or a batch.
    pub body: Vec<u8>,
}

/// Why the feed can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// What comes next is not kept any more.
    #[error("what follows is not kept any more")]
    NotKept,
    /// The broker can't be read from.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl FeedError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_transient())
    }
}

/// Reads the feed from some place on. Ends when dropped.
pub struct FeedReader {
    fed: mpsc::Receiver<Result<Fed, FeedError>>,
    _reading: AbortOnDropHandle<()>,
}

impl FeedReader {
    /// What `read` sends, up to `ahead` messages before they are wanted.
    pub(super) fn start<F>(
        ahead: u16,
        read: impl FnOnce(mpsc::Sender<Result<Fed, FeedError>>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (send, fed) = mpsc::channel(ahead.into());
        Self { fed, _reading: AbortOnDropHandle::new(tokio::spawn(read(send))) }
    }

    /// The next message; waits for one to come. After an error there is nothing more: read again from the last place.
    pub async fn next(&mut self) -> Result<Fed, FeedError> {
        let gone = || Err(BrokerError::Transient("the connection is lost".into()).into());
        self.fed.recv().await.unwrap_or_else(gone)
    }
}
