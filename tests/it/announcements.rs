//! That a sale sold out or was restocked is announced at least once and always under the same id,
//! whichever process dies in between.

use std::collections::HashSet;

use floodgate::broker::topology::Topology;
use floodgate::broker::{Queue, Topic};
use floodgate::ledger::Ledger;
use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use crate::harness::embedded::Embedded;
use crate::harness::process::{WorkerProcess, floodgate, run};
use crate::harness::users::until_decided;
use crate::harness::{Stage, channel, order, orders, post, sale, until};

/// Announcements, in a queue that only this test subscribes to.
struct News(lapin::Channel);

const QUEUE: &str = "news";

impl News {
    async fn of(stage: &Stage) -> Self {
        let channel = channel(stage).await;
        let namespace = &stage.deployment.app.settings().namespace;
        let (queue, exchange) =
            (format!("{namespace}.{QUEUE}"), Topology::new(namespace).events_exchange());
        let (options, none) =
            (QueueDeclareOptions { exclusive: true, ..Default::default() }, FieldTable::default());
        channel.queue_declare(queue.clone().into(), options, none.clone()).await.expect("declare");
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.into(), "sale.#".into(), bind, none)
            .await
            .expect("bind");
        Self(channel)
    }

    /// Waits until nothing is owed, and takes everything that was told until then: its id and data.
    async fn told(&self, stage: &Stage) -> Vec<(String, Vec<u8>)> {
        until_nothing_is_owed(stage.ledger.as_ref()).await;
        let queue = format!("{}.{QUEUE}", stage.deployment.app.settings().namespace);
        let mut told = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) =
            self.0.basic_get(queue.clone().into(), options).await.expect("get")
        {
            let message = message.delivery;
            let id = message.properties.message_id().as_ref().expect("an id").to_string();
            told.push((id, message.data));
        }
        told
    }
}

async fn until_nothing_is_owed(ledger: &dyn Ledger) {
    until(async || ledger.unpublished(None).await.expect("outbox").is_empty()).await;
}

/// One announcement, told once or several times, of which at least `times` in the same way.
fn is_told(told: &[(String, Vec<u8>)], id: &str, times: usize) {
    assert!(told.len() >= times, "{id}: told {} times", told.len());
    for one in told {
        assert_eq!(one.0, id);
        assert_eq!(one.1, told[0].1, "the same to the byte");
    }
}

#[tokio::test]
async fn the_end_of_a_sale_is_announced_although_its_worker_died_before() {
    for (gap, told_before) in [("locked", 0), ("decided", 0), ("announced", 1)] {
        let stage = Stage::new(gap).await;
        let news = News::of(&stage).await;
        stage.open(sale("s", 1)).await;
        let all = orders("s", 3);
        stage.post_orders(&all).await;
        let fail_points = format!("{gap}=return");
        let doomed = WorkerProcess::with(&stage, &[("FAILPOINTS", fail_points.as_str())]);
        assert_eq!(doomed.wait(), None, "{gap}: it aborts");
        let owed = stage.ledger.unpublished(None).await.expect("outbox").len();
        assert_eq!(owed, usize::from(gap != "locked"), "{gap}");
        let worker = WorkerProcess::start(&stage);
        until_decided(stage.ledger.as_ref(), &all).await;
        is_told(&news.told(&stage).await, "sale:s:sold_out:1", 1 + told_before);
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
        stage.remove().await;
    }
}

#[tokio::test]
async fn a_restock_is_announced_although_its_command_died_before() {
    let restock = ["sale", "restock", "s", "--units", "2", "--adjustment-id", "more"];
    for (gap, told_before) in [("changed", 0), ("announced", 1)] {
        for again in [false, true] {
            let stage = Stage::new(gap).await;
            let news = News::of(&stage).await;
            stage.open(sale("s", 1)).await;
            let fail_points = format!("{gap}=return");
            let mut doomed = floodgate(&stage, &restock);
            let died = doomed.env("FAILPOINTS", fail_points).output().expect("floodgate runs");
            assert_eq!(died.status.code(), None, "{gap}: it aborts");
            assert_eq!(stage.ledger.unpublished(None).await.expect("outbox").len(), 1, "{gap}");
            // The operator, who got no answer, repeats it; or any worker finds it.
            let worker = if again {
                assert_eq!(run(&stage, &restock).status.code(), Some(0));
                None
            } else {
                Some(stage.worker().await)
            };
            is_told(&news.told(&stage).await, "sale:s:restocked:more", 1 + told_before);

            let worker = match worker {
                Some(worker) => worker,
                None => stage.worker().await,
            };
            let all = [order("a", "s", "u", 3)];
            stage.post_orders(&all).await;
            until_decided(stage.ledger.as_ref(), &all).await;
            is_told(&news.told(&stage).await, "sale:s:sold_out:2", 1);
            worker.stop().await;
            stage.remove().await;
        }
    }
}

#[tokio::test]
async fn an_embedded_sale_is_announced_although_its_process_died_before() {
    for (gap, told_before) in [("decided", 0), ("announced", 1)] {
        let embedded = Embedded::new().await;
        let queue = Queue::Subscriber(QUEUE.into());
        let mut news = embedded
            .broker
            .subscribe(queue, &[Topic::Events("sale.#")], 100)
            .await
            .expect("subscribe");
        embedded.ledger.open(&[sale("s", 1)]).await.expect("open");
        let all = orders("s", 3);
        let bodies: Vec<Vec<u8>> = all.iter().map(crate::harness::body).collect();
        post(embedded.broker.as_ref(), &bodies).await;
        let fail_points = format!("{gap}=return");
        let doomed = WorkerProcess::embedded(&embedded, &[("FAILPOINTS", fail_points.as_str())]);
        assert_eq!(doomed.wait(), None, "{gap}: it aborts");
        let worker = WorkerProcess::embedded(&embedded, &[]);
        until_decided(embedded.ledger.as_ref(), &all).await;
        let mut told = Vec::new();
        while told.len() <= told_before {
            let next = tokio::time::timeout(crate::harness::PATIENCE, news.next()).await;
            let delivery = next.expect("an announcement in time").expect("an announcement");
            assert_eq!(delivery.properties.routing_key, "sale.sold_out.s");
            told.push(delivery.body.clone());
            delivery.ack();
        }
        assert!(told.iter().all(|body| *body == told[0]), "the same to the byte");
        until_nothing_is_owed(embedded.ledger.as_ref()).await;
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
    }
}

#[tokio::test]
async fn workers_leave_it_to_the_one_that_sold_the_last_unit() {
    const SALES: usize = 2000;
    let stage = Stage::new("many").await;
    let news = News::of(&stage).await;
    let sales: Vec<String> = (0..SALES).map(|number| format!("s-{number}")).collect();
    let open: Vec<_> = sales.iter().map(|id| sale(id, 1)).collect();
    stage.ledger.open(&open).await.expect("open");
    let all: Vec<_> = sales.iter().map(|id| order("o", id, "u", 1)).collect();
    let workers = [stage.worker().await, stage.worker().await, stage.worker().await];
    stage.post_orders(&all).await;
    until_decided(stage.ledger.as_ref(), &all).await;
    let told = news.told(&stage).await;
    for worker in workers {
        worker.stop().await;
    }
    let each: HashSet<&str> = told.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(each.len(), SALES);
    // On a slow machine their look for what others have left may repeat what is just being published.
    assert!(told.len() < SALES * 3 / 2, "{} announcements of {SALES} sales", told.len());
    stage.remove().await;
}
