//! What the embedded adapters promise beyond the contracts: one file, several processes, sudden ends.

use std::time::Duration;

use floodgate::broker::{
    Broker, BrokerError, Delay, Deliveries, Delivery, Message, Properties, Queue, Receipt, Topic,
};
use floodgate::domain::decision::{Decision, Outcome};
use floodgate::domain::event::Event;
use floodgate::domain::order::{Order, SaleId};
use floodgate::domain::sale::Sale;
use floodgate::sales::cache::SaleCache;

use crate::harness::embedded::{DELIVERY_LIMIT, Embedded};
use crate::harness::{PATIENCE, Running, body, check, order, sale, time};

async fn publish(broker: &dyn Broker, bodies: &[String]) {
    let messages: Vec<Message<'_>> =
        bodies.iter().map(|body| Message::intent("s", body.as_bytes())).collect();
    broker.publish(&messages).await.all().expect("publish");
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn consume(broker: &dyn Broker, queue: Queue) -> Deliveries {
    broker.consume(queue, 1000).await.expect("consume")
}

async fn next(deliveries: &mut Deliveries) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, deliveries.next()).await;
    next.expect("a delivery in time").expect("a delivery")
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.clone()).expect("UTF-8")
}

/// Takes `count` messages, and settles none.
async fn take(deliveries: &mut Deliveries, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(deliveries).await);
    }
    taken
}

async fn end(deliveries: Deliveries) {
    deliveries.stop();
    deliveries.finished().await;
}

async fn depth(embedded: &Embedded, queue: Queue) -> u32 {
    embedded.broker.depth(queue).await.expect("depth").messages
}

#[tokio::test]
async fn what_is_confirmed_survives_a_sudden_end_in_its_order() {
    let embedded = Embedded::new().await;
    publish(embedded.broker.as_ref(), &numbers(0..700)).await;
    let mut deliveries = consume(embedded.broker.as_ref(), Queue::Intents).await;
    let mut taken = take(&mut deliveries, 10).await;
    taken.remove(3).ack();
    // Settled before, written with the next that has to be.
    publish(embedded.broker.as_ref(), &numbers(700..1000)).await;
    let embedded = embedded.crash().await;
    let mut again = consume(embedded.broker.as_ref(), Queue::Intents).await;
    let found: Vec<String> = take(&mut again, 999).await.iter().map(text).collect();
    let expected = numbers(0..1000).into_iter().filter(|n| n != "3").collect::<Vec<_>>();
    assert_eq!(found, expected);
    // What somebody still holds of the time before means nothing now.
    taken.into_iter().for_each(Delivery::ack);
    drop(deliveries);
    end(again).await;
    assert_eq!(depth(&embedded, Queue::Intents).await, 999);
}

#[tokio::test]
async fn bodies_and_properties_of_any_kind_survive() {
    let embedded = Embedded::new().await;
    let bodies = [Vec::new(), b"\xff\0\"\\\n".to_vec(), vec![0xfe; 3 << 20], Vec::new()];
    let properties = Properties {
        reply_to: Some("a \"quoted\" queue".into()),
        correlation_id: Some("é\\".into()),
        content_encoding: Some("gzip".into()),
        timestamp_s: Some(u64::MAX),
        ..Properties::default()
    };
    for body in &bodies {
        let (routing_key, properties) = ("any 'key'.\"at\" all", Some(&properties));
        let message = Message::Intent { routing_key, body, properties, delay: None };
        embedded.broker.publish(&[message]).await.all().expect("publish");
    }
    let embedded = embedded.crash().await;
    let mut deliveries = consume(embedded.broker.as_ref(), Queue::Intents).await;
    for body in &bodies {
        let delivery = next(&mut deliveries).await;
        assert!(delivery.body == *body, "the same bytes");
        let found = delivery.properties.clone();
        let expected = Properties { routing_key: found.routing_key.clone(), ..properties.clone() };
        assert_eq!(found.routing_key, "any 'key'.\"at\" all");
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        delivery.ack();
    }
    end(deliveries).await;
}

#[tokio::test]
async fn what_is_deferred_survives_too() {
    let embedded = Embedded::new().await;
    let (routing_key, body, properties) = ("s", b"later".as_slice(), None);
    let delay = Some(Delay::OneSecond);
    let later = Message::Intent { routing_key, body, properties, delay };
    let begun = std::time::Instant::now();
    embedded.broker.publish(&[later]).await.all().expect("publish");
    let embedded = embedded.crash().await;
    publish(embedded.broker.as_ref(), &["now".into()]).await;
    let mut deliveries = consume(embedded.broker.as_ref(), Queue::Returned).await;
    assert_eq!(text(&next(&mut deliveries).await), "later");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    end(deliveries).await;
    assert_eq!(depth(&embedded, Queue::Intents).await, 1, "the other one");
}

