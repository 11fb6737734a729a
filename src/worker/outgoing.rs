//! The messages that carry the events of a batch of decisions.

use std::collections::HashMap;

use crate::broker::{EventBatch, EventSettings, MIXED, Message, Receipt};
use crate::domain::event::Event;
use crate::domain::event_batch::size_in_batch;
use crate::domain::order::SaleId;

/// A sale with fewer events in a worker's batch has no message for itself: with many sales that would be as
/// many messages as events.
const MIN_OF_A_SALE: usize = 16;

/// Messages that carry events, by the indices of the events.
pub struct Outgoing<'a> {
    /// Carried by a message each, all of them or none.
    singles: &'a [Event],
    batches: Vec<EventBatch<'a>>,
    /// Of each batch.
    carried: Vec<Vec<usize>>,
}

/// What became of an event, in all messages that carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fate {
    /// A queue refused it.
    pub is_refused: bool,
    /// A queue got it.
    pub has_subscriber: bool,
}

impl<'a> Outgoing<'a> {
    /// The messages for `events`, which are of `sales`, one each.
    pub fn of(events: &'a [Event], sales: &[&'a SaleId], settings: EventSettings) -> Self {
        let singles = if settings.publish.has_single() { events } else { &[] };
        let (mut batches, mut carried) = (Vec::new(), Vec::new());
        if settings.publish.has_batches() {
            for (routing_key, indices) in by_sale(sales) {
                for indices in within(indices, events, settings.max_batch_bytes) {
                    let events = indices.iter().map(|&index| &events[index]).collect();
                    batches.push(EventBatch { routing_key, events });
                    carried.push(indices);
                }
            }
        }
        Self { singles, batches, carried }
    }

    /// What to publish.
    pub fn messages(&self) -> Vec<Message<'_>> {
        let singles = self.singles.iter().map(Message::Event);
        singles.chain(self.batches.iter().map(Message::EventBatch)).collect()
    }

    /// What became of each of `count` events, by the receipts for [`messages`](Self::messages).
    pub(super) fn fates(&self, receipts: &[Receipt], count: usize) -> Vec<Fate> {
        let mut fates = vec![Fate { is_refused: false, has_subscriber: false }; count];
        let (of_singles, of_batches) = receipts.split_at(self.singles.len());
        let singles = of_singles.iter().enumerate();
        let batches = self.carried.iter().zip(of_batches);
        let batches = batches
            .flat_map(|(indices, receipt)| indices.iter().map(move |&index| (index, receipt)));
        for (index, receipt) in singles.chain(batches) {
            fates[index].is_refused |= !receipt.is_done();
            fates[index].has_subscriber |= *receipt != Receipt::NoSubscriber;
        }
        fates
    }
}

/// The indices of events by the routing keys of their batches, in the order of the first of each.
fn by_sale<'a>(sales: &[&'a SaleId]) -> Vec<(&'a str, Vec<usize>)> {
    let mut counts: HashMap<&SaleId, usize> = HashMap::new();
    for sale in sales {
        *counts.entry(sale).or_default() += 1;
    }
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (index, sale) in sales.iter().enumerate() {
        let key = if counts[sale] < MIN_OF_A_SALE { MIXED } else { sale.as_str() };
        let place = *places.entry(key).or_insert_with(|| {
            groups.push((key, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(index);
    }
    groups
}

/// `indices`, divided so that each part makes a batch of at most `max_bytes`. An event that is larger is alone.
fn within(indices: Vec<usize>, events: &[Event], max_bytes: usize) -> Vec<Vec<usize>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for index in indices {
        let size = size_in_batch(&events[index]);
        if bytes > 0 && bytes + size > max_bytes {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(index);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PublishedAs;

    fn sales(counts: &[(&str, usize)]) -> Vec<SaleId> {
        let each = counts.iter().flat_map(|&(id, count)| std::iter::repeat_n(id, count));
        each.map(|id| SaleId::parse(id).unwrap()).collect()
    }

    fn events(sales: &[SaleId]) -> Vec<Event> {
        let data = br#"{"a":1}"#.to_vec();
        let event = |sale: &SaleId| Event {
            id: "i".into(),
            kind: "k",
            subject: "s".into(),
            time: chrono::DateTime::UNIX_EPOCH,
            routing_key: format!("order.created.{sale}"),
            data: data.clone(),
            trace: None,
        };
        sales.iter().map(event).collect()
    }

    /// The routing keys of messages for these sales, with how many events each carries.
    fn published(
        sales: &[SaleId],
        publish: PublishedAs,
        max_batch_bytes: usize,
    ) -> Vec<(String, usize)> {
        let (events, ids) = (events(sales), sales.iter().collect::<Vec<_>>());
        let outgoing = Outgoing::of(&events, &ids, EventSettings { publish, max_batch_bytes });
        let messages = outgoing.messages();
        let key = |message: &Message<'_>| match message {
            Message::Event(event) => (event.routing_key.clone(), 1),
            Message::EventBatch(batch) => (batch.routing_key.to_owned(), batch.events.len()),
            other => panic!("{other:?}"),
        };
        messages.iter().map(key).collect()
    }

    #[test]
    fn a_sale_with_many_events_has_its_own_batch_and_the_rest_is_together() {
        let sales = sales(&[("a", 3), ("b", 16), ("c", 15), ("b", 1)]);
        let batches = published(&sales, PublishedAs::Batch, 1 << 20);
        assert_eq!(batches, [(MIXED.into(), 18), ("b".into(), 17)]);
        let both = published(&sales, PublishedAs::Both, 1 << 20);
        assert_eq!((both.len(), &both[35..]), (37, &batches[..]));
        assert_eq!(published(&sales, PublishedAs::Single, 1 << 20), both[..35]);
    }

    #[test]
    fn a_batch_is_divided_when_it_gets_too_large() {
        let sales = sales(&[("a", 40)]);
        let one = size_in_batch(&events(&sales)[0]);
        let parts = |max_bytes| -> Vec<usize> {
            let batches = published(&sales, PublishedAs::Batch, max_bytes).into_iter();
            batches.map(|(_, count)| count).collect()
        };
        assert_eq!(parts(40 * one), [40]);
        assert_eq!(parts(40 * one - 1), [39, 1]);
        assert_eq!(parts(16 * one), [16, 16, 8]);
        assert_eq!(parts(1), [1; 40]);
    }

    #[test]
    fn an_event_is_refused_if_any_message_with_it_is() {
        let sales = sales(&[("a", 1), ("b", 16)]);
        let (events, ids) = (events(&sales), sales.iter().collect::<Vec<_>>());
        let settings = EventSettings { publish: PublishedAs::Both, max_batch_bytes: 1 << 20 };
        let outgoing = Outgoing::of(&events, &ids, settings);
        let mut receipts = vec![Receipt::NoSubscriber; 19];
        (receipts[2], receipts[17]) = (Receipt::Full, Receipt::Confirmed);
        let fates = outgoing.fates(&receipts, 17);
        let fate = |is_refused, has_subscriber| Fate { is_refused, has_subscriber };
        assert_eq!(
            fates[..4],
            [fate(false, true), fate(false, false), fate(true, true), fate(false, false)]
        );
        receipts[18] = Receipt::Full;
        assert!(outgoing.fates(&receipts, 17)[1..].iter().all(|fate| fate.is_refused));
    }
}
