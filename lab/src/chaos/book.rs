//! What was confirmed, and what a subscriber was told.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use floodgate::broker::Deliveries;
use floodgate::domain::event::order_key_of;
use floodgate::domain::event_batch::data_of;
use parking_lot::Mutex;

use super::demand::Demand;

/// The book of a run.
pub struct Book {
    demand: Demand,
    pages: Mutex<Pages>,
}

struct Pages {
    /// Of each order, by its number.
    orders: Vec<Entry>,
    counts: Counts,
    /// Bodies that are no orders and were confirmed, each known by a word in it.
    poison: BTreeSet<String>,
    /// When an order was first told of last, and the longest time between two of these since [`Book::watch`].
    last: Instant,
    longest: Duration,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    is_accepted: bool,
    /// A hash of what was told of it at first.
    told: Option<NonZeroU64>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Orders confirmed by the broker or accepted by the API.
    pub accepted: u32,
    /// Orders with a decision.
    pub decided: u32,
    /// Orders that are both.
    pub done: u32,
    /// Decisions that differ from what was told of their order before, or are of no order of the run.
    pub doubled: u32,
}

impl Book {
    pub fn new(demand: Demand) -> Self {
        let pages = Pages {
            orders: vec![Entry::default(); demand.orders as usize],
            counts: Counts::default(),
            poison: BTreeSet::new(),
            last: Instant::now(),
            longest: Duration::ZERO,
        };
        Self { demand, pages: Mutex::new(pages) }
    }

    /// Order `number` will get a decision.
    pub fn accepted(&self, number: u32) {
        let mut pages = self.pages.lock();
        let Some(entry) = pages.orders.get_mut(number as usize) else { return };
        if !std::mem::replace(&mut entry.is_accepted, true) {
            let is_done = entry.told.is_some();
            pages.counts.accepted += 1;
            pages.counts.done += u32::from(is_done);
        }
    }

    /// A body with this word in it is in the queue, and no order.
    pub fn poison(&self, word: String) {
        self.pages.lock().poison.insert(word);
    }

    /// The words of [`Book::poison`].
    pub fn poisoned(&self) -> BTreeSet<String> {
        self.pages.lock().poison.clone()
    }

    /// Writes down what subscribers are told, until there is no more of it.
    pub async fn subscribe(&self, events: &mut Deliveries) {
        while let Some(delivery) = events.next().await {
            for data in data_of(&delivery.body).unwrap_or_default() {
                self.told(data);
            }
            delivery.ack();
        }
    }

    fn told(&self, data: &[u8]) {
        let number = order_key_of(data).and_then(|order| self.demand.number(&order));
        let mut pages = self.pages.lock();
        let Some(entry) = number.and_then(|number| pages.orders.get_mut(number as usize)) else {
            pages.counts.doubled += 1;
            return;
        };
        match entry.told {
            Some(first) if first != hash(data) => pages.counts.doubled += 1,
            Some(_) => {}
            None => {
                entry.told = Some(hash(data));
                let is_done = entry.is_accepted;
                pages.counts.decided += 1;
                pages.counts.done += u32::from(is_done);
                pages.longest = pages.longest.max(pages.last.elapsed());
                pages.last = Instant::now();
            }
        }
    }

    /// Whether `data` is what was told of order `number`; `None`: nothing was.
    pub fn was_told(&self, number: u32, data: &[u8]) -> Option<bool> {
        let told = self.pages.lock().orders.get(number as usize)?.told?;
        Some(told == hash(data))
    }

    /// Whether order `number` was confirmed.
    pub fn is_accepted(&self, number: u32) -> bool {
        self.pages.lock().orders.get(number as usize).is_some_and(|entry| entry.is_accepted)
    }

    pub fn counts(&self) -> Counts {
        self.pages.lock().counts
    }

    /// Begins to look for the longest time without a new decision.
    pub fn watch(&self) {
        let mut pages = self.pages.lock();
        pages.last = Instant::now();
        pages.longest = Duration::ZERO;
    }

    /// The longest time without a new decision since [`Book::watch`].
    pub fn longest_wait(&self) -> Duration {
        let pages = self.pages.lock();
        pages.longest.max(pages.last.elapsed())
    }
}

fn hash(data: &[u8]) -> NonZeroU64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)
}