/// Takes the only dead letter.
async fn dead_letter(embedded: &Embedded) -> Delivery {
    let mut letters = consume(embedded.broker.as_ref(), Queue::DeadLetters).await;
    next(&mut letters).await
}

#[tokio::test]
async fn a_message_that_ends_its_process_again_and_again_becomes_a_dead_letter() {
    let mut embedded = Embedded::new().await;
    publish(embedded.broker.as_ref(), &["poison".into(), "neighbour".into()]).await;
    for attempt in 0..=DELIVERY_LIMIT {
        let mut deliveries = embedded.broker.consume(Queue::Intents, 1).await.expect("consume");
        let delivery = next(&mut deliveries).await;
        assert_eq!((text(&delivery).as_str(), delivery.redelivered), ("poison", attempt > 0));
        embedded = embedded.crash().await;
    }
    let mut deliveries = consume(embedded.broker.as_ref(), Queue::Intents).await;
    assert_eq!(text(&next(&mut deliveries).await), "neighbour");
    let letter = dead_letter(&embedded).await;
    assert_eq!(text(&letter), "poison");
    let death_info = letter.properties.dead.clone().expect("a reason");
    assert_eq!(death_info.reason, "delivery_limit");
    assert!(chrono::DateTime::parse_from_rfc3339(&death_info.at).is_ok());
}

#[tokio::test]
async fn a_message_that_is_given_back_too_often_becomes_a_dead_letter_and_may_start_afresh() {
    let embedded = Embedded::new().await;
    publish(embedded.broker.as_ref(), &["again".into(), "neighbour".into()]).await;
    let mut deliveries = embedded.broker.consume(Queue::Intents, 1).await.expect("consume");
    for _ in 0..=DELIVERY_LIMIT {
        let delivery = next(&mut deliveries).await;
        assert_eq!(text(&delivery), "again", "at its place, before its neighbour");
        delivery.requeue();
    }
    assert_eq!(text(&next(&mut deliveries).await), "neighbour");
    end(deliveries).await;
    let letter = dead_letter(&embedded).await;
    assert_eq!(letter.properties.dead.as_ref().expect("a reason").reason, "delivery_limit");
    let (body, properties) = (letter.body.as_slice(), Some(&letter.properties));
    let redriven = Message::Intent { routing_key: "s", body, properties, delay: None };
    embedded.broker.publish(&[redriven]).await.all().expect("publish");
    let mut deliveries = consume(embedded.broker.as_ref(), Queue::Intents).await;
    let mut taken = take(&mut deliveries, 2).await;
    let again = taken.remove(1);
    assert_eq!((text(&again).as_str(), again.properties.dead.is_none()), ("again", true));
    again.requeue();
    next(&mut deliveries).await.ack();
    drop(taken);
    end(deliveries).await;
}

#[tokio::test]
async fn one_process_at_a_time_consumes_a_queue_and_any_may_publish() {
    let (first, letters) = (Embedded::new().await, Queue::DeadLetters);
    let second = first.other_process().await;
    let mut deliveries = consume(first.broker.as_ref(), Queue::Intents).await;
    let refused = second.broker.consume(Queue::Intents, 1).await;
    let Err(BrokerError::Permanent(error)) = refused else { panic!("not refused") };
    assert!(error.to_string().contains("another floodgate process consumes"), "{error}");
    // Another queue is another matter.
    end(consume(second.broker.as_ref(), letters).await).await;
    publish(second.broker.as_ref(), &numbers(0..3)).await;
    let taken = take(&mut deliveries, 3).await;
    assert_eq!(taken.iter().map(text).collect::<Vec<_>>(), numbers(0..3));
    taken.into_iter().for_each(Delivery::ack);
    end(deliveries).await;
    publish(first.broker.as_ref(), &numbers(3..4)).await;
    let mut deliveries = consume(second.broker.as_ref(), Queue::Intents).await;
    assert_eq!(text(&next(&mut deliveries).await), "3");
    // Nobody else has it now, and a queue that is only read is left to others.
    drop(first);
    end(deliveries).await;
    assert_eq!(depth(&second, Queue::Intents).await, 1);
}

