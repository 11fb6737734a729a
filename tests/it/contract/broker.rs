//! The contract of `Broker`.

use std::sync::Arc;
use std::time::Duration;

use floodgate::broker::{
    Broker, DeadLetter, Deliveries, Delivery, EventBatch, MIXED, Message, Published, Queue,
    Receipt, Reply, Topic,
};
use floodgate::domain::event::Event;
use floodgate::domain::event_batch::data_of;

use super::on_every_adapter;
use crate::harness::PATIENCE;

on_every_adapter!(
    real: |stage: &crate::harness::Stage| stage.broker.clone();
    embedded: |embedded: &crate::harness::embedded::Embedded| embedded.broker.clone();
    what_is_published_is_delivered_in_order,
    what_is_not_settled_comes_again,
    what_is_given_back_comes_again,
    what_is_acknowledged_out_of_order_is_gone,
    no_more_than_the_prefetch_is_delivered,
    a_stopped_consumer_hands_over_what_it_has_and_no_more,
    a_dead_letter_keeps_its_bytes_and_gets_a_reason,
    a_redriven_letter_starts_afresh,
    many_publishers_at_once_are_all_confirmed,
    a_subscriber_gets_the_events_it_asked_for_also_those_from_while_it_was_disconnected,
    every_subscriber_gets_its_own_copy,
    batches_of_events_go_to_those_who_take_batches,
    a_private_queue_gets_events_and_replies,
);

pub(super) type B = Arc<dyn Broker>;

pub(super) async fn publish(broker: &B, bodies: impl IntoIterator<Item = String>) {
    let bodies: Vec<String> = bodies.into_iter().collect();
    let messages: Vec<Message<'_>> =
        bodies.iter().map(|body| Message::intent("s", body.as_bytes())).collect();
    broker.publish(&messages).await.all().expect("publish");
}

async fn take(broker: &B, count: usize) -> (Deliveries, Vec<Delivery>) {
    let mut deliveries = broker.consume(Queue::Intents, 1000).await.expect("consume");
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = tokio::time::timeout(PATIENCE, deliveries.next()).await;
        taken.push(next.expect("a delivery in time").expect("a delivery"));
    }
    (deliveries, taken)
}

pub(super) fn text(delivery: &Delivery) -> &str {
    std::str::from_utf8(&delivery.body).expect("UTF-8")
}

pub(super) async fn end(deliveries: Deliveries) {
    deliveries.stop();
    deliveries.finished().await;
}

async fn what_is_published_is_delivered_in_order(broker: B) {
    publish(&broker, (0..300).map(|n| n.to_string())).await;
    assert_eq!(broker.depth(Queue::Intents).await.expect("depth").messages, 300);
    let (deliveries, taken) = take(&broker, 300).await;
    for (n, delivery) in taken.into_iter().enumerate() {
        assert_eq!(text(&delivery), n.to_string());
        assert_eq!(delivery.properties.routing_key, "s");
        delivery.ack();
    }
    end(deliveries).await;
    assert_eq!(broker.depth(Queue::Intents).await.expect("depth").messages, 0);
}

async fn what_is_not_settled_comes_again(broker: B) {
    publish(&broker, (0..3).map(|n| n.to_string())).await;
    let (deliveries, taken) = take(&broker, 3).await;
    drop(taken);
    end(deliveries).await;
    let (deliveries, taken) = take(&broker, 3).await;
    assert_eq!(taken.len(), 3);
    taken.into_iter().for_each(Delivery::ack);
    end(deliveries).await;
}

async fn what_is_given_back_comes_again(broker: B) {
    publish(&broker, ["a".into()]).await;
    let (mut deliveries, mut taken) = take(&broker, 1).await;
    taken.remove(0).requeue();
    let again =
        tokio::time::timeout(PATIENCE, deliveries.next()).await.expect("in time").expect("again");
    assert_eq!(text(&again), "a");
    again.ack();
    end(deliveries).await;
    assert_eq!(broker.depth(Queue::Intents).await.expect("depth").messages, 0);
}

