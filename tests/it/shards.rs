//! A divided intake.

use std::collections::HashMap;
use std::time::Duration;

use floodgate::broker::{Message, Queue};
use floodgate::domain::decision::Outcome;
use floodgate::domain::order::Order;
use floodgate::shards::{Division, Roster};

use crate::harness::check::{self, Totals};
use crate::harness::process::floodgate;
use crate::harness::{PATIENCE, Running, Stage, body, channel, order, sale, until};

const SALES: usize = 20;
const ORDERS: usize = 60;

/// Orders of every sale in turns, of which a third are granted.
fn mixture() -> Vec<Order> {
    let order = |n: usize| {
        let (sale, of_sale) = (n % SALES, n / SALES);
        order(&format!("o-{of_sale:03}"), &format!("s-{sale}"), &format!("u-{of_sale}"), 1)
    };
    (0..SALES * ORDERS).map(order).collect()
}

async fn open_sales(stage: &Stage) {
    for n in 0..SALES {
        stage.open(sale(&format!("s-{n}"), u32::try_from(ORDERS / 3).expect("small"))).await;
    }
}

async fn post(stage: &Stage, orders: &[Order]) {
    let bodies: Vec<Vec<u8>> = orders.iter().map(body).collect();
    let messages: Vec<Message<'_>> = orders
        .iter()
        .zip(&bodies)
        .map(|(order, body)| Message::intent(order.sale_id.as_str(), body))
        .collect();
    stage.broker.publish(&messages).await.all().expect("publish");
}

async fn divide(stage: &Stage, shards: u16) {
    stage.deployment.app.divide(shards).await.expect("divided");
}

/// Workers on each shard.
async fn consumers(stage: &Stage, shards: u16) -> Vec<u32> {
    let mut each = Vec::new();
    for shard in 0..shards {
        each.push(stage.broker.depth(Queue::IntentsShard(shard)).await.expect("depth").consumers);
    }
    each
}

async fn waiting(stage: &Stage, queues: impl IntoIterator<Item = Queue>) -> Vec<u32> {
    let mut each = Vec::new();
    for queue in queues {
        each.push(stage.broker.depth(queue).await.expect("depth").messages);
    }
    each
}

async fn workers(stage: &Stage, count: usize) -> Vec<Running> {
    let mut workers = Vec::new();
    for _ in 0..count {
        workers.push(stage.worker().await);
    }
    workers
}

async fn stop(workers: Vec<Running>) {
    for worker in workers {
        worker.stop().await;
    }
}

async fn roster(stage: &Stage) -> Roster {
    stage.deployment.app.roster().await.expect("roster")
}

/// The first orders of each sale are granted, as they were posted.
async fn in_queue_order(stage: &Stage, orders: &[Order]) {
    for order in orders {
        let of_sale: usize = order.id.as_str()[2..].parse().expect("a number");
        let expected = if of_sale < ORDERS / 3 { Outcome::Created } else { Outcome::SoldOut };
        let outcome = check::outcome(stage, order.sale_id.as_str(), order.id.as_str()).await;
        assert_eq!(outcome, Some(expected), "{}", order.key());
    }
}

const THIRD: Totals =
    Totals { created: SALES * ORDERS / 3, sold_out: SALES * ORDERS * 2 / 3, rejected: 0 };

#[tokio::test]
async fn a_sale_keeps_its_order_over_many_workers() {
    let mut stage = Stage::new("sharded").await;
    open_sales(&stage).await;
    divide(&stage, 5).await;
    let mut running = workers(&stage, 3).await;
    until(async || consumers(&stage, 5).await == [1; 5]).await;
    assert_eq!(roster(&stage).await.workers.len(), 3);
    let orders = mixture();
    for (n, part) in orders.chunks(30).enumerate() {
        post(&stage, part).await;
        // Shards change hands in full flow.
        match n {
            5 | 15 => running.push(stage.worker().await),
            10 | 20 => running.remove(0).stop().await,
            _ => {}
        }
    }
    assert_eq!(check::settled(&mut stage, &orders).await, THIRD);
    in_queue_order(&stage, &orders).await;
    stop(running).await;
    assert!(roster(&stage).await.workers.is_empty(), "who ends leaves");
    stage.remove().await;
}

#[tokio::test]
async fn orders_that_were_sent_to_another_sale_get_to_their_shard() {
    let mut stage = Stage::new("sharded-array").await;
    open_sales(&stage).await;
    divide(&stage, 4).await;
    let orders = mixture();
    for part in orders.chunks(50) {
        let array = serde_json::to_vec(part).expect("JSON");
        let message = Message::intent("s-0", &array);
        stage.broker.publish(&[message]).await.all().expect("publish");
    }
    let workers = workers(&stage, 2).await;
    assert_eq!(check::settled(&mut stage, &orders).await, THIRD);
    let asked = crate::harness::ask(&stage, &order("asked", "s-1", "u-asked", 1)).await;
    assert_eq!(asked["outcome"], "sold_out", "a reply is sent from the other shard");
    stop(workers).await;
    let queues = (0..4).flat_map(|shard| [Queue::IntentsShard(shard), Queue::ReturnedShard(shard)]);
    assert_eq!(waiting(&stage, queues).await, [0; 8]);
    stage.remove().await;
}

