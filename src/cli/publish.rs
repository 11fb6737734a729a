//! Publishing from commands.

use crate::broker::{Broker, BrokerError, Message, Receipt};
use crate::retry::Backoff;

/// How often a publish is tried before a command gives up: for about half a minute.
const MAX_TRIES: usize = 20;

/// Publishes until all is confirmed, and gives the receipts. What is sent twice is the same order, or the same event.
pub(super) async fn publish(
    broker: &dyn Broker,
    messages: &[Message<'_>],
) -> Result<Vec<Receipt>, BrokerError> {
    let mut backoff = Backoff::reconnect();
    for tried in 1.. {
        let published = broker.publish(messages).await;
        let receipts = published.receipts.clone();
        match published.all() {
            Ok(()) => return Ok(receipts),
            Err(error) if tried == MAX_TRIES || matches!(error, BrokerError::Permanent(_)) => {
                return Err(error);
            }
            Err(error) => {
                let delay = backoff.next_delay();
                tracing::warn!(%error, ?delay, "not confirmed, sending again");
                tokio::time::sleep(delay).await;
            }
        }
    }
    unreachable!("the last try returns")
}
