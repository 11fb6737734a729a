//! A deployment of either kind, for tests of what holds on both.

use std::collections::HashSet;
use std::sync::Arc;

use floodgate::broker::{Broker, Queue};
use floodgate::domain::decision::Outcome;
use floodgate::domain::order::Order;
use floodgate::domain::sale::{Sale, SaleState};
use floodgate::ledger::Ledger;
use floodgate::verification::Verifier;

use super::check::{self, Totals};
use super::embedded::Embedded;
use super::{PATIENCE, Running, Stage, body, forget, post, sale_id};

/// Batches are small, so that what a test posts takes several.
const MAX_BATCH: usize = 4;

/// On servers, or embedded.
pub enum Deployment {
    Servers(Box<Stage>),
    Embedded(Box<Embedded>),
}

impl Deployment {
    pub async fn servers(what: &str) -> Self {
        Self::Servers(Box::new(Stage::new(what).await))
    }

    pub async fn embedded() -> Self {
        let embedded = Embedded::new().await;
        // The queue is there before the first event is.
        let events = embedded.events().await;
        events.stop();
        events.finished().await;
        Self::Embedded(Box::new(embedded))
    }

    /// One of each kind.
    pub async fn both(what: &str) -> [Self; 2] {
        [Self::servers(what).await, Self::embedded().await]
    }

    pub fn broker(&self) -> &dyn Broker {
        match self {
            Self::Servers(stage) => stage.broker.as_ref(),
            Self::Embedded(embedded) => embedded.broker.as_ref(),
        }
    }

    pub fn ledger(&self) -> &dyn Ledger {
        match self {
            Self::Servers(stage) => stage.ledger.as_ref(),
            Self::Embedded(embedded) => embedded.ledger.as_ref(),
        }
    }

    pub async fn open(&self, sale: &Sale) {
        self.ledger().open(std::slice::from_ref(sale)).await.expect("open a sale");
    }

    pub async fn post_orders(&self, orders: &[Order]) {
        let bodies: Vec<Vec<u8>> = orders.iter().map(body).collect();
        self.post(&bodies).await;
    }

    pub async fn post(&self, bodies: &[Vec<u8>]) {
        post(self.broker(), bodies).await;
    }

    /// Starts a worker in this process.
    pub async fn worker(&self, verifier: Option<Arc<dyn Verifier>>) -> Running {
        let mut worker = match self {
            Self::Servers(stage) => {
                let adapters = stage.deployment.app.adapters().await.expect("adapters");
                stage.deployment.app.worker(&adapters)
            }
            Self::Embedded(embedded) => embedded.worker(),
        };
        worker.options.worker.max_batch = MAX_BATCH;
        worker.verifier = verifier;
        Running::start(worker)
    }

    /// Ends the worker on the spot, and embedded everything else in its process too.
    pub async fn crash(self, worker: Running) -> Self {
        worker.abort().await;
        match self {
            Self::Servers(_) => self,
            Self::Embedded(embedded) => Self::Embedded(Box::new(embedded.crash().await)),
        }
    }

    /// Has Redis, if there is one, lose what it holds of `sale`.
    pub async fn forget(&self, sale: &Sale) {
        if let Self::Servers(stage) = self {
            forget(stage, std::slice::from_ref(sale)).await;
        }
    }

    pub async fn state(&self, sale: &str) -> SaleState {
        self.ledger().sales(Some(&[sale_id(sale)])).await.expect("sales").remove(0)
    }

    /// As [`check::settled`].
    pub async fn settled(&mut self, orders: &[Order]) -> Totals {
        match self {
            Self::Servers(stage) => check::settled(stage, orders).await,
            Self::Embedded(embedded) => {
                let mut events = embedded.events().await;
                let ledger = embedded.ledger.as_ref();
                let totals = check::settled_in(ledger, &mut events, orders, 0).await;
                events.stop();
                totals
            }
        }
    }

    pub async fn outcomes(&self, orders: &[Order]) -> Vec<Outcome> {
        check::outcomes_in(self.ledger(), orders).await
    }

    /// Waits until every one of `bodies` is a dead letter for `reason`, and no other is one.
    pub async fn are_dead(&self, bodies: &[Vec<u8>], reason: &str) {
        let mut missing: HashSet<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let mut letters = self.broker().consume(Queue::DeadLetters, 1000).await.expect("consume");
        while !missing.is_empty() {
            let next = tokio::time::timeout(PATIENCE, letters.next()).await;
            let letter = next.expect("a dead letter in time").expect("a dead letter");
            assert!(bodies.contains(&letter.body), "{:?}", String::from_utf8_lossy(&letter.body));
            assert_eq!(letter.properties.dead.as_ref().expect("a reason").reason, reason);
            missing.remove(letter.body.as_slice());
            letter.ack();
        }
        letters.stop();
        letters.finished().await;
    }

    /// Waits until no intents are left, then drains `worker`.
    pub async fn drain(&self, worker: Running) {
        check::empty_in(self.broker()).await;
        worker.stop().await;
    }

    /// Removes everything; called at the end of a test that passed.
    pub async fn remove(self) {
        if let Self::Servers(stage) = self {
            stage.remove().await;
        }
    }
}
