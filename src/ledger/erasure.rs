//! The ledger's port for erasure: a user's id that is replaced in all that is kept.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::LedgerError;
use super::archive::ArchiveRecord;
use crate::domain::order::{SaleId, UserId};

/// Replaces a user's id by a token, which is another one in each sale. Every call is safe to repeat.
#[async_trait]
pub trait Erasure: Send + Sync {
    /// The sales in which anything is kept of a user.
    async fn kept_of(&self, user: &UserId) -> Result<BTreeMap<SaleId, KeptOfUser>, LedgerError>;

    /// Has the user's orders in these sales, those that exist, be taken as orders of its token from now on, and
    /// returns the tokens. Refused for a sale whose decisions are moving. Units that the user has there are the token's. Returns once no transaction runs that does
    /// not know.
    async fn begin(
        &self,
        user: &UserId,
        sales: &[SaleId],
    ) -> Result<BTreeMap<SaleId, UserId>, LedgerError>;

    /// Replaces the user in the decisions of a sale by its token there, and returns in how many. Refused while they
    /// are moving.
    async fn replace(
        &self,
        user: &UserId,
        sale: &SaleId,
        token: &UserId,
    ) -> Result<u64, LedgerError>;

    /// An archive has another file than before. Refused if it is not as it was `before`.
    async fn replace_file(
        &self,
        before: &ArchiveRecord,
        now: &ArchiveRecord,
    ) -> Result<(), LedgerError>;
}

/// What a sale keeps of a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptOfUser {
    /// Decisions in the ledger, and units if there are any, have the user's id.
    pub in_ledger: bool,
    /// Archived orders have the user's fingerprint: the id is in the sale's files, or was.
    pub in_archive: bool,
}
