//! The contract of `Archive`: decisions that leave the ledger keep their answers, and come back as they were.

use std::time::Duration;

use chrono::{SubsecRound, TimeDelta, Utc};
use floodgate::app::Retention;
use floodgate::domain::decision::{Decision, Hint, Outcome, Reason};
use floodgate::domain::event::Event;
use floodgate::domain::order::{Candidate, Order, OrderKey};
use floodgate::domain::rules::Answer;
use floodgate::domain::sale::{PauseMode, Sale, SaleState};
use floodgate::ledger::{ArchiveRecord, ArchiveStage, Change, Decided, Proposed};

use super::ledger::{MAX_AGE, decide_hinted, outcome, outcomes, state};
use super::on_every_archive;
use crate::harness::{candidate, order, sale, sale_id};

on_every_archive!(
    archived_orders_keep_their_answers_and_come_back,
    only_what_the_file_has_is_moved,
    moving_again_changes_nothing,
    a_sale_that_may_sell_yet_is_not_archived,
    an_archived_sale_sells_nothing_even_after_it_was_held,
    two_commands_do_not_work_on_one_archive,
    repeats_get_the_same_answer_while_decisions_move,
);

/// From the closing of a sale until it may be archived.
const SETTLED: Duration = Duration::from_mins(1);
const HINTS: [Option<Hint>; 3] = [None, Some(Hint::Granted), Some(Hint::Refused)];

/// A sale with a limit that closed an hour ago.
fn closed(id: &str, stock: u32) -> Sale {
    let closes_at = Utc::now().trunc_subsecs(3) - TimeDelta::hours(1);
    Sale { per_user_limit: Some(2), closes_at: Some(closes_at), ..sale(id, stock) }
}

/// An order from before that.
fn early(order: Order) -> Candidate {
    let submitted_at = Some(Utc::now().trunc_subsecs(3) - TimeDelta::hours(2));
    Candidate { submitted_at, ..candidate(order) }
}

/// Orders of a unit, three of each user, the third of which is over the limit.
fn many(sale: &str, count: usize) -> Vec<Candidate> {
    let one = |n| early(order(&format!("o-{n:04}"), sale, &format!("u-{}", n / 3), 1));
    (0..count).map(one).collect()
}

fn archive(id: &str, stage: ArchiveStage) -> ArchiveRecord {
    ArchiveRecord {
        sale_id: sale_id("s"),
        archive_id: id.to_owned(),
        stage,
        file: "/somewhere/s.jsonl.gz".to_owned(),
        sha256: if stage == ArchiveStage::Writing { String::new() } else { "abc".to_owned() },
        decisions: 7,
        created_at: Utc::now().trunc_subsecs(3),
    }
}

async fn record(retention: &Retention, id: &str, stages: &[ArchiveStage]) {
    for stage in stages {
        let recorded = retention.archive.record(&archive(id, *stage), SETTLED).await;
        recorded.unwrap_or_else(|error| panic!("{stage:?}: {error}"));
    }
}

async fn decide(retention: &Retention, orders: &[Candidate], hint: Option<Hint>) -> Decided {
    let orders: Vec<_> = orders.iter().map(|order| (order.clone(), hint)).collect();
    decide_hinted(&retention.ledger, &orders, false).await
}

async fn all(retention: &Retention) -> Vec<Decision> {
    retention.books.decided(&sale_id("s"), None, 10_000).await.expect("decisions")
}

/// What is wrong in the books.
async fn unbalanced(retention: &Retention) -> String {
    let balance = retention.books.balance(None).await.expect("balance");
    format!("{:?}", balance.discrepancies)
}

fn same_events(answers: &[Answer], first: &[Decision]) {
    assert_eq!(answers.len(), first.len());
    for (answer, first) in answers.iter().zip(first) {
        let Answer::Decided { decision, is_new: false } = answer else { panic!("{answer:?}") };
        assert_eq!(Event::of(decision), Event::of(first));
    }
}

