//! Keys that the issuer of tokens publishes and changes: kept in memory, and read again beside the
//! requests, never by one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::jwks::{InvalidKeySet, KeySet};
use super::location::{Location, Unreadable, read_file};
use crate::outage::Outage;

/// How often a file is read. It can be replaced at any time, for instance by Kubernetes.
const READ_FILE_EVERY: Duration = Duration::from_secs(2);
/// How soon a URL is read again that could not be read.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How soon a URL is read again, at the earliest, because tokens name an unknown key. Any client can send
/// such tokens.
const SOONEST: Duration = Duration::from_secs(10);

/// The keys at one location, as they were when it was last read.
#[derive(Debug)]
pub(super) struct PublishedKeys {
    location: Location,
    every: Duration,
    known: RwLock<Option<Arc<KeySet>>>,
    wanted: Notify,
}

/// Why no keys can be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysUnavailable {
    /// The location can't be read.
    #[error("the keys of jwt_jwks: {0}")]
    Unreadable(#[from] Unreadable),
    /// What is there is no set of keys.
    #[error("the keys of jwt_jwks: {0}")]
    Invalid(#[from] InvalidKeySet),
}

impl PublishedKeys {
    /// The keys at `location`. Those in a file are read at once, those at a URL not yet, and then every
    /// so often.
    pub(super) fn new(location: Location, every: Duration) -> Result<Self, KeysUnavailable> {
        let (every, known) = match &location {
            Location::File(path) => {
                (READ_FILE_EVERY, Some(Arc::new(KeySet::parse(&read_file(path)?)?)))
            }
            Location::Url(..) => (every, None),
        };
        Ok(Self { location, every, known: RwLock::new(known), wanted: Notify::new() })
    }

    /// The keys that are known; `None` until they have been read for the first time.
    pub(super) fn known(&self) -> Option<Arc<KeySet>> {
        self.known.read().clone()
    }

    /// Has the keys read soon, because a token names one that is not known.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Reads the keys now.
    pub(super) async fn read(&self) -> Result<Arc<KeySet>, KeysUnavailable> {
        let set = Arc::new(KeySet::parse(&self.location.read().await?)?);
        *self.known.write() = Some(set.clone());
        Ok(set)
    }

    /// Keeps the keys up to date for as long as it is polled. What can't be read changes nothing.
    pub(super) async fn keep_up(&self, outage: Outage) {
        loop {
            let (read_at, before) = (Instant::now(), self.known());
            let read = outage.noted(self.read().await, |_| true);
            if let Ok(set) = &read
                && before.is_none_or(|before| before.names() != set.names())
            {
                tracing::info!(keys = set.names().len(), "the keys of tokens have changed");
            }
            let pause = if read.is_ok() { self.every } else { self.every.min(RETRY_AFTER) };
            tokio::select! {
                () = sleep_until(read_at + pause) => {}
                () = self.wanted.notified() => sleep_until(read_at + pause.min(SOONEST)).await,
            }
        }
    }
}