#[tokio::test]
async fn dividing_again_in_full_flow_loses_and_doubles_nothing() {
    let mut stage = Stage::new("divide-again").await;
    open_sales(&stage).await;
    let workers = workers(&stage, 2).await;
    let orders = mixture();
    for (part, shards) in orders.chunks(200).zip([2, 6, 3, 1, 4, 1]) {
        for chunk in part.chunks(40) {
            post(&stage, chunk).await;
        }
        divide(&stage, shards).await;
    }
    assert_eq!(check::settled(&mut stage, &orders).await, THIRD);
    assert_eq!(roster(&stage).await.division, Division { shards: 1, most: 6 });
    // What arrives now goes where it went at first.
    let late = order("late", "s-0", "u", 1);
    post(&stage, std::slice::from_ref(&late)).await;
    until(async || check::outcome(&stage, "s-0", "late").await == Some(Outcome::SoldOut)).await;
    stop(workers).await;
    let queues = (0..6).map(Queue::IntentsShard).chain([Queue::Intents, Queue::DeadLetters]);
    assert_eq!(waiting(&stage, queues).await, [0; 8]);
    stage.remove().await;
}

#[tokio::test]
async fn the_shards_of_a_worker_that_dies_are_taken_by_the_others() {
    let mut stage = Stage::new("sharded-death").await;
    open_sales(&stage).await;
    divide(&stage, 4).await;
    let survivor = stage.worker().await;
    let mut command = floodgate(&stage, &["worker"]);
    let mut other = command.spawn().expect("floodgate runs");
    until(async || roster(&stage).await.workers.len() == 2).await;
    until(async || consumers(&stage, 4).await == [1; 4]).await;
    other.kill().expect("killed");
    other.wait().expect("ended");
    let died = tokio::time::Instant::now();
    let orders = mixture();
    for part in orders.chunks(100) {
        post(&stage, part).await;
    }
    assert_eq!(check::settled(&mut stage, &orders).await, THIRD);
    in_queue_order(&stage, &orders).await;
    assert!(died.elapsed() < PATIENCE / 2, "{:?}", died.elapsed());
    survivor.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn orders_that_return_come_to_the_shard_of_their_sale() {
    let stage = Stage::new("sharded-returned").await;
    divide(&stage, 3).await;
    divide(&stage, 8).await;
    divide(&stage, 7).await;
    let names =
        floodgate::broker::topology::Topology::new(&stage.deployment.app.settings().namespace);
    let channel = channel(&stage).await;
    let mut shards_used = HashMap::new();
    for n in 0..30 {
        let key = format!("sale-{n}");
        let before =
            (depths(&stage, Queue::IntentsShard).await, depths(&stage, Queue::ReturnedShard).await);
        for exchange in [names.intents_exchange(), names.returned_exchange()] {
            let publishing = channel.basic_publish(
                exchange.into(),
                key.clone().into(),
                lapin::options::BasicPublishOptions::default(),
                b"{}",
                lapin::BasicProperties::default(),
            );
            publishing.await.expect("publish");
        }
        let grown = async |queue: fn(u16) -> Queue, before: &[u32]| loop {
            let now = depths(&stage, queue).await;
            if let Some(shard) = (0..8).find(|&shard| now[shard] > before[shard]) {
                return shard;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let shard = grown(Queue::IntentsShard, &before.0).await;
        assert_eq!(shard, grown(Queue::ReturnedShard, &before.1).await, "{key}");
        *shards_used.entry(shard).or_insert(0) += 1;
    }
    assert!(shards_used.len() > 4 && !shards_used.contains_key(&7), "{shards_used:?}");
    stage.remove().await;
}

async fn depths(stage: &Stage, queue: fn(u16) -> Queue) -> Vec<u32> {
    waiting(stage, (0..8).map(queue)).await
}

#[tokio::test]
async fn the_command_divides_and_shows_what_waits() {
    let stage = Stage::new("shards-command").await;
    let run = |arguments: &[&str]| {
        let output = floodgate(&stage, arguments).output().expect("floodgate runs");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, shown, _) = run(&["shards", "3", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(
        (code, shown["shards"].as_u64(), shown["workers"].as_u64()),
        (Some(0), Some(3), Some(0))
    );
    assert_eq!(shown["queues"].as_array().map(Vec::len), Some(4));
    assert_eq!(
        (&shown["queues"][0]["in_use"], &shown["queues"][3]["in_use"]),
        (&false.into(), &true.into())
    );
    post(&stage, &mixture()[..40]).await;
    let (code, shown, _) = run(&["shards"]);
    assert!(code == Some(0) && shown.contains("Shards: 3."), "{shown}");
    let (code, log, _) = run(&["operator-log"]);
    assert!(
        code == Some(0) && log.contains("divided") && log.contains("3 shards; 1 before"),
        "{log}"
    );
    for wrong in ["0", "65", "x"] {
        assert_eq!(run(&["shards", wrong]).0, Some(2), "{wrong}");
    }
    stage.remove().await;
}