async fn archived_orders_keep_their_answers_and_come_back(retention: Retention) {
    retention.ledger.open(&[closed("s", 25), sale("t", 5)]).await.expect("open");
    let mut orders = many("s", 50);
    orders.push(candidate(order("late", "s", "u", 1)));
    let first = decide(&retention, &orders, None).await;
    let late = Outcome::Rejected(Reason::Closed);
    let seen = outcomes(&first.answers);
    for expected in
        [Outcome::Created, Outcome::Rejected(Reason::PurchaseLimit), Outcome::SoldOut, late]
    {
        assert!(seen.contains(&expected), "{expected:?}");
    }
    let (before, sold) = (all(&retention).await, state(&retention.ledger, "s").await);
    let by_order: Vec<Decision> =
        first.answers.iter().filter_map(Answer::new_decision).cloned().collect();

    record(&retention, "1", &[ArchiveStage::Writing, ArchiveStage::Moving]).await;
    let moving = archive("1", ArchiveStage::Moving);
    for chunk in before.chunks(20) {
        let moved = retention.archive.move_out(&moving, chunk).await.expect("moved");
        assert_eq!(moved, chunk.len() as u64);
        assert_eq!(unbalanced(&retention).await, "[]");
    }
    record(&retention, "1", &[ArchiveStage::Done]).await;
    assert_eq!(all(&retention).await, []);
    for redelivered in [false, true] {
        for hint in HINTS {
            let again: Vec<_> = orders.iter().map(|order| (order.clone(), hint)).collect();
            let answers = decide_hinted(&retention.ledger, &again, redelivered).await.answers;
            same_events(&answers, &by_order);
        }
    }
    others_get_their_own_answers(&retention, &by_order).await;
    let keys = [before[0].order.key(), OrderKey { sale_id: sale_id("t"), ..before[0].order.key() }];
    let kept = retention.ledger.archived(&keys).await.expect("ledger");
    let key = state(&retention.ledger, "s").await.erasure_key;
    let first = kept[0].as_ref().expect("archived");
    assert!(first.is_of(&before[0].order.user_id, key.as_ref()) && kept[1].is_none());
    assert_eq!(retention.ledger.decisions(&keys).await.expect("ledger"), [None, None]);
    assert_eq!(retention.archive.archives(Some(&sale_id("t"))).await.expect("archives"), []);
    let known = retention.archive.archives(None).await.expect("archives");
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].stage, known[0].decisions), (ArchiveStage::Done, 7));
    assert_eq!(unbalanced(&retention).await, "[]");

    let since = all(&retention).await;
    record(&retention, "1", &[ArchiveStage::Restoring]).await;
    let restoring = archive("1", ArchiveStage::Restoring);
    for chunk in before.chunks(30) {
        let moved = retention.archive.move_back(&restoring, chunk).await.expect("moved");
        assert_eq!(moved, chunk.len() as u64);
        assert_eq!(unbalanced(&retention).await, "[]");
    }
    retention.archive.forget(&restoring).await.expect("forgotten");
    let mut expected = [before, since].concat();
    expected.sort_by(|a, b| a.order.id.cmp(&b.order.id));
    assert_eq!(all(&retention).await, expected);
    let now = state(&retention.ledger, "s").await;
    assert_eq!(SaleState { erasure_key: None, ..now }, sold);
    same_events(&decide(&retention, &orders, None).await.answers, &by_order);
    assert_eq!(unbalanced(&retention).await, "[]");
}

/// Conflicts, and orders that come for the first time, of an archived sale and of another.
async fn others_get_their_own_answers(retention: &Retention, by_order: &[Decision]) {
    for hint in HINTS {
        let others = [
            early(order("o-0000", "s", "u-0", 2)),
            early(order("o-0000", "s", "other", 1)),
            early(order(&format!("new-{hint:?}").replace(['(', ')'], ""), "s", "u-9", 1)),
            candidate(order(&format!("t-{hint:?}").replace(['(', ')'], ""), "t", "u-9", 1)),
            early(order("o-0000", "s", "u-0", 1)),
        ];
        let answers = decide(retention, &others, hint).await.answers;
        assert_eq!(answers[..2], [Answer::Conflict, Answer::Conflict]);
        assert_ne!(outcome(&answers[2]), Outcome::Created, "none is left, and its time is over");
        assert_eq!(outcome(&answers[3]), Outcome::Created);
        same_events(&answers[4..], &by_order[..1]);
    }
}

