//! The contract of `Inventory`. What single answers are is held against a model in
//! `inventory_model`; here is what the port promises around them.

use std::sync::Arc;

use floodgate::decision::{Decision, Outcome, Reason};
use floodgate::inventory::{Amendment, Correction, Inventory, Proposal};
use floodgate::order::{Candidate, Clearance, Order};
use floodgate::sale::{Sale, SaleState};

use super::on_every_adapter;
use crate::harness::{candidate, denied, order, orders, sale, sale_id, time};

on_every_adapter!(
    real: |stage: &crate::harness::Stage| stage.inventory.clone();
    embedded: |embedded: &crate::harness::embedded::Embedded| embedded.inventory.clone();
    an_unknown_sale_is_absent_until_it_is_primed,
    priming_again_changes_nothing,
    a_batch_is_answered_in_order_over_many_sales,
    a_known_order_gets_its_answer_again,
    other_contents_are_a_conflict_and_deduct_nothing,
    a_verdict_is_an_answer_like_another,
    where_users_are_checked_nobody_gets_a_unit_before,
    what_is_left_is_told_with_the_answers,
    an_amended_order_gives_back_what_it_took,
    the_stock_never_exceeds_what_the_ledger_says,
    an_order_id_is_forgotten_on_request,
    a_correction_needs_the_count_to_stand_still,
    copies_at_once_are_deducted_once,
    a_later_version_adds_units_and_moves_the_window,
    a_later_version_says_whether_users_are_checked,
);

type I = Arc<dyn Inventory>;

async fn prime(inventory: &I, sale: Sale) {
    inventory.prime(&[SaleState::opened(sale)]).await.expect("prime");
}

async fn propose(inventory: &I, orders: impl IntoIterator<Item = Order>) -> Vec<Proposal> {
    let candidates: Vec<Candidate> = orders.into_iter().map(candidate).collect();
    inventory.propose(&candidates).await.expect("propose").answers
}

async fn propose_one(inventory: &I, asked: Candidate) -> Proposal {
    inventory.propose(&[asked]).await.expect("propose").answers[0]
}

async fn left(inventory: &I, sale: &str) -> Option<u32> {
    inventory.remaining(&[sale_id(sale)]).await.expect("remaining")[0]
}

fn fresh(outcome: Outcome) -> Proposal {
    Proposal::Decided { outcome, fresh: true }
}

fn known(outcome: Outcome) -> Proposal {
    Proposal::Decided { outcome, fresh: false }
}

fn decided(order: Order, outcome: Outcome) -> Decision {
    Decision { order, outcome, decided_at: time("2026-11-27T08:00:00Z") }
}

async fn an_unknown_sale_is_absent_until_it_is_primed(inventory: I) {
    let order = order("o", "s", "u", 1);
    assert_eq!(propose(&inventory, [order.clone()]).await, [Proposal::Absent]);
    assert_eq!(left(&inventory, "s").await, None);
    inventory
        .prime(&[SaleState { sold: 4, ..SaleState::opened(sale("s", 10)) }])
        .await
        .expect("prime");
    assert_eq!(left(&inventory, "s").await, Some(6));
    assert_eq!(propose(&inventory, [order]).await, [fresh(Outcome::Created)]);
    assert_eq!(inventory.propose(&[]).await.expect("nothing asked").answers, []);
    assert_eq!(inventory.remaining(&[]).await.expect("nothing asked"), []);
}

async fn priming_again_changes_nothing(inventory: I) {
    prime(&inventory, sale("s", 3)).await;
    propose(&inventory, orders("s", 2)).await;
    prime(&inventory, sale("s", 3)).await;
    assert_eq!(left(&inventory, "s").await, Some(1));
}

async fn a_batch_is_answered_in_order_over_many_sales(inventory: I) {
    for n in 0..20 {
        prime(&inventory, sale(&format!("s-{n}"), 1)).await;
    }
    let batch = (0..60).map(|n| order(&format!("o-{n}"), &format!("s-{}", n % 25), "u", 1));
    let answers = propose(&inventory, batch).await;
    for (n, answer) in answers.into_iter().enumerate() {
        let expected = match (n % 25, n) {
            (20.., _) => Proposal::Absent,
            (_, 0..25) => fresh(Outcome::Created),
            _ => fresh(Outcome::SoldOut),
        };
        assert_eq!(answer, expected, "order {n}");
    }
}

async fn a_known_order_gets_its_answer_again(inventory: I) {
    prime(&inventory, sale("s", 1)).await;
    let batch = || [order("a", "s", "u", 1), order("b", "s", "u", 1), order("a", "s", "u", 1)];
    let (yes, no) = (Outcome::Created, Outcome::SoldOut);
    assert_eq!(propose(&inventory, batch()).await, [fresh(yes), fresh(no), known(yes)]);
    assert_eq!(propose(&inventory, batch()).await, [known(yes), known(no), known(yes)]);
    assert_eq!(left(&inventory, "s").await, Some(0));
}

