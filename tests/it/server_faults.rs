//! Servers that die, freeze and fill up under a load. Most tests have private ones.

use std::sync::Arc;
use std::time::Duration;

use chrono::{SubsecRound, TimeDelta, Utc};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::{Broker, Message, Queue};
use floodgate::config::Settings;
use floodgate::domain::decision::{Outcome, Reason};
use floodgate::domain::order::Order;
use floodgate::domain::sale::Sale;
use floodgate_fault_proxy::Faults;
use reqwest::header::RETRY_AFTER;
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;

use crate::harness::api::{Served, on_free_port};
use crate::harness::check::{self, Totals};
use crate::harness::private::PrivateServers;
use crate::harness::process::{PrivatePostgres, PrivateRedis, WorkerProcess};
use crate::harness::users;
use crate::harness::{
    PATIENCE, Running, Stage, body, database, delete_queue, order, orders, sale, through_proxy,
    until, until_within,
};

/// Units of the sale, of which three times as many are asked for.
const STOCK: u32 = 1000;

async fn open(stage: &Stage) -> Vec<Order> {
    stage.open(sale("s", STOCK)).await;
    orders("s", 3 * STOCK as usize)
}

/// All sold, and each order decided once.
async fn settle(stage: &mut Stage, all: &[Order]) {
    let totals = check::settled(stage, all).await;
    let (created, sold_out) = (STOCK as usize, all.len() - STOCK as usize);
    assert_eq!(totals, Totals { created, sold_out, rejected: 0 });
    check::empty(stage).await;
}

/// An order as a client of the API sends it.
fn request(order: &Order) -> serde_json::Value {
    serde_json::json!({
        "order_id": order.id, "user_id": order.user_id, "quantity": order.quantity.get()
    })
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(700)).await;
}

#[tokio::test]
async fn postgres_killed_in_full_flow_loses_nothing_that_was_acknowledged() {
    let servers = PrivateServers::start(&[]);
    let mut stage = servers.stage("postgres-killed", |_| {}).await;
    let all = open(&stage).await;
    let worker = stage.worker().await;
    let (first, rest) = all.split_at(all.len() / 2);
    stage.post_orders(first).await;
    for _ in 0..2 {
        servers.run(&["kill", "postgres"]).await;
        pause().await;
        servers.run(&["start", "postgres"]).await;
        pause().await;
    }
    stage.post_orders(rest).await;
    settle(&mut stage, &all).await;
    worker.stop().await;
}

