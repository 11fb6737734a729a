//! The contract of `Broker` for what comes again: deferred intents, and messages that were given
//! back.

use std::time::Duration;

use floodgate::broker::{Delay, Deliveries, Delivery, Message, Properties, Queue, Topic};

use super::broker::{B, durable, end, event, publish, text};
use super::on_every_adapter;
use crate::harness::PATIENCE;

on_every_adapter!(
    real: |stage: &crate::harness::Stage| stage.broker.clone();
    embedded: |embedded: &crate::harness::embedded::Embedded| embedded.broker.clone();
    a_delayed_intent_comes_back_as_it_was_on_a_queue_of_its_own,
    a_returned_intent_can_be_deferred_again,
    a_returned_intent_that_fails_too_often_becomes_a_dead_letter,
    a_message_that_is_given_back_is_redelivered,
);

async fn defer(broker: &B, body: &[u8], properties: Option<&Properties>) {
    let delay = Some(Delay::OneSecond);
    let message = Message::Intent { routing_key: "s", body, properties, delay };
    broker.publish(&[message]).await.all().expect("publish");
}

async fn next(deliveries: &mut Deliveries) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, deliveries.next()).await;
    next.expect("a delivery in time").expect("a delivery")
}

async fn depth(broker: &B, queue: Queue) -> u32 {
    broker.depth(queue).await.expect("depth").messages
}

fn properties() -> Properties {
    Properties {
        reply_to: Some("somewhere".into()),
        correlation_id: Some("c-1".into()),
        ..Properties::default()
    }
}

fn is_as_it_was(delivery: &Delivery) {
    assert_eq!(text(delivery), "later");
    assert_eq!(delivery.properties.routing_key, "s");
    assert_eq!(delivery.properties.reply_to.as_deref(), Some("somewhere"));
    assert_eq!(delivery.properties.correlation_id.as_deref(), Some("c-1"));
    assert!(delivery.properties.dead.is_none(), "its delay has passed, it is not dead");
    assert!(!delivery.redelivered);
}

async fn a_delayed_intent_comes_back_as_it_was_on_a_queue_of_its_own(broker: B) {
    let begun = std::time::Instant::now();
    defer(&broker, b"later", Some(&properties())).await;
    publish(&broker, ["now".into()]).await;
    let mut returned = broker.consume(Queue::Returned, 10).await.expect("consume");
    let later = next(&mut returned).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    is_as_it_was(&later);
    assert_eq!(depth(&broker, Queue::Intents).await, 1, "the new one alone");
    assert_eq!(depth(&broker, Queue::Returned).await, 0);
    let mut intents = broker.consume(Queue::Intents, 10).await.expect("consume");
    let now = next(&mut intents).await;
    assert_eq!(text(&now), "now");
    assert!(intents.ready().is_none() && returned.ready().is_none());
    later.ack();
    now.ack();
    end(returned).await;
    end(intents).await;
    assert_eq!(depth(&broker, Queue::Returned).await, 0);
    assert_eq!(depth(&broker, Queue::Intents).await, 0);
}

async fn a_returned_intent_can_be_deferred_again(broker: B) {
    defer(&broker, b"later", Some(&properties())).await;
    let mut returned = broker.consume(Queue::Returned, 10).await.expect("consume");
    for _ in 0..2 {
        let delivery = next(&mut returned).await;
        is_as_it_was(&delivery);
        defer(&broker, &delivery.body, Some(&delivery.properties)).await;
        delivery.ack();
    }
    let delivery = next(&mut returned).await;
    is_as_it_was(&delivery);
    delivery.ack();
    end(returned).await;
}

async fn a_returned_intent_that_fails_too_often_becomes_a_dead_letter(broker: B) {
    defer(&broker, b"again", None).await;
    let mut returned = broker.consume(Queue::Returned, 1).await.expect("consume");
    let mut letters = broker.consume(Queue::DeadLetters, 1).await.expect("consume");
    let mut attempts = 0;
    let letter = loop {
        tokio::select! {
            letter = next(&mut letters) => break letter,
            Some(delivery) = returned.next() => {
                assert_eq!(delivery.redelivered, attempts > 0);
                attempts += 1;
                delivery.reject();
            }
        }
    };
    // The deployments of the tests have different limits: 3 embedded, 100 on real servers.
    assert!((2..=101).contains(&attempts), "{attempts} attempts");
    assert_eq!(text(&letter), "again");
    assert_eq!(letter.properties.dead.as_ref().expect("a reason").reason, "delivery_limit");
    // Sent back, it starts afresh among the new ones.
    let (body, properties) = (letter.body.as_slice(), Some(&letter.properties));
    let redriven = Message::Intent { routing_key: "s", body, properties, delay: None };
    broker.publish(&[redriven]).await.all().expect("publish");
    letter.ack();
    end(letters).await;
    end(returned).await;
    let mut intents = broker.consume(Queue::Intents, 1).await.expect("consume");
    let delivery = next(&mut intents).await;
    assert!(text(&delivery) == "again" && !delivery.redelivered);
    delivery.ack();
    end(intents).await;
}

async fn a_message_that_is_given_back_is_redelivered(broker: B) {
    let private = Queue::Private("redelivered".into());
    for queue in [Queue::Intents, Queue::Returned, durable(), private] {
        let mut deliveries =
            broker.subscribe(queue.clone(), &[Topic::Events("order.#")], 10).await.expect("queue");
        match queue {
            Queue::Intents => publish(&broker, ["one".into()]).await,
            Queue::Returned => defer(&broker, b"one", None).await,
            _ => {
                let event = event("order.created.s");
                broker.publish(&[Message::Event(&event)]).await.all().expect("publish");
            }
        }
        let first = next(&mut deliveries).await;
        assert!(!first.redelivered, "{queue:?}");
        first.requeue();
        let second = next(&mut deliveries).await;
        assert!(second.redelivered, "{queue:?}");
        second.ack();
        end(deliveries).await;
    }
}
