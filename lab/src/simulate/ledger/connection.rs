//! The ledger as a worker sees it: transactions of the database.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use floodgate::domain::decision::Decision;
use floodgate::domain::erasure::ArchivedOrder;
use floodgate::domain::order::{OrderId, OrderKey, SaleId, UserId};
use floodgate::domain::sale::{Announcement, Sale, SaleState};
use floodgate::ledger::recipe::{self, Changes, SalesRead, Transaction};
use floodgate::ledger::{
    ArchivedOrders, Change, Changed, Decided, Ledger, LedgerError, Opening, Outbox, Proposed,
};

use super::{Committed, Database, Failure, IDLE_LIMIT, Row};
use crate::simulate::broker::Frozen;
use crate::simulate::plan::{Fault, UNDECIDABLE};

/// The ledger as a worker sees it.
pub(in crate::simulate) struct Connection {
    pub database: Arc<Database>,
    pub frozen: Arc<Frozen>,
    pub has_repeats: AtomicBool,
}

impl Connection {
    async fn answer(&self) -> Result<(), Failure> {
        let world = &self.database.world;
        self.frozen.thawed(world).await;
        world.latency(Fault::SlowLedger).await;
        if world.strikes(Fault::Ledger, 30) { Err(Failure::Unavailable) } else { Ok(()) }
    }

    async fn transaction(&self) -> Result<Open<'_>, Failure> {
        self.answer().await?;
        Ok(Open { connection: self, id: self.database.begin(), written: None })
    }
}

/// A transaction.
struct Open<'a> {
    connection: &'a Connection,
    id: u64,
    written: Option<Written>,
}

struct Written {
    decisions: Vec<Decision>,
    sales: Vec<SaleState>,
    units: Vec<(SaleId, UserId, u32)>,
    announcements: Vec<Announcement>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.connection.database.end(self.id);
    }
}

impl Open<'_> {
    /// Reaches the database with a statement, unless the transaction is lost.
    async fn statement(&self) -> Result<(), Failure> {
        self.connection.answer().await?;
        let database = &self.connection.database;
        if database.world.strikes(Fault::Deadlock, 40) {
            return Err(Failure::Deadlock);
        }
        let mut tables = database.tables.lock();
        let now = database.world.age();
        let heard = tables.open.get_mut(&self.id).ok_or(Failure::Unavailable)?;
        if now.saturating_sub(*heard) > IDLE_LIMIT + IDLE_LIMIT {
            return Err(Failure::Unavailable);
        }
        *heard = now;
        Ok(())
    }

    fn read_sales(&self, ids: &[&SaleId]) -> SalesRead {
        let database = &self.connection.database;
        let tables = database.tables.lock();
        let found = ids.iter().filter_map(|id| tables.sales.get(*id));
        let sales = found.map(|state| (state.sale.id.clone(), state.clone())).collect();
        (database.world.now(), sales)
    }

    fn store(&mut self) {
        let Some(written) = self.written.take() else { return };
        let database = &self.connection.database;
        let mut tables = database.tables.lock();
        for state in &written.sales {
            if let Some(stored) = tables.sales.get_mut(&state.sale.id) {
                stored.sold = state.sold;
                stored.sold_out_at = state.sold_out_at;
            }
        }
        for (sale, user, units) in written.units {
            tables.units.insert((sale, user), units);
        }
        tables.announcements.extend(written.announcements.into_iter().map(|owed| (owed, false)));
        tables.history.push(Committed::Batch(written.decisions.clone()));
        for decision in written.decisions {
            let (key, outcome) = (decision.order.key(), decision.outcome);
            database.world.note(|| format!("committed {key} {outcome:?}"));
            tables.decisions.insert(key, decision);
        }
    }
}

