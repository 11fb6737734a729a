//! What happened, held against what must be true.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::buyer::Bought;
use crate::app::temp_deployment::TempDeployment;
use crate::broker::{Deliveries, Queue};
use crate::domain::decision::{Decision, Outcome, Reason};
use crate::domain::event::{decision_json, outcome_of};
use crate::domain::event_batch::data_of;
use crate::domain::order::OrderKey;
use crate::domain::sale::Sale;
use crate::ledger::Ledger;

/// Events taken from the broker at once.
const PREFETCH: u16 = 1000;
/// Decisions looked up in one call.
const CHUNK: usize = 1000;
/// How long what is on its way may take to arrive.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Something that must be true.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub invariant: &'static str,
    pub holds: bool,
    pub found: String,
}

/// How the orders ended, by the ledger.
pub(super) struct Decisions {
    pub sold: u32,
    pub sold_out: usize,
    pub rejected: usize,
}

/// The events of the sale, as a subscriber sees them.
pub(super) struct Seen {
    events: Arc<Mutex<Events>>,
    created: watch::Receiver<u32>,
    _listening: AbortOnDropHandle<()>,
}

/// The data of each order's event, and how often it was repeated.
#[derive(Default)]
struct Events {
    by_order: HashMap<OrderKey, Vec<u8>>,
    repeats: usize,
    /// Repeats that were not the same to the byte.
    differing: usize,
}

impl Seen {
    /// Takes every event from now on.
    pub(super) async fn listen(deployment: &TempDeployment) -> anyhow::Result<Self> {
        let deliveries = deployment.events(PREFETCH).await?;
        let events = Arc::new(Mutex::new(Events::default()));
        let (count, created) = watch::channel(0);
        let listening = tokio::spawn(take(deliveries, events.clone(), count));
        Ok(Self { events, created, _listening: AbortOnDropHandle::new(listening) })
    }

