//! The events in a subscriber's queue, against the decisions.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Context;
use chrono::{TimeDelta, Utc};

use super::{Finding, PAGE};
use crate::app::Audited;
use crate::broker::{Broker, Queue};
use crate::cli::dead_letters::walk::{Step, Walk};
use crate::domain::decision::Decision;
use crate::domain::erasure::ArchivedOrder;
use crate::domain::event::{decision_json, order_key_of, order_of};
use crate::domain::event_batch::data_of;
use crate::domain::order::{OrderId, OrderKey, SaleId};
use crate::domain::sale::SaleState;
use crate::ledger::MAX_DISCREPANCIES;

/// A decision that is younger than this may not be published yet.
const RECENT: TimeDelta = TimeDelta::seconds(10);

/// What was compared.
pub(super) struct Events {
    pub seen: String,
    pub findings: Vec<Finding>,
}

/// What is known of the events read so far.
struct Comparison<'a> {
    audited: &'a Audited,
    sales: &'a [SaleState],
    scope: Option<&'a SaleId>,
    /// Orders with an event, as [`hash`] has them: all of a large sale take little memory.
    orders: HashSet<u64>,
    repeats: u64,
    /// Read and not compared yet.
    page: Vec<(OrderKey, Vec<u8>)>,
    findings: Vec<Finding>,
}

/// Compares the events in `queue` with the decisions of `sales`, those of the sale in `scope` or all.
pub(super) async fn compare(
    broker: &dyn Broker,
    audited: &Audited,
    queue: Queue,
    sales: &[SaleState],
    scope: Option<&SaleId>,
) -> anyhow::Result<Events> {
    let settled_before = Utc::now() - RECENT;
    let (orders, page, findings) = (HashSet::new(), Vec::new(), Vec::new());
    let mut comparison = Comparison { audited, sales, scope, orders, repeats: 0, page, findings };
    let mut walk = Walk::begin(broker, queue).await?;
    loop {
        match walk.next().await? {
            Step::Letter(mut event) => {
                let body = std::mem::take(&mut event.body);
                comparison.take(&body).await?;
                walk.keep(*event);
            }
            Step::Restart => {
                comparison.orders.clear();
                comparison.page.clear();
                comparison.findings.clear();
                comparison.repeats = 0;
            }
            Step::End => break,
        }
    }
    comparison.compare_page().await?;
    walk.end().await;
    for state in sales {
        comparison.find_missing(&state.sale.id, settled_before).await?;
    }
    let Comparison { orders, repeats, findings, .. } = comparison;
    Ok(Events { seen: format!("{} events, {repeats} repeats", orders.len()), findings })
}

impl Comparison<'_> {
    async fn take(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let events =
            data_of(body).context("a message in the queue is no event and no batch of events")?;
        for data in events {
            // An event of a sale names no order.
            let Some(key) = order_key_of(data) else { continue };
            if self.scope.is_none_or(|scope| *scope == key.sale_id) {
                self.page.push((key, data.to_vec()));
            }
        }
        if self.page.len() >= PAGE as usize { self.compare_page().await } else { Ok(()) }
    }

    async fn compare_page(&mut self) -> anyhow::Result<()> {
        let (keys, bodies): (Vec<OrderKey>, Vec<Vec<u8>>) = self.page.drain(..).unzip();
        let decisions = self.audited.ledger.decisions(&keys).await?;
        let archived = self.audited.ledger.archived(&keys).await?;
        let stored = decisions.into_iter().zip(archived);
        for ((key, body), (decision, archived)) in keys.into_iter().zip(bodies).zip(stored) {
            if !self.orders.insert(hash(&key)) {
                self.repeats += 1;
            }
            match decision {
                Some(decision) if self.is_told_by(&body, decision.clone()) => {}
                Some(_) => self.found(
                    &key.sale_id,
                    &key.order_id,
                    "has an event that tells of another decision",
                ),
                None if archived.is_some_and(|archived| self.is_of(&body, &archived)) => {}
                None => self.found(&key.sale_id, &key.order_id, "has an event and no decision"),
            }
        }
        Ok(())
    }

    /// Whether an event tells of a decision; it may name a user whose id was replaced since.
    fn is_told_by(&self, body: &[u8], mut decision: Decision) -> bool {
        if decision_json(&decision) == body {
            return true;
        }
        let state = self.sales.iter().find(|state| state.sale.id == decision.order.sale_id);
        let key = state.and_then(|state| state.erasure_key.as_ref());
        let user = order_of(body).map(|order| order.user_id);
        key.zip(user).is_some_and(|(key, user)| {
            let is_token = key.token(&user) == decision.order.user_id;
            decision.order.user_id = user;
            is_token && decision_json(&decision) == body
        })
    }

    /// Whether an event tells what is kept of an archived order.
    fn is_of(&self, body: &[u8], archived: &ArchivedOrder) -> bool {
        let state = self.sales.iter().find(|state| state.sale.id == archived.key.sale_id);
        order_of(body).zip(state).is_some_and(|(order, state)| {
            let decision = archived.repeated_by(&order, state);
            decision.is_some_and(|decision| decision_json(&decision) == body)
        })
    }

    async fn find_missing(
        &mut self,
        sale: &SaleId,
        settled_before: chrono::DateTime<Utc>,
    ) -> anyhow::Result<()> {
        let mut after: Option<OrderId> = None;
        while self.findings.len() <= MAX_DISCREPANCIES {
            let page = self.audited.books.decided(sale, after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.order.id.clone());
            for decision in page {
                let key = decision.order.key();
                if decision.decided_at < settled_before && !self.orders.contains(&hash(&key)) {
                    self.found(sale, &key.order_id, "is decided and has no event in the queue");
                }
            }
        }
        Ok(())
    }

    fn found(&mut self, sale: &SaleId, order: &OrderId, detail: &str) {
        if self.findings.len() <= MAX_DISCREPANCIES {
            let about = format!("order {order}");
            self.findings.push(Finding::new("events", sale.as_str(), about, detail));
        }
    }
}

fn hash(key: &OrderKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}
