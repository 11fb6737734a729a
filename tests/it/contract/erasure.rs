//! The contract of `Erasure`: a user's id is replaced, and nothing else changes for anybody.

use std::time::Duration;

use chrono::{SubsecRound, TimeDelta, Utc};
use floodgate::app::Retention;
use floodgate::domain::decision::{Decision, Hint, Outcome, Reason};
use floodgate::domain::order::{Candidate, UserId};
use floodgate::domain::rules::Answer;
use floodgate::domain::sale::Sale;
use floodgate::ledger::{ArchiveRecord, ArchiveStage, KeptOfUser, Proposed};

use super::ledger::{MAX_AGE, decide_hinted, outcome, outcomes};
use super::on_every_archive;
use crate::harness::{candidate, order, sale, sale_id};

on_every_archive!(
    repeats_and_limits_hold_for_a_user_whose_id_was_replaced,
    decisions_that_are_made_meanwhile_are_the_tokens,
    archived_orders_of_a_replaced_user_keep_their_answers,
    an_archive_that_begins_before_the_id_is_replaced_balances,
);

const HINTS: [Option<Hint>; 3] = [None, Some(Hint::Granted), Some(Hint::Refused)];

fn user(id: &str) -> UserId {
    UserId::parse(id).expect("a user id")
}

fn limited(id: &str) -> Sale {
    Sale { per_user_limit: Some(2), ..sale(id, 9) }
}

async fn decide(retention: &Retention, orders: &[Candidate], hint: Option<Hint>) -> Vec<Answer> {
    let orders: Vec<_> = orders.iter().map(|order| (order.clone(), hint)).collect();
    decide_hinted(&retention.ledger, &orders, false).await.answers
}

async fn stored(retention: &Retention, sale: &str) -> Vec<Decision> {
    retention.books.decided(&sale_id(sale), None, 10_000).await.expect("decisions")
}

async fn erase(retention: &Retention, id: &str) -> Vec<(String, UserId, u64)> {
    let id = user(id);
    let kept = retention.erasure.kept_of(&id).await.expect("found");
    let sales: Vec<_> = kept.into_keys().collect();
    let tokens = retention.erasure.begin(&id, &sales).await.expect("begun");
    let mut replaced = Vec::new();
    for (sale, token) in tokens {
        let count = retention.erasure.replace(&id, &sale, &token).await.expect("replaced");
        replaced.push((sale.to_string(), token, count));
    }
    replaced
}

async fn balances(retention: &Retention) {
    let balance = retention.books.balance(None).await.expect("balance");
    assert!(balance.discrepancies.is_empty(), "{:?}", balance.discrepancies);
}

fn decisions(answers: &[Answer]) -> Vec<Decision> {
    let decision = |answer: &Answer| match answer {
        Answer::Decided { decision, .. } => decision.clone(),
        other => panic!("{other:?}"),
    };
    answers.iter().map(decision).collect()
}

/// The archive of three decisions of the sale `s`.
fn archive() -> ArchiveRecord {
    ArchiveRecord {
        sale_id: sale_id("s"),
        archive_id: "1".into(),
        stage: ArchiveStage::Writing,
        file: "/f".into(),
        sha256: "abc".into(),
        decisions: 3,
        created_at: Utc::now().trunc_subsecs(3),
    }
}