async fn what_is_acknowledged_out_of_order_is_gone(broker: B) {
    publish(&broker, (0..10).map(|n| n.to_string())).await;
    let (deliveries, mut taken) = take(&broker, 10).await;
    let kept = taken.remove(4);
    taken.into_iter().rev().for_each(Delivery::ack);
    drop(kept);
    end(deliveries).await;
    let (deliveries, taken) = take(&broker, 1).await;
    assert_eq!(text(&taken[0]), "4");
    taken.into_iter().for_each(Delivery::ack);
    end(deliveries).await;
    assert_eq!(broker.depth(Queue::Intents).await.expect("depth").messages, 0);
}

async fn no_more_than_the_prefetch_is_delivered(broker: B) {
    publish(&broker, (0..10).map(|n| n.to_string())).await;
    let mut deliveries = broker.consume(Queue::Intents, 4).await.expect("consume");
    let mut held = Vec::new();
    while let Ok(Some(delivery)) =
        tokio::time::timeout(Duration::from_millis(500), deliveries.next()).await
    {
        held.push(delivery);
    }
    assert_eq!(held.len(), 4);
    held.into_iter().for_each(Delivery::ack);
    for _ in 4..10 {
        let next = tokio::time::timeout(PATIENCE, deliveries.next()).await;
        next.expect("in time").expect("the others").ack();
    }
    end(deliveries).await;
}

async fn a_stopped_consumer_hands_over_what_it_has_and_no_more(broker: B) {
    publish(&broker, (0..5).map(|n| n.to_string())).await;
    let (mut deliveries, taken) = take(&broker, 5).await;
    deliveries.stop();
    publish(&broker, ["late".into()]).await;
    // The end of deliveries comes before the settling of those handed over.
    while let Some(late) = tokio::time::timeout(PATIENCE, deliveries.next()).await.expect("an end")
    {
        late.requeue();
    }
    taken.into_iter().for_each(Delivery::ack);
    deliveries.finished().await;
    let (deliveries, taken) = take(&broker, 1).await;
    assert_eq!(text(&taken[0]), "late");
    taken.into_iter().for_each(Delivery::ack);
    end(deliveries).await;
}

/// Dead-letters one message, and takes it from the dead letters.
async fn dead_letter(broker: &B, body: &str) -> (Deliveries, Delivery) {
    publish(broker, [body.to_owned()]).await;
    let (deliveries, mut taken) = take(broker, 1).await;
    let delivery = taken.remove(0);
    let letter = DeadLetter {
        body: delivery.body.clone(),
        properties: delivery.properties.clone(),
        reason: "bad_json".into(),
        detail: "é".repeat(1000),
        id: "i-1".into(),
    };
    broker.publish(&[Message::DeadLetter(&letter)]).await.all().expect("publish");
    delivery.ack();
    end(deliveries).await;
    let mut letters = broker.consume(Queue::DeadLetters, 10).await.expect("consume");
    let letter =
        tokio::time::timeout(PATIENCE, letters.next()).await.expect("in time").expect("a letter");
    (letters, letter)
}

async fn a_dead_letter_keeps_its_bytes_and_gets_a_reason(broker: B) {
    let (letters, letter) = dead_letter(&broker, "{ not json").await;
    assert_eq!(text(&letter), "{ not json");
    assert_eq!(letter.properties.routing_key, "s");
    let death_info = letter.properties.dead.clone().expect("a reason");
    assert_eq!(death_info.reason, "bad_json");
    assert!(death_info.detail.starts_with('é') && death_info.detail.len() <= 500);
    assert!(chrono::DateTime::parse_from_rfc3339(&death_info.at).is_ok());
    letter.ack();
    end(letters).await;
}

async fn a_redriven_letter_starts_afresh(broker: B) {
    let (letters, letter) = dead_letter(&broker, "again").await;
    let properties = Some(&letter.properties);
    let message = Message::Intent { routing_key: "s", body: &letter.body, properties, delay: None };
    broker.publish(&[message]).await.all().expect("publish");
    letter.ack();
    end(letters).await;
    let (deliveries, mut taken) = take(&broker, 1).await;
    let delivery = taken.remove(0);
    assert_eq!(text(&delivery), "again");
    assert!(delivery.properties.dead.is_none());
    delivery.ack();
    end(deliveries).await;
}