#[tokio::test]
async fn while_postgres_has_a_full_disk_nothing_is_acknowledged_and_then_all_is_decided() {
    let mut server = PrivatePostgres::on_a_disk_of(120);
    let url = server.url();
    let mut stage = Stage::with("disk", |settings| settings.database_url = url.into()).await;
    let all = open(&stage).await;
    let worker = stage.worker().await;
    let (before, after) = all.split_at(1000);
    stage.post_orders(before).await;
    users::until_decided(stage.ledger.as_ref(), before).await;
    server.fill_disk();
    stage.post_orders(after).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let keys: Vec<_> = after.iter().map(Order::key).collect();
    let decided = stage.ledger.decisions(&keys).await.unwrap_or_default();
    assert!(decided.iter().flatten().count() < after.len(), "there was room on the disk");
    server.empty_disk();
    settle(&mut stage, &all).await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn rabbitmq_killed_while_orders_are_published_keeps_those_it_has_confirmed() {
    let servers = PrivateServers::start(&[]);
    let mut stage = servers.stage("rabbitmq-killed", on_free_port).await;
    let all = open(&stage).await;
    let served = Served::up(&stage.deployment.app).await;
    let (over_amqp, over_http) = all.split_at(all.len() / 2);
    let publishing = publish(stage.broker.clone(), over_amqp.to_vec());
    let posting = async {
        for order in over_http {
            let wanted = request(order);
            let accepted = async || {
                let answer = served.post("/v1/sales/s/orders", &wanted).send().await;
                answer.expect("an answer").status() == 202
            };
            // It may meet both starts.
            until_within(PATIENCE * 3, accepted).await;
        }
    };
    let killing = async {
        for _ in 0..2 {
            pause().await;
            servers.run(&["kill", "rabbitmq"]).await;
            servers.run(&["start", "rabbitmq"]).await;
        }
    };
    tokio::join!(posting, killing);
    publishing.await.expect("published");
    settle(&mut stage, &all).await;
    served.stop().await;
}

/// Publishes orders a few at a time, each until it is confirmed.
fn publish(broker: Arc<dyn Broker>, orders: Vec<Order>) -> JoinHandle<()> {
    tokio::spawn(async move {
        for some in orders.chunks(20) {
            let mut bodies: Vec<Vec<u8>> = some.iter().map(body).collect();
            while !bodies.is_empty() {
                let messages: Vec<_> =
                    bodies.iter().map(|body| Message::intent("s", body)).collect();
                let mut receipts = broker.publish(&messages).await.receipts.into_iter();
                bodies.retain(|_| receipts.next().is_some_and(|receipt| !receipt.is_done()));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    })
}

#[tokio::test]
async fn while_rabbitmq_has_no_room_orders_are_refused_and_go_on_when_it_has() {
    let servers = PrivateServers::start(&[]);
    let stage = servers
        .stage("alarm", |settings| {
            on_free_port(settings);
            settings.broker.confirm_timeout = Duration::from_secs(1);
        })
        .await;
    let all = open(&stage).await;
    let (before, after) = all.split_at(all.len() / 2);
    let served = Served::up(&stage.deployment.app).await;
    publish(stage.broker.clone(), before.to_vec()).await.expect("published");
    servers.run(&["fill", "rabbitmq"]).await;
    let wanted = serde_json::json!({ "user_id": "u", "quantity": 1, "order_id": "refused" });
    let refused = async || {
        let answer = served.post("/v1/sales/s/orders", &wanted).send().await.expect("an answer");
        if answer.status() == 202 {
            return false;
        }
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key(RETRY_AFTER));
        true
    };
    until(refused).await;
    servers.run(&["empty", "rabbitmq"]).await;
    publish(stage.broker.clone(), after.to_vec()).await.expect("published");
    users::until_decided(stage.ledger.as_ref(), &all).await;
    // The one that was refused may be there all the same: it was not known.
    until(async || stage.ledger.sales(None).await.is_ok_and(|all| all[0].remaining() == 0)).await;
    check::empty(&stage).await;
    served.stop().await;
}

#[tokio::test]
async fn an_intake_that_is_full_refuses_and_loses_nothing_it_has_taken() {
    let servers = PrivateServers::start(&[]);
    let mut stage = servers.stage("full", on_free_port).await;
    let all = open(&stage).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let name = stage.deployment.app.settings().namespace.clone();
    let limit = r#"{"max-length":50,"overflow":"reject-publish"}"#;
    servers.run(&["rabbitmqctl", "set_policy", "full", &format!("^{name}.intents$"), limit]).await;
    let mut accepted = 0;
    for order in &all {
        let wanted = request(order);
        let answer = served.post("/v1/sales/s/orders", &wanted).send().await.expect("an answer");
        if answer.status() != 202 {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key(RETRY_AFTER));
            break;
        }
        accepted += 1;
    }
    assert!((50..1000).contains(&accepted), "{accepted} accepted");
    let worker = stage.worker().await;
    let broker = stage.broker.clone();
    publish(broker, all.clone()).await.expect("published");
    settle(&mut stage, &all).await;
    worker.stop().await;
    served.stop().await;
}

#[tokio::test]
async fn deliveries_that_rabbitmq_takes_back_because_they_take_too_long_are_decided_once() {
    let servers = PrivateServers::start(&[]);
    let set = "application:set_env(rabbit, consumer_timeout, 3000), application:set_env(rabbit, channel_tick_interval, 500).";
    servers.run(&["rabbitmqctl", "eval", set]).await;
    let mut stage = servers
        .stage("taken-back", |settings| settings.ledger.timeout = Duration::from_secs(20))
        .await;
    let all = open(&stage).await;
    let worker = stage.worker().await;
    servers.run(&["freeze", "postgres"]).await;
    stage.post_orders(&all).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    servers.run(&["thaw", "postgres"]).await;
    settle(&mut stage, &all).await;
    worker.stop().await;
}

#[tokio::test]
async fn links_that_stop_one_by_one_and_come_back_in_another_order_are_used_again() {
    let servers = crate::harness::settings();
    let mut proxies = Vec::new();
    let mut through = servers.clone();
    for url in [&mut through.amqp_url, &mut through.redis_url, &mut through.database_url] {
        let (proxy, through) = through_proxy(url.expose_secret()).await;
        *url = through.into();
        proxies.push(proxy);
    }
    let mut stage = Stage::with("one-by-one", |settings| *settings = through).await;
    let all = open(&stage).await;
    let worker = stage.worker().await;
    let publishing = publish(stage.broker.clone(), all.clone());
    // A worker that can't reach its servers when it starts ends; this one has started.
    until(async || stage.ledger.sales(None).await.is_ok_and(|all| all[0].sold > 0)).await;
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        for index in order {
            proxies[index].set(Faults::stall());
            pause().await;
        }
        for index in [2, 0, 1] {
            proxies[order[index]].heal();
            proxies[order[index]].reset();
            pause().await;
        }
    }
    publishing.await.expect("published");
    settle(&mut stage, &all).await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_hundred_copies_of_an_order_over_several_workers_are_one_order() {
    let mut stage = Stage::new("copies").await;
    stage.open(sale("s", STOCK)).await;
    let all = orders("s", 50);
    let copies: Vec<Vec<u8>> =
        (0..100).flat_map(|_| all.iter().map(body).collect::<Vec<_>>()).collect();
    let workers: Vec<_> = (0..3).map(|_| WorkerProcess::start(&stage)).collect();
    stage.post(&copies).await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 50, sold_out: 0, rejected: 0 });
    check::empty(&stage).await;
    let sold = stage.ledger.sales(None).await.expect("sales")[0].sold;
    assert_eq!(sold, 50);
    for worker in workers {
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
    }
    stage.remove().await;
}

