//! The invariants of the design, as a user could see them: events, ledger, queues.

use std::collections::{HashMap, HashSet};

use floodgate::broker::{Broker, Deliveries, Queue};
use floodgate::domain::decision::{Decision, Outcome};
use floodgate::domain::event_batch::data_of;
use floodgate::domain::order::{Order, OrderKey};
use floodgate::ledger::Ledger;

use super::{PATIENCE, Stage, order_key};

/// What came out of a set of orders.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub created: usize,
    pub sold_out: usize,
    pub rejected: usize,
}

/// Waits until every one of `orders` has its event, then checks that events and ledger agree, that
/// a repeated event repeats its first to the byte, and that no sale sold more than it had.
/// `orders` hold each order once; the same order id in two sales is two orders.
pub async fn settled(stage: &mut Stage, orders: &[Order]) -> Totals {
    settled_but(stage, orders, 0).await
}

/// The same, when `taken` events were taken before.
pub async fn settled_but(stage: &mut Stage, orders: &[Order], taken: usize) -> Totals {
    settled_in(stage.ledger.as_ref(), &mut stage.events, orders, taken).await
}

/// The same, with the ledger and the events of any deployment.
pub async fn settled_in(
    ledger: &dyn Ledger,
    events: &mut Deliveries,
    orders: &[Order],
    taken: usize,
) -> Totals {
    let mut missing: HashSet<OrderKey> = orders.iter().map(Order::key).collect();
    assert_eq!(missing.len(), orders.len(), "each order once");
    let mut seen: HashMap<OrderKey, Vec<u8>> = HashMap::new();
    while missing.len() > taken {
        let next = tokio::time::timeout(PATIENCE, events.next()).await;
        let Ok(Some(event)) = next else {
            let some: Vec<_> = missing.iter().take(5).map(OrderKey::to_string).collect();
            panic!("{} of {} orders have no event, such as {some:?}", missing.len(), orders.len());
        };
        for data in data_of(&event.body).expect("an event or a batch") {
            let key = floodgate::domain::event::order_key_of(data).expect("an order");
            missing.remove(&key);
            let first = seen.entry(key).or_insert_with(|| data.to_vec());
            assert_eq!(first, data, "a repeated event is the same to the byte");
        }
        event.ack();
    }
    let mut totals = Totals::default();
    let mut sold: HashMap<&str, u32> = HashMap::new();
    for order in orders {
        let decision = decision(ledger, &order.key()).await.expect("decided");
        assert_eq!(decision.order, *order);
        if let Some(event) = seen.get(&order.key()) {
            assert_eq!(
                *event,
                floodgate::domain::event::decision_json(&decision),
                "event and ledger agree"
            );
        }
        match decision.outcome {
            Outcome::Created => {
                totals.created += 1;
                *sold.entry(order.sale_id.as_str()).or_default() += order.quantity.get();
            }
            Outcome::SoldOut => totals.sold_out += 1,
            Outcome::Rejected(_) => totals.rejected += 1,
        }
    }
    for state in ledger.sales(None).await.expect("sales") {
        let by_decisions = sold.get(state.sale.id.as_str()).copied().unwrap_or(0);
        assert_eq!(state.sold, by_decisions, "sale {} counts what it sold", state.sale.id);
        assert!(state.sold <= state.sale.stock);
    }
    totals
}

/// Waits until the queues of intents are empty.
pub async fn empty(stage: &Stage) {
    empty_in(stage.broker.as_ref()).await;
}

/// The same, with the broker of any deployment.
pub async fn empty_in(broker: &dyn Broker) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for queue in [Queue::Intents, Queue::Returned] {
        while broker.depth(queue.clone()).await.expect("depth").messages > 0 {
            assert!(tokio::time::Instant::now() < deadline, "{queue:?} does not empty");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// The outcome of one order, by the ledger.
pub async fn outcome(stage: &Stage, sale: &str, id: &str) -> Option<Outcome> {
    decision(stage.ledger.as_ref(), &order_key(sale, id)).await.map(|decision| decision.outcome)
}

pub async fn decision(ledger: &dyn Ledger, order: &OrderKey) -> Option<Decision> {
    ledger.decisions(std::slice::from_ref(order)).await.expect("ledger").remove(0)
}

/// The outcomes of decided orders, by the ledger.
pub async fn outcomes(stage: &Stage, orders: &[Order]) -> Vec<Outcome> {
    outcomes_in(stage.ledger.as_ref(), orders).await
}

/// The same, by the ledger of any deployment.
pub async fn outcomes_in(ledger: &dyn Ledger, orders: &[Order]) -> Vec<Outcome> {
    let keys: Vec<_> = orders.iter().map(Order::key).collect();
    let decisions = ledger.decisions(&keys).await.expect("ledger");
    decisions.into_iter().map(|decision| decision.expect("decided").outcome).collect()
}