async fn many_publishers_at_once_are_all_confirmed(broker: B) {
    let mut publishing = tokio::task::JoinSet::new();
    for n in 0..50 {
        let broker = broker.clone();
        publishing.spawn(async move { publish(&broker, [format!("{n}")]).await });
    }
    while let Some(done) = publishing.join_next().await {
        done.expect("no panic");
    }
    let (deliveries, taken) = take(&broker, 50).await;
    taken.into_iter().for_each(Delivery::ack);
    end(deliveries).await;
}

pub(super) fn event(routing_key: &str) -> Event {
    Event {
        id: format!("id-{routing_key}"),
        kind: "dev.floodgate.order.created.v1",
        subject: "o".into(),
        time: crate::harness::time("2026-11-27T08:00:00Z"),
        routing_key: routing_key.into(),
        data: routing_key.as_bytes().to_vec(),
        trace: None,
    }
}

async fn publish_events(broker: &B, routing_keys: &[&str]) -> Published {
    let events: Vec<Event> = routing_keys.iter().map(|key| event(key)).collect();
    let messages: Vec<Message<'_>> = events.iter().map(Message::Event).collect();
    broker.publish(&messages).await
}

/// The bodies of the next `count` messages, all acknowledged.
async fn bodies(deliveries: &mut Deliveries, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let next = tokio::time::timeout(PATIENCE, deliveries.next()).await;
        let delivery = next.expect("a delivery in time").expect("a delivery");
        bodies.push(text(&delivery).to_owned());
        delivery.ack();
    }
    bodies
}

pub(super) fn durable() -> Queue {
    Queue::Subscriber(super::SUBSCRIBER.into())
}

async fn a_subscriber_gets_the_events_it_asked_for_also_those_from_while_it_was_disconnected(
    broker: B,
) {
    let events =
        broker.subscribe(durable(), &[Topic::Events("order.#")], 10).await.expect("subscribe");
    end(events).await;
    let one = Queue::Private("one".into());
    let keys = [Topic::Events("order.created.*"), Topic::Events("sale.#")];
    let mut events = broker.subscribe(one, &keys, 10).await.expect("subscribe");
    publish_events(&broker, &["order.sold_out.s", "order.created.s", "sale.sold_out.s"]).await;
    assert_eq!(bodies(&mut events, 2).await, ["order.created.s", "sale.sold_out.s"]);
    end(events).await;

    publish_events(&broker, &["order.created.t"]).await;
    let mut events =
        broker.subscribe(durable(), &[Topic::Events("order.#")], 10).await.expect("subscribe");
    let all = ["order.sold_out.s", "order.created.s", "order.created.t"];
    assert_eq!(bodies(&mut events, 3).await, all);
    end(events).await;
}

async fn every_subscriber_gets_its_own_copy(broker: B) {
    let queue = |n| Queue::Private(format!("copy-{n}"));
    let mut first = broker
        .subscribe(queue(1), &[Topic::Events("sale.sold_out.*")], 10)
        .await
        .expect("subscribe");
    let mut second =
        broker.subscribe(queue(2), &[Topic::Events("sale.*.s")], 10).await.expect("subscribe");
    let published = publish_events(&broker, &["sale.sold_out.s", "sale.sold_out.t"]).await;
    assert_eq!(published.receipts, [Receipt::Confirmed; 2]);
    assert_eq!(bodies(&mut first, 2).await, ["sale.sold_out.s", "sale.sold_out.t"]);
    assert_eq!(bodies(&mut second, 1).await, ["sale.sold_out.s"]);
    let published = publish_events(&broker, &["sale.sold_out.s", "sale.none.t"]).await;
    // The client library may tell the wrong one of the two that it had no subscriber.
    assert!(published.receipts.iter().all(|receipt| receipt.is_done()), "{published:?}");
    assert!(published.receipts.contains(&Receipt::NoSubscriber), "{published:?}");
    for subscriber in [&mut first, &mut second] {
        assert_eq!(bodies(subscriber, 1).await, ["sale.sold_out.s"]);
    }
    end(first).await;
    end(second).await;
}

