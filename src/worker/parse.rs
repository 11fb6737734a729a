//! Parse: from a delivery to orders and dead letters.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};

use super::batch::{AckHandle, Deferred, Entry, Item, PendingDeadLetter};
use crate::broker::{Delivery, Properties};
use crate::domain::intent::{self, Fault, Limits, Refusal};
use crate::domain::order::{Candidate, Eligibility, Intent, SaleId};
use crate::fault::crash_point;
use crate::traces::Traces;

/// Parses a message. Its items come in the order of its elements; there is at least one.
pub(super) fn parse(delivery: Delivery, limits: Limits, traces: &Traces) -> VecDeque<Item> {
    let handle = AckHandle::new(delivery);
    let sent_at = handle.properties().sent_at();
    let body = handle.body();
    let items = match too_large(&handle, limits).or_else(|| unsupported_encoding(&handle)) {
        Some(Refusal { fault, detail }) => {
            let letter =
                PendingDeadLetter::new(handle.clone(), 0..body.len(), fault.name(), detail);
            VecDeque::from([Item::DeadLetter(Box::new(letter))])
        }
        None => intent::parse(body, limits)
            .into_iter()
            .map(|element| {
                let start = element.bytes.as_ptr() as usize - body.as_ptr() as usize;
                let span = start..start + element.bytes.len();
                let handle = handle.clone();
                match element.intent {
                    Ok(Intent { order, submitted_at }) => {
                        let submitted_at = submitted_at.or(sent_at);
                        let eligibility = Eligibility::Unchecked;
                        let Properties { trace, message_id, .. } = handle.properties();
                        let process = traces.process(&order, trace.as_ref(), message_id.as_deref());
                        Item::Entry(Entry {
                            candidate: Candidate { order, submitted_at, eligibility },
                            handle,
                            span,
                            has_ledger_time: false,
                            traced: process,
                        })
                    }
                    Err(Refusal { fault, detail }) => Item::DeadLetter(Box::new(
                        PendingDeadLetter::new(handle, span, fault.name(), detail),
                    )),
                }
            })
            .collect(),
    };
    handle.is_since(items.iter().filter_map(submitted_at).min());
    let items = if handle.properties().is_sharded { own_shard(&handle, items) } else { items };
    // Every item has its handle; this one was only for looking.
    handle.ack();
    crash_point("parsed");
    items
}

/// When an item's order was submitted, if it says so.
fn submitted_at(item: &Item) -> Option<DateTime<Utc>> {
    match item {
        Item::Entry(entry) => entry.candidate.submitted_at,
        Item::DeadLetter(_) | Item::Elsewhere(_) => None,
    }
}

/// Leaves orders of other sales than the one that the message was sent to by its routing key to the shards of
/// those. Orders of a sale stay together, in their order.
fn own_shard(handle: &AckHandle, items: VecDeque<Item>) -> VecDeque<Item> {
    let own = handle.properties().routing_key.as_str();
    let mut kept = VecDeque::new();
    let mut elsewhere: Vec<(SaleId, Vec<Entry>)> = Vec::new();
    for item in items {
        match item {
            Item::Entry(entry) if entry.candidate.order.sale_id.as_str() != own => {
                let sale = &entry.candidate.order.sale_id;
                match elsewhere.iter_mut().find(|(other, _)| other == sale) {
                    Some((_, entries)) => entries.push(entry),
                    None => elsewhere.push((sale.clone(), vec![entry])),
                }
            }
            item => kept.push_back(item),
        }
    }
    let messages =
        elsewhere.into_iter().map(|(sale, entries)| Deferred::elsewhere(handle, &sale, entries));
    kept.extend(messages.map(|orders| Item::Elsewhere(Box::new(orders))));
    kept
}

/// A body of which only the beginning is here.
fn too_large(handle: &AckHandle, limits: Limits) -> Option<Refusal> {
    let (bytes, kept) = (handle.properties().cut_from?, handle.body().len());
    let most = limits.max_body_bytes;
    let detail =
        format!("the body has {bytes} bytes; accepted: up to {most}; its first {kept} are kept");
    Some(Refusal { fault: Fault::BodyTooLarge, detail })
}

/// A body that is compressed would only be called bad JSON; this says what to do about it.
fn unsupported_encoding(handle: &AckHandle) -> Option<Refusal> {
    let encoding = handle.properties().content_encoding.as_deref()?;
    let plain = ["", "identity", "utf-8"].iter().any(|plain| encoding.eq_ignore_ascii_case(plain));
    let fault = Fault::UnsupportedEncoding;
    let detail = format!("content_encoding is {encoding:?}; accepted: none, or utf-8");
    (!plain).then_some(Refusal { fault, detail })
}