    /// Waits until `wanted` bottles are sold; false when that takes too long.
    pub(super) async fn wait_for_created(&self, wanted: u32) -> bool {
        let mut created = self.created.clone();
        let reached = created.wait_for(|created| *created >= wanted);
        tokio::time::timeout(SETTLE_LIMIT, reached).await.is_ok_and(|reached| reached.is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock()
    }
}

async fn take(mut deliveries: Deliveries, events: Arc<Mutex<Events>>, created: watch::Sender<u32>) {
    while let Some(delivery) = deliveries.next().await {
        for data in data_of(&delivery.body).unwrap_or_default() {
            let Some((order, outcome)) = outcome_of(data) else { continue };
            let mut events = events.lock();
            if let Some(first) = events.by_order.get(&order) {
                let differs = *first != data;
                events.repeats += 1;
                events.differing += usize::from(differs);
            } else {
                if outcome == "created" {
                    created.send_modify(|created| *created += 1);
                }
                events.by_order.insert(order, data.to_vec());
            }
        }
        delivery.ack();
    }
}

/// Waits until everything has settled, then looks at all of it.
pub(super) async fn check(
    deployment: &TempDeployment,
    sale: &Sale,
    bought: &[Bought],
    seen: Seen,
) -> anyhow::Result<(Decisions, Vec<Verdict>)> {
    let ledger = deployment.app.ledger().await?;
    let orders: Vec<OrderKey> = bought.iter().map(|bought| bought.order.clone()).collect();
    let decided = settled(ledger.as_ref(), deployment, &orders, &seen).await?;
    let states = ledger.sales(Some(std::slice::from_ref(&sale.id))).await?;
    let Some(state) = states.first() else { bail!("the sale is gone from the ledger") };
    let dead = deployment.app.broker().await?.depth(Queue::DeadLetters).await?.messages;

    let count = |wanted: fn(&Outcome) -> bool| {
        decided.values().filter(|decision| wanted(&decision.outcome)).count()
    };
    let created = count(|outcome| *outcome == Outcome::Created);
    let decisions = Decisions {
        sold: state.sold,
        sold_out: count(|outcome| *outcome == Outcome::SoldOut),
        rejected: count(|outcome| matches!(outcome, Outcome::Rejected(_))),
    };
    let buyers: HashSet<&str> = bought.iter().map(|bought| bought.user_id.as_str()).collect();
    let demand = u32::try_from(buyers.len()).unwrap_or(u32::MAX).min(sale.stock);
    let verdicts = vec![
        Verdict {
            invariant: "never oversold",
            holds: created <= sale.stock as usize && state.sold as usize == created,
            found: format!("{created} orders created for {} bottles", sale.stock),
        },
        Verdict {
            invariant: "never undersold",
            holds: state.sold == demand,
            found: format!("{} bottles sold, {} left", state.sold, state.remaining()),
        },
        one_each(&decided),
        nothing_lost(bought, &decided, dead),
        told_the_truth(bought, &decided),
        events_agree(&decided, &seen),
    ];
    Ok((decisions, verdicts))
}

/// The decisions of `orders`, once queues and events are quiet.
async fn settled(
    ledger: &dyn Ledger,
    deployment: &TempDeployment,
    orders: &[OrderKey],
    seen: &Seen,
) -> anyhow::Result<HashMap<OrderKey, Decision>> {
    let broker = deployment.app.broker().await?;
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut before = None;
    loop {
        let mut waiting = broker.depth(Queue::Intents).await?.messages;
        waiting += broker.depth(Queue::Returned).await?.messages;
        let mut decided = HashMap::new();
        for chunk in orders.chunks(CHUNK) {
            let found = ledger.decisions(chunk).await?.into_iter().flatten();
            decided.extend(found.map(|decision| (decision.order.key(), decision)));
        }
        let now = (decided.len(), seen.lock().by_order.len());
        let quiet = waiting == 0 && now.0 == now.1 && before == Some(now);
        if quiet || Instant::now() > deadline {
            return Ok(decided);
        }
        before = Some(now);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn one_each(decided: &HashMap<OrderKey, Decision>) -> Verdict {
    let mut units: HashMap<&str, u32> = HashMap::new();
    for decision in decided.values().filter(|decision| decision.outcome == Outcome::Created) {
        *units.entry(decision.order.user_id.as_str()).or_default() += decision.order.quantity.get();
    }
    let refused = decided
        .values()
        .filter(|decision| decision.outcome == Outcome::Rejected(Reason::PurchaseLimit))
        .count();
    let most = units.values().max().copied().unwrap_or(0);
    Verdict {
        invariant: "one bottle for each buyer",
        holds: most <= 1,
        found: format!("at most {most}; {refused} second orders rejected"),
    }
}

fn nothing_lost(bought: &[Bought], decided: &HashMap<OrderKey, Decision>, dead: u32) -> Verdict {
    let accepted = bought.iter().filter(|bought| bought.accepted);
    let lost = accepted.filter(|bought| !decided.contains_key(&bought.order)).count();
    Verdict {
        invariant: "nothing accepted is lost",
        holds: lost == 0 && dead == 0,
        found: format!("{lost} accepted orders without a decision, {dead} dead letters"),
    }
}

fn told_the_truth(bought: &[Bought], decided: &HashMap<OrderKey, Decision>) -> Verdict {
    let wrong = bought.iter().filter(|bought| {
        decided.get(&bought.order).is_none_or(|decision| {
            decision.outcome.name() != bought.told.outcome
                || decision.outcome.reason().map(Reason::name) != bought.told.reason.as_deref()
        })
    });
    let wrong = wrong.count();
    Verdict {
        invariant: "buyers were told what holds",
        holds: wrong == 0,
        found: format!("{} answers, {wrong} of them wrong", bought.len()),
    }
}

fn events_agree(decided: &HashMap<OrderKey, Decision>, seen: &Seen) -> Verdict {
    let events = seen.lock();
    let matching = decided
        .iter()
        .filter(|(order, decision)| events.by_order.get(*order) == Some(&decision_json(decision)))
        .count();
    let (distinct, Events { repeats, differing, .. }) = (events.by_order.len(), &*events);
    Verdict {
        invariant: "events equal the ledger's decisions",
        holds: matching == decided.len() && distinct == decided.len() && *differing == 0,
        found: format!("{distinct} events, {matching} as in the ledger, {repeats} repeats"),
    }
}