async fn batches_of_events_go_to_those_who_take_batches(broker: B) {
    let queue = |name: &str| Queue::Private(name.to_owned());
    let topics = [Topic::Events("#"), Topic::Batches("s")];
    let mut of_s = broker.subscribe(queue("s"), &topics, 10).await.expect("subscribe");
    let topics = [Topic::Batches("_mixed")];
    let mut mixed = broker.subscribe(queue("mixed"), &topics, 10).await.expect("subscribe");
    let event = |key: &str| Event { data: format!(r#"{{"key":"{key}"}}"#).into(), ..event(key) };
    let [one, two, three] = ["order.created.s", "order.sold_out.s", "order.created.t"].map(event);
    let batches = [
        EventBatch { routing_key: "s", events: vec![&one, &two] },
        EventBatch { routing_key: MIXED, events: vec![&three, &one] },
        EventBatch { routing_key: "t", events: vec![&three] },
    ];
    let messages: Vec<Message<'_>> = batches.iter().map(Message::EventBatch).collect();
    let published = broker.publish(&messages).await;
    assert!(published.receipts.iter().all(|receipt| receipt.is_done()), "{published:?}");
    assert!(published.receipts.contains(&Receipt::NoSubscriber), "{published:?}");
    broker.publish(&[Message::Event(&two)]).await.all().expect("publish");
    for (deliveries, expected) in [
        (&mut of_s, vec![vec![&one.data, &two.data], vec![&two.data]]),
        (&mut mixed, vec![vec![&three.data, &one.data]]),
    ] {
        for (body, expected) in bodies(deliveries, expected.len()).await.iter().zip(expected) {
            assert_eq!(data_of(body.as_bytes()).expect("JSON"), expected);
        }
    }
    end(of_s).await;
    end(mixed).await;
}

async fn a_private_queue_gets_events_and_replies(broker: B) {
    let queue = Queue::Private("asker".into());
    let to = broker.address(&queue);
    let mut replies = broker.subscribe(queue, &[], 10).await.expect("subscribe");
    let event = event("order.created.s");
    let reply = |to: &str| Reply {
        to: to.to_owned(),
        correlation_id: "c-7".into(),
        in_batches: false,
        event: event.clone(),
    };
    broker.reply(reply(&to));
    let next = tokio::time::timeout(PATIENCE, replies.next()).await.expect("in time");
    let delivery = next.expect("a reply");
    assert_eq!(text(&delivery), "order.created.s");
    assert_eq!(delivery.properties.correlation_id.as_deref(), Some("c-7"));
    delivery.ack();
    // Those that may come together come in any form, in their order.
    let named = |n: u32| Event { data: format!(r#"{{"n":{n}}}"#).into(), ..event.clone() };
    for n in 0..5 {
        broker.reply(Reply { in_batches: true, event: named(n), ..reply(&to) });
    }
    let mut told = Vec::new();
    while told.len() < 5 {
        let next = tokio::time::timeout(PATIENCE, replies.next()).await.expect("in time");
        let delivery = next.expect("a reply");
        assert_eq!(delivery.properties.correlation_id.as_deref(), Some("c-7"));
        told.extend(data_of(&delivery.body).expect("JSON").into_iter().map(<[u8]>::to_vec));
        delivery.ack();
    }
    assert_eq!(told, (0..5).map(|n| named(n).data).collect::<Vec<_>>());
    // No reply gets between intents or dead letters.
    for queue in [Queue::Intents, Queue::Returned, Queue::DeadLetters, durable()] {
        broker.reply(reply(&broker.address(&queue)));
    }
    end(replies).await;
    // Whoever has left is owed nothing.
    broker.reply(reply(&to));
    for queue in [Queue::Intents, Queue::DeadLetters] {
        assert_eq!(broker.depth(queue).await.expect("depth").messages, 0);
    }
}