async fn other_contents_are_a_conflict_and_deduct_nothing(inventory: I) {
    prime(&inventory, sale("s", 9)).await;
    let batch = [order("a", "s", "u", 1), order("a", "s", "u", 2), order("a", "s", "v", 1)];
    let answers = propose(&inventory, batch).await;
    assert_eq!(answers, [fresh(Outcome::Created), Proposal::Conflict, Proposal::Conflict]);
    assert_eq!(left(&inventory, "s").await, Some(8));
}

async fn a_verdict_is_an_answer_like_another(inventory: I) {
    prime(&inventory, sale("s", 9)).await;
    let rejected = Outcome::Rejected(Reason::UserDenied);
    let asked = denied(order("a", "s", "u", 1), Reason::UserDenied);
    assert_eq!(propose_one(&inventory, asked).await, fresh(rejected));
    // It stands, whatever is found out later; and so does what was decided before it.
    assert_eq!(propose(&inventory, [order("a", "s", "u", 1)]).await, [known(rejected)]);
    propose(&inventory, [order("b", "s", "u", 1)]).await;
    let late = denied(order("b", "s", "u", 1), Reason::Expired);
    assert_eq!(propose_one(&inventory, late).await, known(Outcome::Created));
    assert_eq!(left(&inventory, "s").await, Some(8));
}

async fn where_users_are_checked_nobody_gets_a_unit_before(inventory: I) {
    let limit = Some(2);
    prime(&inventory, Sale { verification: true, per_user_limit: limit, ..sale("s", 3) }).await;
    let ask = || order("a", "s", "u", 2);
    assert_eq!(propose(&inventory, [ask(), ask()]).await, [Proposal::Unchecked; 2]);
    assert_eq!(left(&inventory, "s").await, Some(3), "nothing was deducted");
    let checked = Candidate { clearance: Clearance::Given, ..candidate(ask()) };
    assert_eq!(propose_one(&inventory, checked).await, fresh(Outcome::Created));
    // What needs no check: what is decided, and what would not be created in any case.
    assert_eq!(propose(&inventory, [ask()]).await, [known(Outcome::Created)]);
    let limited = Outcome::Rejected(Reason::PurchaseLimit);
    assert_eq!(propose(&inventory, [order("b", "s", "u", 1)]).await, [fresh(limited)]);
    assert_eq!(propose(&inventory, [order("c", "s", "v", 2)]).await, [fresh(Outcome::SoldOut)]);
    let other = order("a", "s", "v", 2);
    assert_eq!(propose(&inventory, [other]).await, [Proposal::Conflict]);
    let refused = denied(order("d", "s", "v", 1), Reason::UserDenied);
    let denied = Outcome::Rejected(Reason::UserDenied);
    assert_eq!(propose_one(&inventory, refused).await, fresh(denied));
    assert_eq!(left(&inventory, "s").await, Some(1));
}

async fn what_is_left_is_told_with_the_answers(inventory: I) {
    prime(&inventory, sale("s", 3)).await;
    prime(&inventory, Sale { verification: true, ..sale("t", 5) }).await;
    let asked = [order("a", "s", "u", 2), order("b", "t", "u", 2), order("c", "nowhere", "u", 1)];
    let candidates = asked.map(candidate);
    let proposals = inventory.propose(&candidates).await.expect("propose");
    assert_eq!(proposals.left, [(sale_id("s"), 1), (sale_id("t"), 5)].into());
}

async fn an_amended_order_gives_back_what_it_took(inventory: I) {
    prime(&inventory, Sale { per_user_limit: Some(3), ..sale("s", 9) }).await;
    let asked = order("a", "s", "u", 3);
    propose(&inventory, [asked.clone()]).await;
    let amendment = Amendment {
        proposed: asked.clone(),
        answer: Some(decided(asked.clone(), Outcome::SoldOut)),
        sold: None,
    };
    for _ in 0..2 {
        inventory.amend(std::slice::from_ref(&amendment)).await.expect("amend");
        assert_eq!(left(&inventory, "s").await, Some(9), "given back once");
    }
    assert_eq!(propose(&inventory, [asked]).await, [known(Outcome::SoldOut)]);
    let again = order("b", "s", "u", 3);
    assert_eq!(
        propose(&inventory, [again]).await,
        [fresh(Outcome::Created)],
        "the buyer's units too"
    );
}

async fn the_stock_never_exceeds_what_the_ledger_says(inventory: I) {
    prime(&inventory, sale("s", 9)).await;
    let asked = order("a", "s", "u", 1);
    propose(&inventory, [asked.clone()]).await;
    let answer = Some(decided(asked.clone(), Outcome::SoldOut));
    let amendment = Amendment { proposed: asked, answer, sold: Some(7) };
    inventory.amend(&[amendment]).await.expect("amend");
    assert_eq!(left(&inventory, "s").await, Some(2));
    let elsewhere = order("b", "not-held", "u", 1);
    let amendment = Amendment { proposed: elsewhere, answer: None, sold: Some(7) };
    inventory.amend(&[amendment]).await.expect("a sale that is not held needs no amending");
    assert_eq!(left(&inventory, "not-held").await, None);
}