#[tokio::test]
async fn consumers_of_one_process_share_a_queue() {
    let embedded = Embedded::new().await;
    let mut first = embedded.broker.consume(Queue::Intents, 3).await.expect("consume");
    let mut second = embedded.broker.consume(Queue::Intents, 100).await.expect("consume");
    publish(embedded.broker.as_ref(), &numbers(0..20)).await;
    let (mut all, mut held) = (Vec::new(), Vec::new());
    while all.len() < 20 {
        let (delivery, keep) = tokio::select! {
            delivery = first.next() => (delivery, false),
            delivery = second.next() => (delivery, true),
        };
        let delivery = delivery.expect("a delivery");
        all.push(text(&delivery).parse::<usize>().expect("a number"));
        if keep { held.push(delivery) } else { delivery.ack() }
    }
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>(), "each once");
    // What one of them leaves unsettled is there for the other.
    let left = held.len();
    drop(held);
    end(second).await;
    for _ in 0..left {
        next(&mut first).await.ack();
    }
    end(first).await;
    assert_eq!(depth(&embedded, Queue::Intents).await, 0);
}

fn event(n: usize) -> Event {
    let order = order(&format!("o-{n}"), "s", "u", 1);
    let decided_at = time("2026-11-27T08:00:00Z");
    Event::of(&Decision {
        order,
        outcome: Outcome::Created,
        submitted_at: decided_at,
        decided_at,
        version: 1,
        sold: 0,
    })
}

#[tokio::test]
async fn subscribers_of_another_process_get_events_from_the_moment_they_subscribe() {
    let first = Embedded::new().await;
    let second = first.other_process().await;
    let published = first.broker.publish(&[Message::Event(&event(0))]).await;
    assert_eq!(published.receipts, [Receipt::NoSubscriber]);
    let queue = Queue::Subscriber("shop/a b".into());
    let keys = [Topic::Events("order.created.*"), Topic::Events("order.#")];
    let mut events = second.broker.subscribe(queue.clone(), &keys, 10).await.expect("subscribe");
    let (one, two) = (event(1), event(2));
    let messages = [Message::Event(&one), Message::Event(&two)];
    let published = first.broker.publish(&messages).await;
    assert_eq!(published.receipts, [Receipt::Confirmed; 2]);
    for expected in [one, two] {
        let delivery = next(&mut events).await;
        assert_eq!(delivery.body, expected.data);
        assert_eq!(delivery.properties.routing_key, "order.created.s");
        delivery.ack();
    }
    end(events).await;
    assert_eq!(depth(&second, queue).await, 0, "one copy each");
}

#[tokio::test]
async fn a_publish_that_nobody_waits_for_any_more_harms_nothing() {
    let embedded = Embedded::new().await;
    for n in 0..50 {
        let body = n.to_string();
        let messages = [Message::intent("s", body.as_bytes())];
        let publishing = embedded.broker.publish(&messages);
        let _ = tokio::time::timeout(Duration::from_micros(n * 40), publishing).await;
    }
    publish(embedded.broker.as_ref(), &["last".into()]).await;
    let mut deliveries = consume(embedded.broker.as_ref(), Queue::Intents).await;
    while text(&next(&mut deliveries).await) != "last" {}
    end(deliveries).await;
}

/// Orders of several sales, in and beyond their stock and their limits.
fn some_orders(count: usize) -> Vec<Order> {
    (0..count)
        .map(|n| {
            let units = i64::try_from(1 + n / 7 % 3).expect("units");
            let sale = ["many", "few", "limited"][n % 3];
            order(&format!("o-{n}"), sale, &format!("u-{}", n / 3 % 200), units)
        })
        .collect()
}

/// Each order twice, singly and in arrays, and some ids once more with other contents. Returns how
/// many of those there are.
async fn post(broker: &dyn Broker, orders: &[Order]) -> usize {
    let mut bodies: Vec<Vec<u8>> = orders.iter().map(body).collect();
    for (n, pair) in orders.chunks(2).enumerate() {
        let elements: Vec<Vec<u8>> = pair.iter().map(body).collect();
        bodies.insert(n * 3, [b"[", elements.join(&b","[..]).as_slice(), b"]"].concat());
    }
    let mut conflicts = 0;
    for first in orders.iter().step_by(100) {
        let other = order(first.id.as_str(), first.sale_id.as_str(), "somebody-else", 1);
        // At the end, so that it is the later one.
        bodies.push(body(&other));
        conflicts += 1;
    }
    for chunk in bodies.chunks(500) {
        let messages: Vec<Message<'_>> =
            chunk.iter().map(|body| Message::intent("any", body)).collect();
        broker.publish(&messages).await.all().expect("publish");
    }
    conflicts
}

