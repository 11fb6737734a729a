//! Demand that is only just enough, behind orders that must be refused.

use chrono::{TimeDelta, Utc};
use floodgate::broker::Queue;
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;

use crate::harness::deployment::Deployment;
use crate::harness::users::{Users, until_decided};
use crate::harness::{body, order, orders, sale, until};

const STOCK: u32 = 30;
const LIMIT: u32 = 3;
/// Orders that are created before, and as many that are refused then.
const FEW: u32 = 5;

/// Why orders are refused.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Conflict,
    Limit,
    Expiry,
    Denial,
    TooLarge,
}

/// What happens in the middle.
#[derive(Debug, Clone, Copy)]
struct Fault {
    emptied: bool,
    killed: bool,
}

impl Kind {
    fn sale(self) -> Sale {
        // One that is too large would be above the limit too.
        let per_user_limit = if matches!(self, Self::TooLarge) { None } else { Some(LIMIT) };
        let verification = matches!(self, Self::Denial);
        Sale { per_user_limit, verification, ..sale("s", STOCK) }
    }

    /// Orders that must be refused, though an inventory that has lost its data knows of no reason.
    fn refused(self) -> Vec<Order> {
        (0..FEW)
            .map(|n| match self {
                Self::Conflict => order(&format!("o-{n}"), "s", &format!("u-{n}"), 2),
                Self::Limit => order(&format!("r-{n}"), "s", &format!("u-{n}"), LIMIT.into()),
                Self::Expiry => order(&format!("r-{n}"), "s", &format!("u-{n}"), 2),
                Self::Denial => order(&format!("r-{n}"), "s", &format!("bad-{n}"), 1),
                Self::TooLarge => {
                    order(&format!("r-{n}"), "s", &format!("u-{n}"), (STOCK - FEW + 1).into())
                }
            })
            .collect()
    }

    fn body(self, order: &Order) -> Vec<u8> {
        match self {
            Self::Expiry => {
                floodgate::domain::intent::to_json(order, Utc::now() - TimeDelta::hours(1))
            }
            _ => body(order),
        }
    }

    /// What becomes of them; nothing for those that are dead-lettered.
    fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Conflict => None,
            Self::Limit => Some(Outcome::Rejected(Reason::PurchaseLimit)),
            Self::Expiry => Some(Outcome::Rejected(Reason::Expired)),
            Self::Denial => Some(Outcome::Rejected(Reason::UserDenied)),
            Self::TooLarge => Some(Outcome::SoldOut),
        }
    }
}

/// Exactly the units that are left after the first few: the first buyers up to their limit, and others.
fn just_enough() -> Vec<Order> {
    let again =
        (0..FEW).map(|n| order(&format!("again-{n}"), "s", &format!("u-{n}"), (LIMIT - 1).into()));
    let others =
        (0..STOCK - FEW * LIMIT).map(|n| order(&format!("new-{n}"), "s", &format!("v-{n}"), 1));
    again.chain(others).collect()
}

async fn every_unit_sells(mut deployment: Deployment, kind: Kind, fault: Fault) {
    let sale = kind.sale();
    let users = Users::new();
    deployment.open(&sale).await;
    let first = orders("s", FEW as usize);
    deployment.post_orders(&first).await;
    let mut worker = deployment.worker(Some(users.clone())).await;
    until_decided(deployment.ledger(), &first).await;
    if fault.emptied {
        deployment.forget(&sale).await;
    }
    let (refused, valid) = (kind.refused(), just_enough());
    let refused_bodies: Vec<Vec<u8>> = refused.iter().map(|order| kind.body(order)).collect();
    let bodies = [refused_bodies.clone(), valid.iter().map(body).collect()].concat();
    deployment.post(&bodies).await;
    if fault.killed {
        until(async || deployment.state("s").await.sold > FEW).await;
        deployment = deployment.crash(worker).await;
        if fault.emptied {
            deployment.forget(&sale).await;
        }
        worker = deployment.worker(Some(users.clone())).await;
    }

    let mut decided = [first.clone(), valid.clone()].concat();
    if kind.outcome().is_some() {
        decided.extend(refused.iter().cloned());
    }
    let totals = deployment.settled(&decided).await;
    let few = FEW as usize;
    let refusals = if kind.outcome().is_some() { few } else { 0 };
    let created = first.len() + valid.len();
    assert_eq!(totals.created, created, "{kind:?} {fault:?}");
    assert_eq!(totals.sold_out + totals.rejected, refusals, "{kind:?} {fault:?}");
    assert_eq!(deployment.state("s").await.sold, STOCK, "{kind:?} {fault:?}");
    match kind.outcome() {
        Some(outcome) => {
            // Users are checked side by side: the last unit may go before a denial is decided.
            let sold_out = matches!(kind, Kind::Denial).then_some(Outcome::SoldOut);
            for found in deployment.outcomes(&refused).await {
                assert!(
                    found == outcome || Some(found) == sold_out,
                    "{found:?} {kind:?} {fault:?}"
                );
            }
            let dead = deployment.broker().depth(Queue::DeadLetters).await.expect("depth");
            assert_eq!(dead.messages, 0, "{kind:?} {fault:?}");
        }
        None => deployment.are_dead(&refused_bodies, "order_id_conflict").await,
    }
    deployment.drain(worker).await;
    deployment.remove().await;
}

async fn every_unit_sells_after(kind: Kind) {
    for killed in [false, true] {
        for emptied in [false, true] {
            every_unit_sells(
                Deployment::servers("just-enough").await,
                kind,
                Fault { emptied, killed },
            )
            .await;
        }
        every_unit_sells(Deployment::embedded().await, kind, Fault { emptied: false, killed })
            .await;
    }
}

#[tokio::test]
async fn every_unit_sells_after_conflicts() {
    every_unit_sells_after(Kind::Conflict).await;
}

#[tokio::test]
async fn every_unit_sells_after_buyers_at_their_limit() {
    every_unit_sells_after(Kind::Limit).await;
}

#[tokio::test]
async fn every_unit_sells_after_orders_that_came_too_late() {
    every_unit_sells_after(Kind::Expiry).await;
}

#[tokio::test]
async fn every_unit_sells_after_users_who_are_denied() {
    every_unit_sells_after(Kind::Denial).await;
}

#[tokio::test]
async fn every_unit_sells_after_orders_that_are_too_large() {
    every_unit_sells_after(Kind::TooLarge).await;
}
