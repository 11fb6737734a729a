//! What this process knows of sales, seldom older than a second.
//!
//! Whoever asks gets an answer from memory. It is kept up to date in two ways: by the events
//! `sale.sold_out` and `sale.restocked`, which are quick, and by reading the sales in use from the
//! ledger every second, so that a lost event doesn't matter. News that come out of order are told
//! apart by [`SaleState::is_newer_than`], so old ones can't bring back a state that has passed. What
//! the ledger says when it is asked later than that is believed in any case, so that no event, true
//! or not, holds for longer than a second against it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::broker::{Broker, BrokerError, Deliveries, Delivery, Queue};
use crate::event::sale_version_of;
use crate::ledger::{Ledger, LedgerError};
use crate::order::SaleId;
use crate::sale::SaleState;

/// How often the sales in use are read from the ledger.
const READ_EVERY: Duration = Duration::from_secs(1);
/// A sale that nobody has asked for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(1);
/// The most sales remembered, unknown ones included. Others are read each time they are asked for.
const MAX_SALES: usize = 10_000;
/// Events taken from the broker at once.
const PREFETCH: u16 = 100;

/// The sales that this process has to do with. Keeps itself up to date until it is dropped.
pub struct SaleWatch {
    known: Arc<Known>,
    _watching: AbortOnDropHandle<()>,
}

struct Known {
    ledger: Arc<dyn Ledger>,
    sales: Mutex<HashMap<SaleId, Watched>>,
    read_at: Mutex<Instant>,
}

/// One sale, or that there is none by its name.
struct Watched {
    state: watch::Sender<Option<SaleState>>,
    used_at: Instant,
    /// When the state was learnt. What was read from the ledger counts from the question.
    learnt_at: Instant,
}

impl SaleWatch {
    /// Starts watching; nothing is known yet. Fails when the broker can't be reached.
    pub async fn start(ledger: Arc<dyn Ledger>, broker: &dyn Broker) -> Result<Self, BrokerError> {
        let queue = Queue::Private(format!("sales.{}", Uuid::now_v7()));
        let events = broker.subscribe(queue, &["sale.#"], PREFETCH).await?;
        let (sales, read_at) = (Mutex::default(), Mutex::new(Instant::now()));
        let known = Arc::new(Known { ledger, sales, read_at });
        let watching = AbortOnDropHandle::new(tokio::spawn(keep_up(known.clone(), events)));
        Ok(Self { known, _watching: watching })
    }

    /// What is known of a sale; asks the ledger only when it isn't in use yet. `None`: there is no
    /// such sale.
    pub async fn sale(&self, id: &SaleId) -> Result<Option<SaleState>, LedgerError> {
        if let Some(watched) = self.known.lock().get_mut(id) {
            watched.used_at = Instant::now();
            return Ok(watched.state.borrow().clone());
        }
        self.read(std::slice::from_ref(id)).await?;
        if let Some(watched) = self.known.lock().get(id) {
            return Ok(watched.state.borrow().clone());
        }
        // There is no room to remember it.
        Ok(self.known.ledger.sales(Some(std::slice::from_ref(id))).await?.pop())
    }

    /// Follows a sale through its changes, beginning with what is known of it now. `None`: there is
    /// no such sale, or no room for another one.
    pub async fn follow(
        &self,
        id: &SaleId,
    ) -> Result<Option<watch::Receiver<Option<SaleState>>>, LedgerError> {
        if self.sale(id).await?.is_none() {
            return Ok(None);
        }
        Ok(self.known.lock().get(id).map(|watched| watched.state.subscribe()))
    }

    /// How long ago the ledger was last read.
    pub fn age(&self) -> Duration {
        self.known.read_at.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Reads `ids` from the ledger now.
    pub async fn read(&self, ids: &[SaleId]) -> Result<(), LedgerError> {
        self.known.read(ids).await
    }
}

impl Known {
    /// Reads `ids` from the ledger.
    async fn read(&self, ids: &[SaleId]) -> Result<(), LedgerError> {
        let asked_at = Instant::now();
        let states = self.ledger.sales(Some(ids)).await?;
        let mut sales = self.lock();
        for id in ids {
            if sales.len() < MAX_SALES {
                sales.entry(id.clone()).or_insert_with(Watched::new);
            }
        }
        for state in states {
            let Some(watched) = sales.get_mut(&state.sale.id) else { continue };
            watched.learn(state, asked_at);
        }
        Ok(())
    }

    /// Reads every sale in use, and forgets those that aren't any more.
    async fn read_all(&self) -> Result<(), LedgerError> {
        let ids: Vec<SaleId> = {
            let mut sales = self.lock();
            sales.retain(|_, watched| {
                watched.used_at.elapsed() < FORGET_AFTER || watched.state.receiver_count() > 0
            });
            sales.keys().cloned().collect()
        };
        self.read(&ids).await?;
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }

    async fn take_in(&self, event: &Delivery) -> Result<(), LedgerError> {
        let Some((id, version)) = sale_version_of(&event.body) else { return Ok(()) };
        let sold_out = event.properties.routing_key.starts_with("sale.sold_out.");
        let is_behind = {
            let mut sales = self.lock();
            // A sale that nobody here has to do with needs no news.
            let Some(watched) = sales.get_mut(&id) else { return Ok(()) };
            let known = watched.state.borrow().clone();
            match known {
                Some(known) if sold_out && known.version == version => {
                    let sold = known.sale.stock;
                    watched.learn(SaleState { sold, ..known }, Instant::now());
                    false
                }
                Some(known) => known.version < version,
                None => true,
            }
        };
        if is_behind { self.read(&[id]).await } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SaleId, Watched>> {
        self.sales.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    fn new() -> Self {
        let (state, now) = (watch::Sender::new(None), Instant::now());
        Self { state, used_at: now, learnt_at: now }
    }

    /// Takes `news` in, as they were at `at`, unless what is known is newer.
    fn learn(&mut self, news: SaleState, at: Instant) {
        let later = at > self.learnt_at;
        let learnt = self.state.send_if_modified(|known| {
            let better = known
                .as_ref()
                .is_none_or(|known| news != *known && (later || news.is_newer_than(known)));
            if better {
                *known = Some(news);
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
