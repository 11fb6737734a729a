//! The contract of `OperatorLog`.

use std::sync::Arc;

use floodgate::operator_log::{Action, Entry, EntryId, Operator, OperatorLog, Wanted};

use super::on_every_adapter;
use crate::harness::sale_id;

on_every_adapter!(
    real: |stage: &crate::harness::Stage| stage.operator_log.clone();
    embedded: |embedded: &crate::harness::embedded::Embedded| embedded.operator_log.clone();
    entries_are_read_as_they_were_written_newest_first,
    reading_goes_on_before_an_entry_or_a_time,
    entries_are_stored_together_or_not_at_all,
    the_longest_texts_fit,
);

type L = Arc<dyn OperatorLog>;

const ALL: Wanted = Wanted { limit: 1000, before: None, sale_id: None };

fn operator(actor: &str) -> Operator {
    let request_id = Some("req-1".to_owned());
    Operator { actor: actor.to_owned(), origin: "192.0.2.1".to_owned(), request_id }
}

/// One entry for each of `sales`.
fn entries(sales: &[&str]) -> Vec<Entry> {
    let entry =
        |sale: &&str| Entry::new(&operator("me"), Action::Closed, Some(sale_id(sale)), "at noon");
    sales.iter().map(entry).collect()
}

async fn read(log: &L, wanted: &Wanted) -> Vec<Entry> {
    log.entries(wanted).await.expect("read")
}

/// What was written, in the order in which it is to be read.
fn newest_first(written: &[Entry]) -> Vec<Entry> {
    written.iter().rev().cloned().collect()
}

async fn entries_are_read_as_they_were_written_newest_first(log: L) {
    assert_eq!(read(&log, &ALL).await, []);
    log.record(&[]).await.expect("nothing");
    let mut written = Vec::new();
    for action in Action::ALL {
        let by = Operator { request_id: None, ..operator("\u{1b}[31mé \"'\\ $1 \u{202e}") };
        let entry = Entry::new(&by, *action, None, "{\"a\": null}\n; drop table operator_log");
        log.record(std::slice::from_ref(&entry)).await.expect("recorded");
        written.push(entry);
    }
    let (first, more) = (written.len(), entries(&["s", "t", "s"]));
    log.record(&more).await.expect("recorded");
    written.extend(more);
    assert_eq!(read(&log, &ALL).await, newest_first(&written));
    let of_sale = Wanted { sale_id: Some(sale_id("s")), ..ALL };
    assert_eq!(read(&log, &of_sale).await, [written[first + 2].clone(), written[first].clone()]);
    assert_eq!(read(&log, &Wanted { limit: 1, ..of_sale }).await, [written[first + 2].clone()]);
    assert_eq!(read(&log, &Wanted { sale_id: Some(sale_id("u")), ..ALL }).await, []);
}

async fn reading_goes_on_before_an_entry_or_a_time(log: L) {
    let older = entries(&["s", "s", "s", "t", "s"]);
    log.record(&older).await.expect("recorded");
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let newer = entries(&["s", "s"]);
    log.record(&newer).await.expect("recorded");
    // Page by page, nothing is missing, though many were written at once.
    let (mut pages, mut before) = (Vec::new(), None);
    loop {
        let page = read(&log, &Wanted { limit: 2, before, ..ALL }).await;
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        pages.extend(page);
    }
    let all: Vec<Entry> = older.iter().chain(&newer).cloned().collect();
    assert_eq!(pages, newest_first(&all));
    let before = Some(EntryId::first_at(newer[0].at));
    assert_eq!(read(&log, &Wanted { before, ..ALL }).await, newest_first(&older));
    let of_sale = Wanted { before, sale_id: Some(sale_id("t")), ..ALL };
    assert_eq!(read(&log, &of_sale).await, [older[3].clone()]);
    let before = Some(EntryId::first_at(older[0].at));
    assert_eq!(read(&log, &Wanted { before, ..ALL }).await, []);
}

async fn entries_are_stored_together_or_not_at_all(log: L) {
    let mut written = entries(&["s", "t"]);
    written[1].detail = "x".repeat(513);
    log.record(&written).await.expect_err("too long");
    assert_eq!(read(&log, &ALL).await, []);
    written[1].detail.pop();
    log.record(&written).await.expect("recorded");
    log.record(&written[1..]).await.expect_err("it is there");
    assert_eq!(read(&log, &ALL).await, newest_first(&written));
}

async fn the_longest_texts_fit(log: L) {
    let text = "é".repeat(1000);
    let by = Operator { actor: text.clone(), origin: text.clone(), request_id: Some(text.clone()) };
    let entry = Entry::new(&by, Action::Opened, Some(sale_id(&"s".repeat(64))), &text);
    assert!(entry.detail.len() > 1000 && entry.detail.ends_with('…'), "{}", entry.detail);
    log.record(std::slice::from_ref(&entry)).await.expect("recorded");
    assert_eq!(read(&log, &ALL).await, [entry]);
}
