//! The ledger's port for retention: decisions that leave for an archive file, and come back.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use super::LedgerError;
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::event::rfc3339;
use crate::domain::order::{OrderKey, SaleId};
use crate::domain::sale::SaleState;

/// What is kept of orders whose decisions are in an archive.
#[async_trait]
pub trait ArchivedOrders: Send + Sync {
    /// What is kept of those of `orders` that are archived, one answer for each key, in order.
    async fn archived(
        &self,
        orders: &[OrderKey],
    ) -> Result<Vec<Option<ArchivedOrder>>, LedgerError>;
}

/// Moves decisions between the ledger and archives. Every call is safe to repeat, and changes all or nothing.
#[async_trait]
pub trait Archive: Send + Sync {
    /// The archives of a sale, or all, the oldest first.
    async fn archives(&self, sale: Option<&SaleId>) -> Result<Vec<ArchiveRecord>, LedgerError>;

    /// Stores how far an archive is; refuses a stage that can't follow the one before. Before
    /// [`ArchiveStage::Moving`] the sale must have been closed for `max_age`. From then on its orders are looked up
    /// among the archived ones: returns once every transaction that does not do so yet has ended.
    async fn record(&self, archive: &ArchiveRecord, max_age: Duration) -> Result<(), LedgerError>;

    /// Moves `decisions`, as they are in the file of `archive`, which is [`ArchiveStage::Moving`], out of the ledger,
    /// and returns how many were still there. What is kept of each stays. Refused if the ledger has another
    /// decision, or none, for one of the orders.
    async fn move_out(
        &self,
        archive: &ArchiveRecord,
        decisions: &[Decision],
    ) -> Result<u64, LedgerError>;

    /// The opposite, for an archive that is [`ArchiveStage::Restoring`].
    async fn move_back(
        &self,
        archive: &ArchiveRecord,
        decisions: &[Decision],
    ) -> Result<u64, LedgerError>;

    /// Forgets an archive whose decisions are back. With the last one the sale is archived no more.
    async fn forget(&self, archive: &ArchiveRecord) -> Result<(), LedgerError>;
}

/// A file with decisions of a sale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRecord {
    /// The sale.
    pub sale_id: SaleId,
    /// Tells it apart from other archives of the sale.
    pub archive_id: String,
    /// How far it is.
    pub stage: ArchiveStage,
    /// Where the file was put.
    pub file: String,
    /// Of the file, in hex; empty while it is written.
    pub sha256: String,
    /// How many there are in the file.
    pub decisions: u64,
    /// When it was begun.
    pub created_at: DateTime<Utc>,
}

/// How far an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveStage {
    /// Its file is written. The ledger has all decisions.
    Writing,
    /// The file is verified, and decisions leave the ledger.
    Moving,
    /// The decisions are in the file alone.
    Done,
    /// They come back.
    Restoring,
}

impl ArchiveStage {
    /// Every stage.
    pub const ALL: [Self; 4] = [Self::Writing, Self::Moving, Self::Done, Self::Restoring];

    /// The word used in the ledger and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writing => "writing",
            Self::Moving => "moving",
            Self::Done => "done",
            Self::Restoring => "restoring",
        }
    }

    /// Whether an archive may get to this stage from `before`; `None`: it is new.
    pub(super) fn follows(self, before: Option<Self>) -> bool {
        match self {
            Self::Writing => matches!(before, None | Some(Self::Writing)),
            Self::Moving => matches!(before, Some(Self::Writing | Self::Moving)),
            Self::Done => matches!(before, Some(Self::Moving | Self::Done)),
            Self::Restoring => before.is_some(),
        }
    }
}

/// Why a sale can't be archived now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sale {sale} {why}; accepted: a sale that closed intent.max_age_s ago and is not paused")]
pub struct NotArchivable {
    sale: SaleId,
    why: String,
}

/// Says why the decisions of a sale must stay at `now`, if they must. Until all orders that may be queued are
/// older than `max_age`, units and buyers are needed to decide them.
pub fn archivable(
    state: &SaleState,
    now: DateTime<Utc>,
    max_age: Duration,
) -> Result<(), NotArchivable> {
    let refused = |why: String| NotArchivable { sale: state.sale.id.clone(), why };
    if let Some(mode) = state.paused {
        return Err(refused(format!("is paused ({})", mode.name())));
    }
    let closes_at = state.sale.closes_at.ok_or_else(|| refused("has no end".to_owned()))?;
    if now < closes_at {
        return Err(refused(format!("is open until {}", rfc3339(closes_at))));
    }
    // Orders that were held are as old as the end of that.
    let last = state.held_until.map_or(closes_at, |until| until.max(closes_at));
    let settled_at = last + TimeDelta::from_std(max_age).unwrap_or(TimeDelta::MAX);
    if now <= settled_at {
        let (closed, from) = (rfc3339(closes_at), rfc3339(settled_at));
        return Err(refused(format!("closed at {closed}, and its last orders are old at {from}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sale::{PauseMode, Sale};

    #[test]
    fn a_sale_may_be_archived_once_none_of_its_orders_can_be_sold() {
        let time = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let sale = Sale {
            id: SaleId::parse("s").unwrap(),
            stock: 1,
            per_user_limit: None,
            opens_at: None,
            closes_at: None,
            verification: false,
        };
        let mut state = SaleState::opened(sale);
        let at = |state: &SaleState, seconds| {
            archivable(state, time(seconds), Duration::from_secs(10)).is_ok()
        };
        assert!(!at(&state, 1000), "it has no end");
        state.close(time(100));
        assert!(!at(&state, 99) && !at(&state, 110) && at(&state, 111));
        state.pause(Some(PauseMode::Hold), time(120));
        assert!(!at(&state, 1000), "its orders are held");
        state.pause(None, time(200));
        assert!(!at(&state, 210) && at(&state, 211));
    }

    #[test]
    fn stages_follow_each_other() {
        use ArchiveStage::{Done, Moving, Restoring, Writing};
        let order = [None, Some(Writing), Some(Moving), Some(Done)];
        for (n, stage) in [Writing, Moving, Done].into_iter().enumerate() {
            assert!(stage.follows(order[n]) && stage.follows(Some(stage)));
            assert!(!stage.follows(Some(Restoring)));
        }
        assert!(!Moving.follows(None) && !Moving.follows(Some(Done)));
        assert!(Restoring.follows(Some(Moving)) && !Restoring.follows(None));
    }
}