async fn sold(embedded: &Embedded) -> u32 {
    embedded.ledger.sales(None).await.expect("sales").iter().map(|state| state.sold).sum()
}

#[tokio::test]
async fn a_worker_that_ends_suddenly_is_followed_by_one_that_finishes_its_work() {
    let mut embedded = Embedded::new().await;
    let sales = [
        sale("many", 100_000),
        sale("few", 150),
        Sale { per_user_limit: Some(4), ..sale("limited", 100_000) },
    ];
    embedded.ledger.open(&sales).await.expect("open");
    // Events go to a process that goes on.
    let shop = embedded.other_process().await;
    let queue = Queue::Subscriber("shop".into());
    let mut events =
        shop.broker.subscribe(queue, &[Topic::Events("order.#")], 500).await.expect("subscribe");
    let orders = some_orders(3000);
    let conflicts = post(embedded.broker.as_ref(), &orders).await;
    for enough in [100, 700] {
        let mut worker = embedded.worker();
        // Small batches, so that it is interrupted in the middle.
        worker.options.worker.max_batch = 32;
        let running = Running::start(worker);
        while sold(&embedded).await < enough {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        running.abort().await;
        embedded = embedded.crash().await;
    }
    let running = Running::start(embedded.worker());
    let totals = check::settled_in(shop.ledger.as_ref(), &mut events, &orders, 0).await;
    let mut letters = consume(embedded.broker.as_ref(), Queue::DeadLetters).await;
    let mut dead = std::collections::HashSet::new();
    while dead.len() < conflicts {
        let letter = next(&mut letters).await;
        assert_eq!(letter.properties.dead.as_ref().expect("a reason").reason, "order_id_conflict");
        dead.insert(letter.body.clone());
        letter.ack();
    }
    running.stop().await;
    assert_eq!(depth(&embedded, Queue::Intents).await, 0);
    let states = embedded.ledger.sales(None).await.expect("sales");
    let few = states.iter().find(|state| state.sale.id.as_str() == "few").expect("few");
    assert_eq!(few.remaining(), 0, "with enough demand every unit sells");
    assert!(totals.rejected > 0 && totals.sold_out > 0 && totals.created > 1000, "{totals:?}");
    within_limit(&embedded, &orders).await;
}

/// No buyer of the limited sale has more units than the limit.
async fn within_limit(embedded: &Embedded, orders: &[Order]) {
    let keys: Vec<_> = orders.iter().map(Order::key).collect();
    let mut units = std::collections::HashMap::<String, u32>::new();
    for decision in embedded.ledger.decisions(&keys).await.expect("ledger").into_iter().flatten() {
        if decision.outcome == Outcome::Created && decision.order.sale_id.as_str() == "limited" {
            let buyer = units.entry(decision.order.user_id.to_string()).or_default();
            *buyer += decision.order.quantity.get();
        }
    }
    assert!(!units.is_empty() && units.values().all(|units| *units <= 4));
}

#[tokio::test]
async fn names_that_no_sale_has_take_no_room_from_sales() {
    let embedded = Embedded::new().await;
    let cache = SaleCache::start(embedded.ledger.clone(), embedded.broker.as_ref()).await;
    let cache = cache.expect("a cache");
    let id = |text: String| SaleId::parse(text).expect("an id");
    for n in 0..10_500 {
        assert!(cache.sale(&id(format!("none-{n}"))).await.expect("a ledger").is_none());
    }
    embedded.ledger.open(&[sale("s", 1)]).await.expect("open");
    let known = cache.sale(&id("s".into())).await.expect("a ledger");
    assert!(known.is_some_and(|state| state.remaining() == 1));
    assert!(cache.follow(&id("s".into())).await.expect("a ledger").is_some());
    // A name becomes a sale's.
    assert!(cache.sale(&id("late".into())).await.expect("a ledger").is_none());
    embedded.ledger.open(&[sale("late", 1)]).await.expect("open");
    let deadline = std::time::Instant::now() + PATIENCE;
    while cache.sale(&id("late".into())).await.expect("a ledger").is_none() {
        assert!(std::time::Instant::now() < deadline, "a sale is known once it is open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