async fn only_what_the_file_has_is_moved(retention: Retention) {
    retention.ledger.open(&[closed("s", 25)]).await.expect("open");
    decide(&retention, &many("s", 9), None).await;
    let before = all(&retention).await;
    record(&retention, "1", &[ArchiveStage::Writing, ArchiveStage::Moving]).await;
    let moving = archive("1", ArchiveStage::Moving);
    let changed = |change: fn(&mut Decision)| {
        let mut file = before.clone();
        change(&mut file[4]);
        file
    };
    for file in [
        changed(|decision| decision.sold += 1),
        changed(|decision| decision.outcome = Outcome::SoldOut),
        changed(|decision| decision.order = order("o-0004", "s", "other", 1)),
        changed(|decision| decision.order = order("never", "s", "u-1", 1)),
        changed(|decision| decision.submitted_at -= TimeDelta::milliseconds(1)),
    ] {
        let error = retention.archive.move_out(&moving, &file).await.expect_err("refused");
        assert!(!error.is_transient(), "{error}");
        assert_eq!(all(&retention).await, before);
    }
    retention.archive.move_out(&moving, &before).await.expect("moved");
    record(&retention, "1", &[ArchiveStage::Done, ArchiveStage::Restoring]).await;
    let restoring = archive("1", ArchiveStage::Restoring);
    for file in [
        changed(|decision| decision.outcome = Outcome::SoldOut),
        changed(|decision| decision.order = order("o-0004", "s", "other", 1)),
        changed(|decision| decision.order = order("never", "s", "u-1", 1)),
    ] {
        let error = retention.archive.move_back(&restoring, &file).await.expect_err("refused");
        assert!(!error.is_transient(), "{error}");
        assert_eq!(all(&retention).await, []);
    }
}

async fn moving_again_changes_nothing(retention: Retention) {
    retention.ledger.open(&[closed("s", 25)]).await.expect("open");
    let orders = many("s", 9);
    decide(&retention, &orders, None).await;
    let before = all(&retention).await;
    record(&retention, "1", &[ArchiveStage::Writing, ArchiveStage::Moving]).await;
    let moving = archive("1", ArchiveStage::Moving);
    for (chunk, moved) in [(&before[..4], 4), (&before[2..7], 3), (&before[..], 2), (&before, 0)] {
        assert_eq!(retention.archive.move_out(&moving, chunk).await.expect("moved"), moved);
        assert_eq!(unbalanced(&retention).await, "[]");
    }
    // A restore may take over where the archiving was stopped.
    record(&retention, "1", &[ArchiveStage::Moving, ArchiveStage::Restoring]).await;
    let restoring = archive("1", ArchiveStage::Restoring);
    assert!(retention.archive.forget(&restoring).await.is_err(), "some are archived");
    for (chunk, moved) in [(&before[..4], 4), (&before[2..7], 3), (&before[..], 2), (&before, 0)] {
        assert_eq!(retention.archive.move_back(&restoring, chunk).await.expect("moved"), moved);
        assert_eq!(unbalanced(&retention).await, "[]");
    }
    assert_eq!(all(&retention).await, before);
    for _ in 0..2 {
        retention.archive.forget(&restoring).await.expect("forgotten");
    }
    assert!(!state(&retention.ledger, "s").await.archived);
}

async fn a_sale_that_may_sell_yet_is_not_archived(retention: Retention) {
    let now = Utc::now().trunc_subsecs(3);
    let until = |at| Sale { closes_at: Some(at), ..sale("s", 5) };
    let open = until(now + TimeDelta::minutes(2));
    retention.ledger.open(&[open]).await.expect("open");
    record(&retention, "1", &[ArchiveStage::Writing]).await;
    let change =
        async |change| retention.ledger.change(&sale_id("s"), &change).await.expect("changed");
    let hour = TimeDelta::hours(1);
    for (changing, expected) in [
        (None, "is open until"),
        (Some(Change::Close { at: now - TimeDelta::seconds(30) }), "its last orders are old at"),
        (Some(Change::Close { at: now - hour }), ""),
    ] {
        if let Some(changing) = changing {
            change(changing).await;
        }
        let paused = change(Change::Pause { mode: Some(PauseMode::Refuse), at: now - hour }).await;
        assert!(paused.is_new());
        let archive = archive("1", ArchiveStage::Moving);
        let refused = retention.archive.record(&archive, SETTLED).await.expect_err("paused");
        assert!(refused.to_string().contains("is paused (refuse)"), "{refused}");
        change(Change::Pause { mode: None, at: now - hour }).await;
        match retention.archive.record(&archive, SETTLED).await {
            Err(refused) => {
                let told = refused.to_string();
                assert!(!expected.is_empty() && told.contains(expected), "{told}");
                assert!(told.contains("accepted: a sale that closed"), "{told}");
            }
            Ok(()) => assert!(expected.is_empty(), "{expected}"),
        }
    }
    let unknown = ArchiveRecord { sale_id: sale_id("t"), ..archive("1", ArchiveStage::Writing) };
    assert!(retention.archive.record(&unknown, SETTLED).await.is_err());
}

