//! The nodes of a cluster, any of which does.

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};

use crate::broker::BrokerError;
use crate::hosts;

/// Where connections go: each to the next node, so that one that takes connections and does no work, as those in a
/// minority may, is left with the next try.
pub(super) struct Nodes {
    all: Vec<AMQPUri>,
    next: AtomicUsize,
}

impl Nodes {
    /// The nodes that `url` names. All of them can be tried within `timeout`.
    pub(super) fn of(
        url: &SecretString,
        heartbeat_s: u16,
        timeout: Duration,
    ) -> Result<Self, BrokerError> {
        let urls = hosts::each(url.expose_secret());
        let each = timeout / u32::try_from(urls.len()).unwrap_or(u32::MAX);
        let each = u64::try_from(each.as_millis()).unwrap_or(u64::MAX);
        let node = |url: String| {
            // The parser's own message may repeat the URL with its password.
            let mut uri: AMQPUri = url.parse().map_err(|_| {
                let accepted = "amqp://user:password@host:port/vhost; hosts may be several, separated by commas";
                BrokerError::Permanent(format!("the AMQP URL is not {accepted}").into())
            })?;
            uri.query.heartbeat.get_or_insert(heartbeat_s);
            uri.query.connection_timeout.get_or_insert(each);
            Ok(uri)
        };
        let all = urls.into_iter().map(node).collect::<Result<_, _>>()?;
        Ok(Self { all, next: AtomicUsize::new(0) })
    }

    /// What `connect` makes of the first node that it can make anything of.
    pub(super) async fn first<T, E: Display, C: Future<Output = Result<T, E>>>(
        &self,
        connect: impl Fn(AMQPUri) -> C,
    ) -> Result<T, E> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.all.len();
        let (after, before) = (&self.all[turn..], &self.all[..turn]);
        let mut left = self.all.len();
        for node in after.iter().chain(before) {
            left -= 1;
            match connect(node.clone()).await {
                Err(error) if left > 0 => {
                    tracing::debug!(%error, host = node.authority.host, "cannot connect to a node");
                }
                result => return result,
            }
        }
        unreachable!("a URL names a host")
    }
}
