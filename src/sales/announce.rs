//! Announcements: that a sale sold out or was restocked, published at least once.
//!
//! The ledger keeps what is owed in the transaction that made it so, and marks it once the broker has
//! confirmed it; a crash between the two publishes it again, under the same id.

use std::collections::HashSet;

use crate::broker::{Broker, BrokerError, Message};
use crate::domain::event::Event;
use crate::domain::order::SaleId;
use crate::domain::sale::Announcement;
use crate::fault::crash_point;
use crate::ledger::{LedgerError, Outbox};

/// Why announcements are still owed.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The ledger did not say what is owed, or did not take that it is published.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The broker did not take it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Publishes what is owed of these sales.
pub async fn announce<O: Outbox + ?Sized>(
    outbox: &O,
    broker: &dyn Broker,
    sales: &[SaleId],
) -> Result<(), AnnounceError> {
    loop {
        let owed = outbox.unpublished(Some(sales)).await?;
        if owed.is_empty() {
            return Ok(());
        }
        publish(outbox, broker, &owed).await?;
    }
}

/// Publishes what was owed at the look before and still is, of all sales, and remembers what is owed now. What
/// is new, the process publishes that made it so.
pub(crate) async fn announce_left<O: Outbox + ?Sized>(
    outbox: &O,
    broker: &dyn Broker,
    seen: &mut HashSet<Announcement>,
) -> Result<(), AnnounceError> {
    let owed = outbox.unpublished(None).await?;
    let left: Vec<Announcement> =
        owed.iter().filter(|announcement| seen.contains(announcement)).cloned().collect();
    *seen = owed.into_iter().collect();
    publish(outbox, broker, &left).await
}

async fn publish<O: Outbox + ?Sized>(
    outbox: &O,
    broker: &dyn Broker,
    owed: &[Announcement],
) -> Result<(), AnnounceError> {
    if owed.is_empty() {
        return Ok(());
    }
    let events: Vec<Event> = owed.iter().map(Event::announcing).collect();
    let messages: Vec<Message<'_>> = events.iter().map(Message::Event).collect();
    let published = broker.publish(&messages).await;
    crash_point("announced");
    // Those of a sale are told in their order: behind one that was not taken, all come again.
    let (mut taken, mut held_up) = (Vec::new(), HashSet::new());
    for (announcement, receipt) in owed.iter().zip(&published.receipts) {
        let (sale, ..) = announcement.key();
        if receipt.is_done() && !held_up.contains(sale) {
            taken.push(announcement.clone());
        } else {
            held_up.insert(sale);
        }
    }
    outbox.published(&taken).await?;
    published.all()?;
    Ok(())
}
