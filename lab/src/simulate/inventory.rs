//! An inventory in memory, as `deduct.lua` and `amend.lua` keep it in Redis, that forgets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use floodgate::domain::decision::Hint;
use floodgate::domain::order::{Candidate, Eligibility, Order, SaleId, UserId};
use floodgate::domain::sale::{SaleState, Watermark};
use floodgate::inventory::{Amendment, Inventory, InventoryError, Proposal};
use parking_lot::Mutex;

use super::broker::Frozen;
use super::plan::Fault;
use super::world::World;

/// The server itself.
pub(super) struct Server {
    world: Arc<World>,
    held: Mutex<BTreeMap<SaleId, Held>>,
    /// Not forgotten, so that it is always as far as it can be.
    committed: Mutex<BTreeMap<SaleId, Watermark>>,
    /// What it goes back to when it loses what it has confirmed.
    earlier: Mutex<BTreeMap<SaleId, Held>>,
}

#[derive(Clone)]
struct Held {
    state: SaleState,
    left: i64,
    deducted: BTreeSet<String>,
    units: BTreeMap<UserId, u32>,
}

impl Server {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self {
            world,
            held: Mutex::default(),
            committed: Mutex::default(),
            earlier: Mutex::default(),
        }
    }

    fn may_forget(&self) {
        let forgets = self.world.strikes(Fault::Amnesia, 40);
        let goes_back = !forgets && self.world.strikes(Fault::Amnesia, 40);
        if forgets {
            self.world.note(|| "the inventory forgets everything".to_owned());
            self.held.lock().clear();
        } else if goes_back {
            self.world.note(|| "the inventory goes back to what it was".to_owned());
            *self.held.lock() = self.earlier.lock().clone();
        } else if self.world.strikes(Fault::Amnesia, 10) {
            *self.earlier.lock() = self.held.lock().clone();
        }
    }
}

fn digest(order: &Order) -> String {
    format!("{} {} {}", order.id, order.user_id, order.quantity.get())
}

impl Held {
    fn of(state: &SaleState) -> Self {
        let (deducted, units) = (BTreeSet::new(), BTreeMap::new());
        let mut held = Self { state: state.clone(), left: 0, deducted, units };
        held.take_over(state);
        held
    }

    fn take_over(&mut self, state: &SaleState) {
        self.state = state.clone();
        self.left = i64::from(state.remaining());
    }

    fn propose(&mut self, candidate: &Candidate, now: DateTime<Utc>, max_age: Duration) -> Hint {
        let Candidate { order, submitted_at, eligibility } = candidate;
        let (digest, quantity) = (digest(order), order.quantity.get());
        if self.deducted.contains(&digest) {
            return Hint::Granted;
        }
        let sale = &self.state.sale;
        let at = submitted_at.unwrap_or(now).min(now);
        let units = self.units.get(&order.user_id).copied().unwrap_or(0) + quantity;
        let refused = self.state.paused.is_some()
            || (now - at).to_std().unwrap_or_default() > max_age
            || *eligibility == Eligibility::Denied
            || sale.opens_at.is_some_and(|opens| at < opens)
            || sale.closes_at.is_some_and(|closes| at >= closes)
            || sale.per_user_limit.is_some_and(|limit| units > limit)
            || i64::from(quantity) > self.left
            || sale.verification && *eligibility == Eligibility::Unchecked;
        if refused {
            return Hint::Refused;
        }
        self.left -= i64::from(quantity);
        self.deducted.insert(digest);
        self.units.insert(order.user_id.clone(), units);
        Hint::Granted
    }

    fn amend(&mut self, Amendment { state, buyers, orders }: &Amendment) {
        let told = (state.version, state.sold);
        if told >= (self.state.version, self.state.sold) {
            let left = self.left;
            let is_same = state.version == self.state.version;
            self.take_over(state);
            if orders.is_empty() && is_same {
                self.left = self.left.min(left);
            }
            self.units.extend(buyers.iter().cloned());
        }
        for (order, granted) in orders {
            if *granted {
                self.deducted.insert(digest(order));
            } else {
                self.deducted.remove(&digest(order));
            }
        }
    }
}

/// The inventory as a worker sees it.
pub(super) struct Connection {
    pub server: Arc<Server>,
    pub frozen: Arc<Frozen>,
}

impl Connection {
    async fn answer(&self) -> Result<(), InventoryError> {
        let world = &self.server.world;
        self.frozen.thawed(world).await;
        world.latency(Fault::SlowInventory).await;
        self.server.may_forget();
        if world.strikes(Fault::Inventory, 15) {
            return Err(InventoryError("simulated".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl Inventory for Connection {
    async fn propose(
        &self,
        orders: &[&Candidate],
        max_age: Duration,
    ) -> Result<Proposal, InventoryError> {
        self.answer().await?;
        let now = self.server.world.now();
        let watermarks = {
            let committed = self.server.committed.lock();
            let sales = orders.iter().map(|candidate| &candidate.order.sale_id);
            sales.filter_map(|sale| Some((sale.clone(), *committed.get(sale)?))).collect()
        };
        let hints = {
            let mut held = self.server.held.lock();
            let hint = |candidate: &&Candidate| {
                let held = held.get_mut(&candidate.order.sale_id)?;
                Some(held.propose(candidate, now, max_age))
            };
            orders.iter().map(hint).collect::<Vec<_>>()
        };
        self.server.world.note(|| format!("hints {hints:?}"));
        self.answer().await?;
        Ok(Proposal { hints, watermarks })
    }

    async fn watermark(&self, sale: &SaleId) -> Result<Option<Watermark>, InventoryError> {
        self.answer().await?;
        Ok(self.server.committed.lock().get(sale).copied())
    }

    async fn committed(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        self.answer().await?;
        let mut committed = self.server.committed.lock();
        for state in sales {
            let new = Watermark::of(state);
            let mark = committed.entry(state.sale.id.clone()).or_insert(new);
            *mark =
                Watermark { version: mark.version.max(new.version), sold: mark.sold.max(new.sold) };
        }
        Ok(())
    }

    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError> {
        self.answer().await?;
        let mut held = self.server.held.lock();
        for amendment in amendments {
            if let Some(held) = held.get_mut(&amendment.state.sale.id) {
                held.amend(amendment);
            }
        }
        Ok(())
    }

    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        self.answer().await?;
        let mut held = self.server.held.lock();
        for state in sales {
            let held = held.entry(state.sale.id.clone()).or_insert_with(|| Held::of(state));
            held.amend(&Amendment::of(state.clone()));
        }
        Ok(())
    }
}