impl Transaction for Open<'_> {
    type Error = Failure;

    async fn sales(&mut self, ids: &[&SaleId]) -> Result<SalesRead, Failure> {
        self.statement().await?;
        Ok(self.read_sales(ids))
    }

    async fn lock_sales(&mut self, ids: &[&SaleId]) -> Result<SalesRead, Failure> {
        self.statement().await?;
        for id in ids {
            self.connection.database.lock(self.id, &Row::Sale((*id).clone())).await?;
        }
        Ok(self.read_sales(ids))
    }

    async fn units(
        &mut self,
        buyers: &[(&SaleId, &UserId)],
    ) -> Result<HashMap<(SaleId, UserId), u32>, Failure> {
        self.statement().await?;
        let tables = self.connection.database.tables.lock();
        let keys = buyers.iter().map(|(sale, user)| ((*sale).clone(), (*user).clone()));
        Ok(keys.filter_map(|key| Some((key.clone(), *tables.units.get(&key)?))).collect())
    }

    async fn decisions(
        &mut self,
        orders: &[(&SaleId, &OrderId)],
    ) -> Result<HashMap<OrderKey, Decision>, Failure> {
        self.statement().await?;
        let tables = self.connection.database.tables.lock();
        let keys = orders
            .iter()
            .map(|(sale, order)| OrderKey { sale_id: (*sale).clone(), order_id: (*order).clone() });
        Ok(keys
            .filter_map(|key| Some((key.clone(), tables.decisions.get(&key)?.clone())))
            .collect())
    }

    async fn archived(
        &mut self,
        _: &[(&SaleId, &OrderId)],
    ) -> Result<HashMap<OrderKey, ArchivedOrder>, Failure> {
        Ok(HashMap::new())
    }

    async fn erased(
        &mut self,
        _: &[(&SaleId, &UserId)],
    ) -> Result<HashSet<(SaleId, UserId)>, Failure> {
        Ok(HashSet::new())
    }

    async fn write(&mut self, changes: &Changes<'_>) -> Result<bool, Failure> {
        self.statement().await?;
        for decision in &changes.decisions {
            if decision.order.user_id.as_str() == UNDECIDABLE {
                return Err(Failure::Undecidable);
            }
            let key = decision.order.key();
            self.connection.database.lock(self.id, &Row::Decision(key.clone())).await?;
            if self.connection.database.tables.lock().decisions.contains_key(&key) {
                return Ok(false);
            }
        }
        let buyers = changes.buyers.iter();
        self.written = Some(Written {
            decisions: changes.decisions.iter().map(|decision| (*decision).clone()).collect(),
            sales: changes.sales.iter().map(|state| (*state).clone()).collect(),
            units: buyers
                .map(|(sale, user, units, _)| ((*sale).clone(), (*user).clone(), *units))
                .collect(),
            announcements: changes.announcements.clone(),
        });
        Ok(true)
    }

    async fn commit(mut self) -> Result<(), Failure> {
        self.statement().await?;
        self.store();
        self.connection.database.end(self.id);
        // The answer may get lost.
        self.connection.answer().await
    }

    async fn roll_back(self) -> Result<(), Failure> {
        self.statement().await
    }

    fn is_lost_to_another(error: &Failure) -> bool {
        matches!(error, Failure::Deadlock)
    }
}

#[async_trait]
impl Ledger for Connection {
    async fn open(&self, _: &[Sale]) -> Result<Vec<Opening>, LedgerError> {
        Err(LedgerError::Permanent("sales are opened before the simulation".into()))
    }

    async fn change(&self, _: &SaleId, _: &Change) -> Result<Changed, LedgerError> {
        Err(LedgerError::Permanent("workers change no sale".into()))
    }

    async fn sales(&self, ids: Option<&[SaleId]>) -> Result<Vec<SaleState>, LedgerError> {
        self.answer().await?;
        let tables = self.database.tables.lock();
        let all = tables.sales.values();
        Ok(all
            .filter(|state| ids.is_none_or(|ids| ids.contains(&state.sale.id)))
            .cloned()
            .collect())
    }

    async fn decide(
        &self,
        orders: &[Proposed<'_>],
        max_age: Duration,
    ) -> Result<Decided, LedgerError> {
        Ok(recipe::decide(|| self.transaction(), orders, max_age, &self.has_repeats).await?)
    }

    async fn decisions(&self, orders: &[OrderKey]) -> Result<Vec<Option<Decision>>, LedgerError> {
        self.answer().await?;
        Ok(orders.iter().map(|key| self.database.decision(key)).collect())
    }
}

#[async_trait]
impl ArchivedOrders for Connection {
    async fn archived(
        &self,
        orders: &[OrderKey],
    ) -> Result<Vec<Option<ArchivedOrder>>, LedgerError> {
        Ok(vec![None; orders.len()])
    }
}

#[async_trait]
impl Outbox for Connection {
    async fn unpublished(
        &self,
        sales: Option<&[SaleId]>,
    ) -> Result<Vec<Announcement>, LedgerError> {
        self.answer().await?;
        let tables = self.database.tables.lock();
        let owed = tables.announcements.iter().filter(|(announcement, published)| {
            !published && sales.is_none_or(|sales| sales.contains(announcement.key().0))
        });
        Ok(owed.map(|(announcement, _)| announcement.clone()).collect())
    }

    async fn published(&self, announcements: &[Announcement]) -> Result<(), LedgerError> {
        self.answer().await?;
        let mut tables = self.database.tables.lock();
        for (announcement, published) in &mut tables.announcements {
            *published |= announcements.contains(announcement);
        }
        Ok(())
    }
}