async fn an_archived_sale_sells_nothing_even_after_it_was_held(retention: Retention) {
    retention.ledger.open(&[closed("s", 25)]).await.expect("open");
    decide(&retention, &many("s", 3), None).await;
    let before = all(&retention).await;
    record(&retention, "1", &[ArchiveStage::Writing, ArchiveStage::Moving]).await;
    retention.archive.move_out(&archive("1", ArchiveStage::Moving), &before).await.expect("moved");
    record(&retention, "1", &[ArchiveStage::Done]).await;
    // A worker accepts older orders here than the command did.
    let expired = Outcome::Rejected(Reason::Expired);
    let late = async |id: &str| {
        let mut seen = Vec::new();
        for (n, hint) in HINTS.into_iter().enumerate() {
            let order = early(order(&format!("{id}-{n}"), "s", "u-0", 1));
            seen.extend(outcomes(&decide(&retention, &[order], hint).await.answers));
        }
        seen
    };
    assert_eq!(late("old").await, [expired; 3]);
    for mode in [Some(PauseMode::Hold), None] {
        let change = Change::Pause { mode, at: Utc::now() };
        retention.ledger.change(&sale_id("s"), &change).await.expect("changed");
    }
    assert_eq!(late("held").await, [expired; 3]);
    assert_eq!(unbalanced(&retention).await, "[]");
}

async fn two_commands_do_not_work_on_one_archive(retention: Retention) {
    retention.ledger.open(&[closed("s", 25)]).await.expect("open");
    decide(&retention, &many("s", 3), None).await;
    let (before, at) = (all(&retention).await, |stage| archive("1", stage));
    let refused = async |record: ArchiveRecord| {
        retention.archive.record(&record, SETTLED).await.expect_err("refused");
    };
    refused(at(ArchiveStage::Moving)).await;
    record(&retention, "1", &[ArchiveStage::Writing]).await;
    refused(at(ArchiveStage::Done)).await;
    assert!(retention.archive.move_out(&at(ArchiveStage::Moving), &before).await.is_err());
    record(&retention, "1", &[ArchiveStage::Moving]).await;
    refused(at(ArchiveStage::Writing)).await;
    refused(ArchiveRecord { sha256: "def".into(), ..at(ArchiveStage::Moving) }).await;
    assert!(retention.archive.forget(&at(ArchiveStage::Moving)).await.is_err());
    assert!(retention.archive.move_back(&at(ArchiveStage::Restoring), &before).await.is_err());
    record(&retention, "1", &[ArchiveStage::Restoring]).await;
    refused(at(ArchiveStage::Moving)).await;
    assert!(retention.archive.move_out(&at(ArchiveStage::Moving), &before).await.is_err());
    assert_eq!(all(&retention).await, before);
}

async fn repeats_get_the_same_answer_while_decisions_move(retention: Retention) {
    retention.ledger.open(&[closed("s", 25)]).await.expect("open");
    let orders = many("s", 60);
    let first = decide(&retention, &orders, None).await;
    let first: Vec<Decision> =
        first.answers.iter().filter_map(Answer::new_decision).cloned().collect();
    let before = all(&retention).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let mut repeating = tokio::task::JoinSet::new();
    for hint in HINTS {
        let (ledger, stop) = (retention.ledger.clone(), stop.clone());
        let (orders, first) = (orders.clone(), first.clone());
        repeating.spawn(async move {
            let mut times = 0;
            while !stop.is_cancelled() || times < 3 {
                let proposed = |candidate| Proposed {
                    candidate,
                    hint,
                    redelivered: times % 2 == 1,
                    watermark: None,
                };
                let batch: Vec<_> = orders.iter().map(proposed).collect();
                same_events(
                    &ledger.decide(&batch, MAX_AGE).await.expect("decided").answers,
                    &first,
                );
                times += 1;
            }
        });
    }
    for _ in 0..3 {
        record(&retention, "1", &[ArchiveStage::Writing, ArchiveStage::Moving]).await;
        for chunk in before.chunks(10) {
            let moving = archive("1", ArchiveStage::Moving);
            assert_eq!(retention.archive.move_out(&moving, chunk).await.expect("moved"), 10);
        }
        record(&retention, "1", &[ArchiveStage::Done, ArchiveStage::Restoring]).await;
        let restoring = archive("1", ArchiveStage::Restoring);
        for chunk in before.chunks(10) {
            assert_eq!(retention.archive.move_back(&restoring, chunk).await.expect("moved"), 10);
        }
        retention.archive.forget(&restoring).await.expect("forgotten");
    }
    stop.cancel();
    while let Some(repeated) = repeating.join_next().await {
        repeated.expect("no panic");
    }
    assert_eq!(all(&retention).await, before);
    assert_eq!(unbalanced(&retention).await, "[]");
}
