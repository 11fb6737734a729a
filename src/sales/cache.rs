//! What this process knows of sales, seldom older than a second.
//!
//! A request gets its answer from memory, which is kept up to date in two ways: by the events
//! `sale.sold_out` and `sale.restocked`, which are quick, and by reading the sales in use from the
//! ledger every second, so that a lost event doesn't matter. News that come out of order are told
//! apart by [`SaleState::is_newer_than`], so old ones can't bring back a state that has passed. What
//! the ledger says when it is asked later than that is believed in any case, so that no event, true
//! or not, holds for longer than a second against it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Deliveries, Delivery, Queue, Topic};
use crate::domain::event::sale_version_of;
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;
use crate::ledger::{Ledger, LedgerError};

/// How often the sales in use are read from the ledger.
const READ_EVERY: Duration = Duration::from_secs(1);
/// A sale that no request was about for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(1);
/// The most sales remembered. Others are read each time they are asked for.
const MAX_SALES: usize = 10_000;
/// The most names remembered that no sale has. They are kept apart, so that requests with invented names take
/// no room from sales.
const MAX_UNKNOWN: u64 = 1000;
/// Events taken from the broker at once.
const PREFETCH: u16 = 100;

/// The sales that this process has to do with. Keeps itself up to date until it is dropped.
pub struct SaleCache {
    known: Arc<Known>,
    _watching: AbortOnDropHandle<()>,
}

struct Known {
    ledger: Arc<dyn Ledger>,
    sales: Mutex<HashMap<SaleId, CachedSale>>,
    /// Names that the ledger has just said to be no sale's.
    unknown: Cache<SaleId, ()>,
    read_at: Mutex<Instant>,
}

/// One sale.
struct CachedSale {
    state: watch::Sender<SaleState>,
    used_at: Instant,
    /// When the state was learnt. What was read from the ledger counts from the question.
    learnt_at: Instant,
}

impl SaleCache {
    /// Starts watching; nothing is known yet. Fails when the broker can't be reached.
    pub async fn start(ledger: Arc<dyn Ledger>, broker: &dyn Broker) -> Result<Self, BrokerError> {
        let queue = Queue::Private(format!("sales.{}", Uuid::now_v7()));
        let events = broker.subscribe(queue, &[Topic::Events("sale.#")], PREFETCH).await?;
        let (sales, read_at) = (Mutex::default(), Mutex::new(Instant::now()));
        let unknown = Cache::builder().max_capacity(MAX_UNKNOWN).time_to_live(READ_EVERY).build();
        let known = Arc::new(Known { ledger, sales, unknown, read_at });
        let watching = AbortOnDropHandle::new(tokio::spawn(keep_up(known.clone(), events)));
        Ok(Self { known, _watching: watching })
    }

    /// What is known of a sale; asks the ledger only when it isn't in use yet. `None`: there is no
    /// such sale.
    pub async fn sale(&self, id: &SaleId) -> Result<Option<SaleState>, LedgerError> {
        if let Some(cached) = self.known.lock().get_mut(id) {
            cached.used_at = Instant::now();
            return Ok(Some(cached.state.borrow().clone()));
        }
        if self.known.unknown.contains_key(id) {
            return Ok(None);
        }
        Ok(self.known.read(std::slice::from_ref(id)).await?.pop())
    }

    /// Follows a sale through its changes, beginning with what is known of it now. `None`: there is
    /// no such sale, or no room for another one.
    pub async fn follow(
        &self,
        id: &SaleId,
    ) -> Result<Option<watch::Receiver<SaleState>>, LedgerError> {
        if self.sale(id).await?.is_none() {
            return Ok(None);
        }
        Ok(self.known.lock().get(id).map(|cached| cached.state.subscribe()))
    }

    /// How long ago the ledger was last read.
    pub fn age(&self) -> Duration {
        self.known.read_at.lock().elapsed()
    }

    /// Reads `ids` from the ledger now.
    pub async fn read(&self, ids: &[SaleId]) -> Result<(), LedgerError> {
        self.known.read(ids).await.map(drop)
    }
}

impl Known {
    /// Reads `ids` from the ledger. Returns what is known of them then, apart from those that are no sale's.
    async fn read(&self, ids: &[SaleId]) -> Result<Vec<SaleState>, LedgerError> {
        let asked_at = Instant::now();
        let mut states = self.ledger.sales(Some(ids)).await?;
        let mut sales = self.lock();
        for state in &mut states {
            let id = &state.sale.id;
            self.unknown.invalidate(id);
            if let Some(cached) = sales.get_mut(id) {
                cached.learn(state.clone(), asked_at);
                *state = cached.state.borrow().clone();
            } else if sales.len() < MAX_SALES {
                sales.insert(id.clone(), CachedSale::new(state.clone(), asked_at));
            }
        }
        let found: HashSet<&SaleId> = states.iter().map(|state| &state.sale.id).collect();
        for id in ids.iter().filter(|id| !found.contains(id)) {
            self.unknown.insert(id.clone(), ());
        }
        Ok(states)
    }

    /// Reads every sale in use, and forgets those that aren't any more.
    async fn read_all(&self) -> Result<(), LedgerError> {
        let ids: Vec<SaleId> = {
            let mut sales = self.lock();
            sales.retain(|_, cached| {
                cached.used_at.elapsed() < FORGET_AFTER || cached.state.receiver_count() > 0
            });
            sales.keys().cloned().collect()
        };
        self.read(&ids).await?;
        *self.read_at.lock() = Instant::now();
        Ok(())
    }

    async fn take_in(&self, event: &Delivery) -> Result<(), LedgerError> {
        let Some((id, version)) = sale_version_of(&event.body) else { return Ok(()) };
        let sold_out = event.properties.routing_key.starts_with("sale.sold_out.");
        let is_behind = {
            let mut sales = self.lock();
            // A sale that is not in use here needs no update.
            let Some(cached) = sales.get_mut(&id) else { return Ok(()) };
            let known = cached.state.borrow().clone();
            if sold_out && known.version == version {
                let sold = known.sale.stock;
                cached.learn(SaleState { sold, ..known }, Instant::now());
                false
            } else {
                known.version < version
            }
        };
        if is_behind { self.read(&[id]).await.map(drop) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SaleId, CachedSale>> {
        self.sales.lock()
    }
}

impl CachedSale {
    fn new(state: SaleState, learnt_at: Instant) -> Self {
        Self { state: watch::Sender::new(state), used_at: Instant::now(), learnt_at }
    }

    /// Takes `news` in, as they were at `at`, unless what is known is newer.
    fn learn(&mut self, news: SaleState, at: Instant) {
        let later = at > self.learnt_at;
        let learnt = self.state.send_if_modified(|known| {
            let better = news != *known && (later || news.is_newer_than(known));
            if better {
                *known = news;
            }
            better
        });
        if learnt {
            self.learnt_at = at;
        }
    }
}

/// Takes in news for as long as it is polled.
async fn keep_up(known: Arc<Known>, mut events: Deliveries) {
    let mut ticks = tokio::time::interval(READ_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let read = tokio::select! {
            _ = ticks.tick() => known.read_all().await,
            Some(event) = events.next() => {
                let read = known.take_in(&event).await;
                event.ack();
                read
            }
        };
        if let Err(error) = read {
            tracing::debug!(%error, "can't read sales; the next second tries again");
        }
    }
}