async fn repeats_and_limits_hold_for_a_user_whose_id_was_replaced(retention: Retention) {
    retention.ledger.open(&[limited("s"), sale("t", 9), sale("v", 9)]).await.expect("open");
    let orders = [
        candidate(order("a", "s", "ada", 1)),
        candidate(order("b", "s", "ada", 2)),
        candidate(order("c", "s", "bob", 2)),
        candidate(order("a", "t", "ada", 3)),
        candidate(order("x", "v", "bob", 1)),
    ];
    let first = decisions(&decide(&retention, &orders, None).await);
    let others = stored(&retention, "v").await;
    let replaced = erase(&retention, "ada").await;
    let [(s, of_s, 2), (t, of_t, 1)] = &replaced[..] else { panic!("{replaced:?}") };
    assert_eq!((s.as_str(), t.as_str()), ("s", "t"));
    assert_ne!(of_s, of_t, "tokens of two sales can't be told to be one user's");
    let users: Vec<UserId> =
        stored(&retention, "s").await.into_iter().map(|stored| stored.order.user_id).collect();
    assert_eq!(users, [of_s.clone(), of_s.clone(), user("bob")]);
    assert_eq!(stored(&retention, "v").await, others);
    let (s, ada) = (sale_id("s"), user("ada"));
    let units = retention.books.units(&[(&s, &ada), (&s, of_s)]).await.expect("units");
    assert_eq!((units[&(s.clone(), ada.clone())], units[&(s.clone(), of_s.clone())]), (0, 1));
    balances(&retention).await;

    for redelivered in [false, true] {
        for hint in HINTS {
            let again: Vec<_> = orders.iter().map(|order| (order.clone(), hint)).collect();
            let answers = decide_hinted(&retention.ledger, &again, redelivered).await.answers;
            assert!(answers.iter().all(|answer| answer.new_decision().is_none()));
            assert_eq!(decisions(&answers), first, "as they were, with the user of the message");
            for other in [order("a", "s", "ada", 2), order("a", "s", "bob", 1)] {
                assert_eq!(decide(&retention, &[candidate(other)], hint).await, [Answer::Conflict]);
            }
        }
    }
    for (n, (hint, expected)) in HINTS
        .into_iter()
        .zip([
            Outcome::Created,
            Outcome::Rejected(Reason::PurchaseLimit),
            Outcome::Rejected(Reason::PurchaseLimit),
        ])
        .enumerate()
    {
        let new = candidate(order(&format!("new-{n}"), "s", "ada", 1));
        let decided = decide_hinted(&retention.ledger, &[(new, hint)], false).await;
        assert_eq!(outcomes(&decided.answers), [expected]);
        assert_eq!(decided.units[&(s.clone(), ada.clone())], 2);
    }
    let users = stored(&retention, "s").await.into_iter().map(|stored| stored.order.user_id);
    assert_eq!(users.filter(|user| user == of_s).count(), 5);
    assert_eq!(retention.erasure.kept_of(&ada).await.expect("found").len(), 0);
    assert_eq!(erase(&retention, "ada").await, []);
    balances(&retention).await;
}

