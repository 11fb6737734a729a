//! What happens in a simulation, drawn from its seed before it begins, so that any part can be left out.

use std::collections::BTreeSet;

use floodgate::broker::PublishedAs;
use floodgate::domain::sale::PauseMode;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// What may go wrong at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Fault {
    /// Publishing fails before or after the broker has the message.
    Publish,
    /// The broker takes its time.
    SlowBroker,
    /// A message comes twice.
    Duplicate,
    /// A queue takes no more for a while.
    FullQueue,
    /// The ledger fails before or after it has stored a batch.
    Ledger,
    /// The ledger takes its time.
    SlowLedger,
    /// The ledger ends a transaction so that another can go on.
    Deadlock,
    /// The inventory fails before or after it has done what it was asked.
    Inventory,
    /// The inventory takes its time.
    SlowInventory,
    /// The inventory forgets, or goes back to what it was earlier.
    Amnesia,
    /// The user service fails, or asks for patience.
    UserService,
    /// The user service takes its time.
    SlowUserService,
}

impl Fault {
    pub(crate) const ALL: [Self; 12] = [
        Self::Publish,
        Self::SlowBroker,
        Self::Duplicate,
        Self::FullQueue,
        Self::Ledger,
        Self::SlowLedger,
        Self::Deadlock,
        Self::Inventory,
        Self::SlowInventory,
        Self::Amnesia,
        Self::UserService,
        Self::SlowUserService,
    ];
}

/// A sale as it opens.
#[derive(Debug, Clone)]
pub(super) struct SalePlan {
    pub id: String,
    pub stock: u32,
    pub per_user_limit: Option<u32>,
    /// In milliseconds from the beginning.
    pub opens_ms: Option<u64>,
    pub closes_ms: Option<u64>,
    pub verification: bool,
}

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Posts a message.
    Post(Vec<Element>),
    /// Adds units to the sale of that number.
    Restock(usize, u32),
    /// Closes a sale.
    Close(usize),
    /// Switches the verification of a sale.
    Verification(usize, bool),
    /// Pauses a sale, or resumes it.
    Pause(usize, Option<PauseMode>),
    /// Kills a worker, and starts another after so many milliseconds.
    Crash(usize, u64),
    /// Stops a worker in order, and starts another.
    Stop(usize),
    /// A worker stands still for so many milliseconds.
    Freeze(usize, u64),
    /// A worker's connection to the broker is lost.
    Disconnect(usize),
}

/// An element of a message.
#[derive(Debug, Clone)]
pub(super) enum Element {
    Order(OrderPlan),
    /// Text that is no intent.
    Malformed(String),
}

/// An order as it is posted.
#[derive(Debug, Clone)]
pub(super) struct OrderPlan {
    pub order_id: String,
    pub sale_id: String,
    pub user_id: String,
    pub quantity: u32,
    /// Its time, in milliseconds from the moment it is posted, if it says one.
    pub submitted_ms: Option<i64>,
}

/// A user whose orders the ledger always refuses to store.
pub(super) const UNDECIDABLE: &str = "undecidable";
/// A sale that is never opened.
const UNKNOWN: &str = "unknown";
/// When the last message is posted.
const POSTING_MS: u64 = 20_000;

const PUBLISHED_AS: [PublishedAs; 3] = [PublishedAs::Single, PublishedAs::Batch, PublishedAs::Both];