async fn an_order_id_is_forgotten_on_request(inventory: I) {
    prime(&inventory, sale("s", 9)).await;
    let asked = order("a", "s", "u", 1);
    propose(&inventory, [asked.clone()]).await;
    let amendment = Amendment { proposed: asked.clone(), answer: None, sold: None };
    inventory.amend(&[amendment]).await.expect("amend");
    assert_eq!(left(&inventory, "s").await, Some(9));
    assert_eq!(propose(&inventory, [asked]).await, [fresh(Outcome::Created)]);
}

async fn a_correction_needs_the_count_to_stand_still(inventory: I) {
    prime(&inventory, sale("s", 9)).await;
    let correct = async |seen, actual| {
        let correction = Correction { sale_id: sale_id("s"), seen, actual };
        inventory.correct(&[correction]).await.expect("correct")
    };
    assert_eq!(correct(8, 5).await, [false]);
    assert_eq!(left(&inventory, "s").await, Some(9));
    assert_eq!(correct(9, 5).await, [true]);
    assert_eq!(left(&inventory, "s").await, Some(5));
}

async fn copies_at_once_are_deducted_once(inventory: I) {
    prime(&inventory, sale("s", 1000)).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let inventory = inventory.clone();
        calls.spawn(async move { propose(&inventory, orders("s", 40)).await });
    }
    let mut answered_fresh = 0;
    while let Some(answers) = calls.join_next().await {
        let answers = answers.expect("no panic");
        answered_fresh += answers.iter().filter(|a| **a == fresh(Outcome::Created)).count();
    }
    assert_eq!(answered_fresh, 40);
    assert_eq!(left(&inventory, "s").await, Some(960));
}

async fn a_later_version_adds_units_and_moves_the_window(inventory: I) {
    let first = SaleState::opened(sale("s", 2));
    let more = SaleState { version: 2, sold: 1, ..SaleState::opened(sale("s", 5)) };
    inventory.prime(std::slice::from_ref(&first)).await.expect("prime");
    propose(&inventory, orders("s", 2)).await;
    // The ledger has recorded only one of both so far; what is added is counted, not what is left.
    for _ in 0..2 {
        inventory.prime(std::slice::from_ref(&more)).await.expect("prime");
        assert_eq!(left(&inventory, "s").await, Some(3));
    }
    inventory.prime(std::slice::from_ref(&first)).await.expect("prime");
    assert_eq!(left(&inventory, "s").await, Some(3), "old news change nothing");
    let closes_at = Some(time("2026-11-27T08:00:00Z"));
    let closed = SaleState { version: 3, ..SaleState::opened(Sale { closes_at, ..sale("s", 5) }) };
    inventory.prime(&[closed]).await.expect("prime");
    let answers = propose(&inventory, [order("late", "s", "u", 1)]).await;
    assert_eq!(answers, [fresh(Outcome::Rejected(Reason::Closed))]);
    assert_eq!(left(&inventory, "s").await, Some(3));
    // An answer of the ledger from after the restock, to a sale held as it was before.
    inventory.prime(&[SaleState::opened(sale("t", 2))]).await.expect("prime");
    let asked = order("t-1", "t", "u", 1);
    propose(&inventory, [asked.clone()]).await;
    let amendment = Amendment { proposed: asked, answer: None, sold: Some(4) };
    inventory.amend(&[amendment]).await.expect("amend");
    assert_eq!(left(&inventory, "t").await, Some(0));
    let more = SaleState { version: 2, ..SaleState::opened(sale("t", 6)) };
    inventory.prime(&[more]).await.expect("prime");
    assert!(left(&inventory, "t").await.is_some_and(|left| left >= 2));
}

async fn a_later_version_says_whether_users_are_checked(inventory: I) {
    let version = |version, verification| SaleState {
        version,
        ..SaleState::opened(Sale { verification, ..sale("s", 3) })
    };
    let switch = async |state: SaleState| inventory.prime(&[state]).await.expect("prime");
    let ask = async |id| propose(&inventory, [order(id, "s", "u", 1)]).await[0];
    switch(version(1, true)).await;
    assert_eq!(ask("a").await, Proposal::Unchecked);
    switch(version(2, false)).await;
    assert_eq!(ask("a").await, fresh(Outcome::Created), "the order that waited");
    switch(version(1, true)).await;
    assert_eq!(ask("b").await, fresh(Outcome::Created), "old news change nothing");
    switch(version(3, true)).await;
    assert_eq!(ask("c").await, Proposal::Unchecked);
    assert_eq!(ask("a").await, known(Outcome::Created));
    assert_eq!(left(&inventory, "s").await, Some(1), "no switch moves a unit");
}