async fn decisions_that_are_made_meanwhile_are_the_tokens(retention: Retention) {
    retention
        .ledger
        .open(&[Sale { per_user_limit: Some(200), ..sale("s", 500) }])
        .await
        .expect("open");
    let orders: Vec<Candidate> =
        (0..30).map(|n| candidate(order(&format!("o-{n}"), "s", "ada", 1))).collect();
    let first = decisions(&decide(&retention, &orders, None).await);
    let stop = tokio_util::sync::CancellationToken::new();
    let mut deciding = tokio::task::JoinSet::new();
    for (n, hint) in HINTS.into_iter().enumerate() {
        let (ledger, stop, first) = (retention.ledger.clone(), stop.clone(), first.clone());
        let orders = orders.clone();
        deciding.spawn(async move {
            let mut times = 0;
            while !stop.is_cancelled() {
                times += 1;
                let mut batch = orders.clone();
                batch.push(candidate(order(&format!("new-{n}-{times}"), "s", "ada", 1)));
                let proposed =
                    |candidate| Proposed { candidate, hint, redelivered: false, watermark: None };
                let batch: Vec<_> = batch.iter().map(proposed).collect();
                let answers = ledger.decide(&batch, MAX_AGE).await.expect("decided").answers;
                let answers = decisions(&answers);
                assert_eq!(answers[..30], first);
                assert_eq!(answers[30].order.user_id, user("ada"));
            }
            times
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let replaced = erase(&retention, "ada").await;
    assert!(replaced[0].2 >= 30, "{replaced:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.cancel();
    let mut new = 0;
    while let Some(times) = deciding.join_next().await {
        new += times.expect("no panic");
    }
    let stored = stored(&retention, "s").await;
    assert_eq!(stored.len(), 30 + new);
    assert!(stored.iter().all(|stored| stored.order.user_id == replaced[0].1));
    assert_eq!(retention.erasure.kept_of(&user("ada")).await.expect("found").len(), 0);
    balances(&retention).await;
}

async fn archived_orders_of_a_replaced_user_keep_their_answers(retention: Retention) {
    let closes_at = Utc::now().trunc_subsecs(3) - TimeDelta::hours(1);
    retention
        .ledger
        .open(&[Sale { closes_at: Some(closes_at), ..limited("s") }])
        .await
        .expect("open");
    let early = |id: &str, user: &str| {
        let submitted_at = Some(closes_at - TimeDelta::hours(1));
        Candidate { submitted_at, ..candidate(order(id, "s", user, 1)) }
    };
    let orders = [early("a", "ada"), early("b", "bob"), early("c", "bob")];
    let first = decisions(&decide(&retention, &orders, None).await);
    let [(_, token, 1)] = &erase(&retention, "ada").await[..] else { panic!("one sale") };
    let mut record = archive();
    let mut file = stored(&retention, "s").await;
    for stage in [ArchiveStage::Writing, ArchiveStage::Moving] {
        record.stage = stage;
        retention.archive.record(&record, Duration::from_mins(1)).await.expect("recorded");
    }
    retention.archive.move_out(&record, &file).await.expect("moved");
    let other = ArchiveRecord { file: "/g".into(), sha256: "def".into(), ..record.clone() };
    let (s, bob) = (sale_id("s"), user("bob"));
    let refused =
        retention.erasure.begin(&bob, std::slice::from_ref(&s)).await.expect_err("moving");
    assert!(refused.to_string().contains("floodgate sale archive s"), "{refused}");
    assert!(retention.erasure.replace_file(&record, &other).await.is_err(), "it is not done");
    record.stage = ArchiveStage::Done;
    retention.archive.record(&record, Duration::ZERO).await.expect("recorded");

    let archived = KeptOfUser { in_ledger: false, in_archive: true };
    for id in ["ada", "bob"] {
        let kept = retention.erasure.kept_of(&user(id)).await.expect("found");
        assert_eq!(kept.into_values().collect::<Vec<_>>(), [archived], "{id}");
    }
    assert!(retention.erasure.kept_of(&user("eve")).await.expect("found").is_empty());
    let [(_, bob, 0)] = &erase(&retention, "bob").await[..] else { panic!("one sale") };
    let now = ArchiveRecord { stage: ArchiveStage::Done, ..other };
    retention.erasure.replace_file(&record, &now).await.expect("replaced");
    assert!(retention.erasure.replace_file(&record, &now).await.is_err(), "it is another one now");
    assert_eq!(
        retention.archive.archives(None).await.expect("archives"),
        std::slice::from_ref(&now)
    );
    for decision in &mut file {
        if decision.order.user_id == user("bob") {
            decision.order.user_id = bob.clone();
        }
    }
    for hint in HINTS {
        assert_eq!(
            decide(&retention, &orders, hint).await.iter().map(outcome).collect::<Vec<_>>(),
            first.iter().map(|first| first.outcome).collect::<Vec<_>>()
        );
    }
    record = ArchiveRecord { stage: ArchiveStage::Restoring, ..now };
    retention.archive.record(&record, Duration::ZERO).await.expect("recorded");
    assert_eq!(retention.archive.move_back(&record, &file).await.expect("moved"), 3);
    retention.archive.forget(&record).await.expect("forgotten");
    let users: Vec<UserId> =
        stored(&retention, "s").await.into_iter().map(|stored| stored.order.user_id).collect();
    assert_eq!(users, [token.clone(), bob.clone(), bob.clone()]);
    assert_eq!(decisions(&decide(&retention, &orders, None).await), first);
    balances(&retention).await;
}

async fn an_archive_that_begins_before_the_id_is_replaced_balances(retention: Retention) {
    let closes_at = Utc::now().trunc_subsecs(3) - TimeDelta::hours(1);
    retention
        .ledger
        .open(&[Sale { closes_at: Some(closes_at), ..limited("s") }])
        .await
        .expect("open");
    let early = |id: &str| {
        let submitted_at = Some(closes_at - TimeDelta::hours(1));
        Candidate { submitted_at, ..candidate(order(id, "s", "ada", 1)) }
    };
    let orders = [early("a"), early("b"), early("c")];
    let first = decisions(&decide(&retention, &orders, None).await);
    let (ada, s) = (user("ada"), sale_id("s"));
    let tokens = retention.erasure.begin(&ada, std::slice::from_ref(&s)).await.expect("begun");
    let mut record = archive();
    let file = stored(&retention, "s").await;
    for stage in [ArchiveStage::Writing, ArchiveStage::Moving] {
        record.stage = stage;
        retention.archive.record(&record, Duration::from_mins(1)).await.expect("recorded");
        assert!(retention.erasure.replace(&ada, &s, &tokens[&s]).await.is_err(), "{stage:?}");
    }
    assert_eq!(stored(&retention, "s").await, file, "what the file has");
    assert_eq!(retention.archive.move_out(&record, &file).await.expect("moved"), 3);
    balances(&retention).await;
    for hint in HINTS {
        let again = decisions(&decide(&retention, &orders, hint).await);
        assert!(again.iter().zip(&first).all(|(again, first)| again.outcome == first.outcome));
    }
    record.stage = ArchiveStage::Done;
    retention.archive.record(&record, Duration::ZERO).await.expect("recorded");
    let kept = retention.erasure.kept_of(&ada).await.expect("found");
    assert_eq!(kept[&s], KeptOfUser { in_ledger: false, in_archive: true });
    record.stage = ArchiveStage::Restoring;
    retention.archive.record(&record, Duration::ZERO).await.expect("recorded");
    assert_eq!(retention.archive.move_back(&record, &file).await.expect("moved"), 3);
    retention.archive.forget(&record).await.expect("forgotten");
    balances(&retention).await;
    assert_eq!(erase(&retention, "ada").await, [("s".to_owned(), tokens[&s].clone(), 3)]);
    balances(&retention).await;
    assert_eq!(decisions(&decide(&retention, &orders, None).await), first);
}