/// What happens in a simulation.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub seed: u64,
    pub sales: Vec<SalePlan>,
    /// By time, in milliseconds.
    pub steps: Vec<(u64, Step)>,
    pub faults: BTreeSet<Fault>,
    pub workers: usize,
    /// How wrong each worker's clock is, in milliseconds.
    pub skews_ms: Vec<i64>,
    pub max_batch: usize,
    pub batches_in_flight: usize,
    pub prefetch: u16,
    pub max_age_ms: u64,
    pub waits_for_inventory: bool,
    pub published_as: PublishedAs,
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let workers = *[1, 1, 2, 3].choose(random).unwrap_or(&1);
        let sales: Vec<SalePlan> =
            (0..random.random_range(1..=3)).map(|n| sale(random, n)).collect();
        let mut steps = Vec::new();
        for _ in 0..random.random_range(3..=40) {
            let at = random.random_range(0..POSTING_MS);
            steps.push((at, Step::Post(message(random, &sales))));
        }
        for _ in 0..random.random_range(0..=8) {
            let at = random.random_range(0..POSTING_MS + 5000);
            steps.push((at, disturbance(random, sales.len(), workers)));
        }
        steps.sort_by_key(|(at, _)| *at);
        let some = random.random_range(0..=Fault::ALL.len());
        let faults = Fault::ALL.sample(random, some).copied().collect();
        let skews = (0..workers).map(|_| *[0, 0, 300_000, -300_000].choose(random).unwrap_or(&0));
        Self {
            seed,
            steps,
            faults,
            workers,
            skews_ms: skews.collect(),
            max_batch: random.random_range(1..=8),
            batches_in_flight: random.random_range(1..=3),
            prefetch: random.random_range(1..=20),
            max_age_ms: *[5_000, 30_000, 900_000].choose(random).unwrap_or(&900_000),
            waits_for_inventory: random.random_range(0..4) == 0,
            published_as: *PUBLISHED_AS.choose(random).unwrap_or(&PublishedAs::Single),
            sales,
        }
    }

    /// Leaves out the steps that are not in `kept`.
    pub(super) fn keep(&mut self, kept: &[usize]) {
        let steps = std::mem::take(&mut self.steps).into_iter().enumerate();
        self.steps = steps.filter(|(n, _)| kept.contains(n)).map(|(_, step)| step).collect();
    }
}

fn sale(random: &mut StdRng, number: usize) -> SalePlan {
    let opens_ms = (random.random_range(0..6) == 0).then(|| random.random_range(0..8000));
    let closes_ms = (random.random_range(0..6) == 0).then(|| random.random_range(10_000..25_000));
    SalePlan {
        id: format!("s{number}"),
        stock: random.random_range(0..=12),
        per_user_limit: (random.random_range(0..2) == 0).then(|| random.random_range(1..=3)),
        opens_ms,
        closes_ms,
        verification: random.random_range(0..3) == 0,
    }
}

fn message(random: &mut StdRng, sales: &[SalePlan]) -> Vec<Element> {
    let elements = if random.random_range(0..4) == 0 { random.random_range(2..=6) } else { 1 };
    (0..elements).map(|_| element(random, sales)).collect()
}

fn element(random: &mut StdRng, sales: &[SalePlan]) -> Element {
    if random.random_range(0..25) == 0 {
        let bad = ["{\"order_id\":1}", "{}", "17", "\"order\""];
        return Element::Malformed((*bad.choose(random).unwrap_or(&"{}")).to_owned());
    }
    let sale_id = match sales.choose(random) {
        Some(sale) if random.random_range(0..30) > 0 => sale.id.clone(),
        _ => UNKNOWN.to_owned(),
    };
    let user_id = match random.random_range(0..40) {
        0 => UNDECIDABLE.to_owned(),
        _ => format!("u{}", random.random_range(0..10)),
    };
    let submitted_ms = match random.random_range(0..4) {
        0 => Some(random.random_range(-3000..1000)),
        1 => Some(0),
        _ => None,
    };
    Element::Order(OrderPlan {
        // Some come twice, and some of those with other contents.
        order_id: format!("o{}", random.random_range(0..40)),
        sale_id,
        user_id,
        quantity: random.random_range(1..=3),
        submitted_ms,
    })
}

fn disturbance(random: &mut StdRng, sales: usize, workers: usize) -> Step {
    let (sale, worker) = (random.random_range(0..sales), random.random_range(0..workers));
    match random.random_range(0..13) {
        0 | 1 => Step::Restock(sale, random.random_range(1..=5)),
        2 => Step::Close(sale),
        3 => Step::Verification(sale, random.random_range(0..2) == 0),
        4..=6 => Step::Crash(worker, random.random_range(0..3000)),
        7 => Step::Stop(worker),
        8 | 9 => Step::Freeze(worker, random.random_range(100..8000)),
        10 | 11 => {
            let modes = [Some(PauseMode::Refuse), Some(PauseMode::Hold), None];
            Step::Pause(sale, *modes.choose(random).unwrap_or(&None))
        }
        _ => Step::Disconnect(worker),
    }
}