#[tokio::test]
async fn a_database_that_lets_nobody_in_or_locks_its_tables_is_waited_for() {
    let server = PrivatePostgres::start(&["-c", "max_connections=20"]);
    let url = server.url();
    let change = |settings: &mut Settings| {
        settings.database_url = url.clone().into();
        settings.ledger.max_connections = 2;
    };
    let mut stage = Stage::with("connections", change).await;
    let all = open(&stage).await;
    let worker = stage.worker().await;
    let (first, rest) = all.split_at(all.len() / 2);

    let mut locking = database(&stage).await;
    sqlx::raw_sql("begin; lock table sales").execute(&mut locking).await.expect("locked");
    stage.post_orders(first).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    sqlx::raw_sql("commit").execute(&mut locking).await.expect("released");
    users::until_decided(stage.ledger.as_ref(), first).await;

    let mut taken = Vec::new();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()
               and application_name = 'floodgate'";
    for _ in 0..10 {
        sqlx::raw_sql(end).execute(&mut locking).await.expect("ended");
        while let Ok(one) = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await {
            taken.push(one);
        }
    }
    stage.post_orders(rest).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(taken.len() > 10, "{} taken", taken.len());
    drop(taken);
    settle(&mut stage, &all).await;
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn workers_whose_clocks_are_wrong_agree_on_who_was_in_time() {
    let mut stage = Stage::new("clocks").await;
    let opens_at = (Utc::now() + TimeDelta::seconds(2)).trunc_subsecs(3);
    let closes_at = opens_at + TimeDelta::seconds(2);
    let window = Sale { opens_at: Some(opens_at), closes_at: Some(closes_at), ..sale("s", 10_000) };
    stage.open(window).await;
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let workers = [-2, 2].map(|seconds| {
        let mut worker = stage.deployment.app.worker(&adapters);
        worker.clock = Arc::new(move || Utc::now() + TimeDelta::seconds(seconds));
        Running::start(worker)
    });
    let all = orders("s", 1200);
    for some in all.chunks(20) {
        stage.post_orders(some).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    check::settled(&mut stage, &all).await;
    let mut seen = [0; 3];
    for order in &all {
        let decision = check::decision(stage.ledger.as_ref(), &order.key()).await.expect("decided");
        let (index, outcome) = match decision.submitted_at {
            at if at < opens_at => (0, Outcome::Rejected(Reason::NotOpen)),
            at if at < closes_at => (1, Outcome::Created),
            _ => (2, Outcome::Rejected(Reason::Closed)),
        };
        assert_eq!(decision.outcome, outcome, "submitted at {}", decision.submitted_at);
        seen[index] += 1;
    }
    assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    for worker in workers {
        worker.stop().await;
    }
    stage.remove().await;
}

#[tokio::test]
async fn a_sale_whose_redis_is_emptied_goes_to_as_many_buyers_as_it_has_units() {
    const UNITS: usize = 3000;
    let redis = PrivateRedis::start();
    let url = redis.url();
    let mut stage = Stage::with("emptied", |settings| settings.redis_url = url.into()).await;
    let limited = Sale { per_user_limit: Some(1), ..sale("s", 3000) };
    stage.open(limited).await;
    // As many buyers as units, each of whom tries twice.
    let all: Vec<Order> = (0..2 * UNITS)
        .map(|n| order(&format!("o-{n}"), "s", &format!("u-{}", n % UNITS), 1))
        .collect();
    let worker = stage.worker().await;
    let publishing = publish(stage.broker.clone(), all.clone());
    until(async || stage.ledger.sales(None).await.is_ok_and(|all| all[0].sold >= 500)).await;
    redis.command(&["FLUSHALL"]);
    publishing.await.expect("published");
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: UNITS, sold_out: 0, rejected: UNITS });
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn events_that_nobody_has_subscribed_to_are_counted() {
    let mut stage = Stage::new("unrouted").await;
    stage.open(sale("s", 10)).await;
    // Its subscriber would make its queue again.
    stage.events.stop();
    while stage.events.next().await.is_some() {}
    delete_queue(&stage, Queue::Subscriber(TempDeployment::SUBSCRIBER.to_owned())).await;
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    let worker = stage.deployment.app.worker(&adapters);
    let metrics = worker.metrics.clone();
    let worker = Running::start(worker);
    let all = orders("s", 10);
    stage.post_orders(&all).await;
    users::until_decided(stage.ledger.as_ref(), &all).await;
    check::empty(&stage).await;
    until(async || metrics.worker.unrouted_events.get() == 10).await;
    worker.stop().await;
    stage.remove().await;
}
