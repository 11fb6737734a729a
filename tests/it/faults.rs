//! Faults made for real. After each, once things are quiet, the invariants must hold.

use std::time::Duration;

use floodgate::broker::Queue;
use floodgate::domain::sale::{Sale, SaleState};
use floodgate_fault_proxy::Faults;
use secrecy::ExposeSecret;

use crate::harness::check::{self, Totals};
use crate::harness::process::{PrivateRedis, WorkerProcess};
use crate::harness::{Running, Stage, order, orders, sale, through_proxy, until};

/// The gaps between the stages, by the names of their fail points; those of checking users are in
/// `verification/crashes.rs`.
const GAPS: [&str; 8] =
    ["parsed", "proposed", "locked", "decided", "amended", "published", "confirmed", "acked"];

#[tokio::test]
async fn a_worker_that_dies_in_a_gap_loses_nothing_and_sells_nothing_twice() {
    for gap in GAPS {
        // In the first batch, and in a later one while others are in flight. There is one amendment.
        let actions: &[&str] =
            if gap == "amended" { &["return"] } else { &["return", "2*off->return"] };
        for action in actions {
            let mut stage = Stage::new(gap).await;
            let limited = Sale { per_user_limit: Some(1), ..sale("s", 100) };
            stage.open(limited.clone()).await;
            // Redis counts too much, so that the ledger has something to amend.
            let wrong = SaleState::opened(Sale { stock: 150, ..limited });
            stage.inventory.prime(&[wrong]).await.expect("prime");
            let all = orders("s", 400);
            stage.post_orders(&all).await;
            stage.post(&["not json"]).await;
            let fail_points = format!("{gap}={action}");
            let variables =
                [("FAILPOINTS", fail_points.as_str()), ("FLOODGATE_WORKER__MAX_BATCH", "32")];
            let doomed = WorkerProcess::with(&stage, &variables);
            assert_eq!(doomed.wait(), None, "{gap} {action}: it aborts");
            let worker = stage.worker().await;
            let totals = check::settled(&mut stage, &all).await;
            assert_eq!(
                totals,
                Totals { created: 100, sold_out: 300, rejected: 0 },
                "{gap} {action}"
            );
            assert_eq!(stage.dead_letters(1).await[0].0, "bad_json");
            check::empty(&stage).await;
            worker.stop().await;
            stage.remove().await;
        }
    }
}

#[tokio::test]
async fn workers_killed_in_full_flow_are_replaced() {
    let mut stage = Stage::new("kill").await;
    stage.open(sale("s", 2000)).await;
    let all = orders("s", 12_000);
    stage.post_orders(&all).await;
    let mut workers: Vec<_> = (0..4).map(|_| WorkerProcess::start(&stage)).collect();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        workers.remove(0).kill();
        workers.push(WorkerProcess::start(&stage));
    }
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 2000, sold_out: 10_000, rejected: 0 });
    check::empty(&stage).await;
    for worker in workers {
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
    }
    assert_eq!(stage.broker.depth(Queue::DeadLetters).await.expect("depth").messages, 0);
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_told_to_stop_in_full_flow_drains_and_exits_with_0() {
    let mut stage = Stage::new("drain").await;
    stage.open(sale("s", 500)).await;
    let all = orders("s", 8000);
    stage.post_orders(&all).await;
    for signal in ["TERM", "INT"] {
        let before = stage.broker.depth(Queue::Intents).await.expect("depth").messages;
        let worker = WorkerProcess::with(&stage, &[("FLOODGATE_BROKER__PREFETCH", "100")]);
        while stage.broker.depth(Queue::Intents).await.expect("depth").messages == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        worker.signal(signal);
        assert_eq!(worker.wait(), Some(0), "SIG{signal}");
    }
    assert!(
        stage.broker.depth(Queue::Intents).await.expect("depth").messages > 0,
        "it stopped before the end"
    );
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals, Totals { created: 500, sold_out: 7500, rejected: 0 });
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_frozen_past_its_time_decides_nothing_twice() {
    let mut stage = Stage::with("frozen", |settings| settings.broker.heartbeat_s = 1).await;
    stage.open(sale("s", 300)).await;
    let all = orders("s", 6000);
    stage.post_orders(&all).await;
    let heartbeat = [("FLOODGATE_BROKER__HEARTBEAT_S", "1")];
    let frozen = WorkerProcess::with(&stage, &heartbeat);
    stage.event().await;
    frozen.signal("STOP");
    let other = WorkerProcess::with(&stage, &heartbeat);
    // RabbitMQ closes a connection that is silent for two heartbeats, and delivers again.
    tokio::time::sleep(Duration::from_secs(4)).await;
    frozen.signal("CONT");
    let totals = check::settled_but(&mut stage, &all, 1).await;
    assert_eq!(totals, Totals { created: 300, sold_out: 5700, rejected: 0 });
    check::empty(&stage).await;
    for worker in [frozen, other] {
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
    }
    stage.remove().await;
}

/// Posts half of the orders, lets `fault` happen, posts the others, and checks the sale.
async fn with_fault(
    stage: &mut Stage,
    stock: u32,
    fault: impl AsyncFnOnce(),
    healed: impl AsyncFnOnce(),
) {
    stage.open(sale("s", stock)).await;
    let all = orders("s", 4000);
    let worker = stage.worker().await;
    stage.post_orders(&all[..2000]).await;
    stage.event().await;
    fault().await;
    stage.post_orders(&all[2000..]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    healed().await;
    let totals = check::settled_but(stage, &all, 1).await;
    let created = stock as usize;
    assert_eq!(totals, Totals { created, sold_out: 4000 - created, rejected: 0 });
    check::empty(stage).await;
    worker.stop().await;
}

async fn stage_with(
    redis: &PrivateRedis,
    what: &str,
    mode: floodgate::inventory::WhenUnavailable,
) -> Stage {
    let url = redis.url();
    Stage::with(what, |settings| {
        settings.redis_url = url.into();
        settings.inventory.when_unavailable = mode;
    })
    .await
}

use floodgate::inventory::WhenUnavailable::{Ledger, Wait};

#[tokio::test]
async fn a_sale_goes_on_while_redis_hangs() {
    for (mode, what) in [(Ledger, "hang-ledger"), (Wait, "hang-wait")] {
        let redis = PrivateRedis::start();
        let mut stage = stage_with(&redis, what, mode).await;
        with_fault(&mut stage, 2500, async || redis.signal("STOP"), async || redis.signal("CONT"))
            .await;
        stage.remove().await;
    }
}

#[tokio::test]
async fn a_sale_ends_while_redis_is_gone_for_good() {
    let mut redis = PrivateRedis::start();
    let mut stage = stage_with(&redis, "gone", Ledger).await;
    stage.open(Sale { per_user_limit: Some(1), ..sale("s", 70) }).await;
    redis.kill();
    let all: Vec<_> =
        (0..300).map(|n| order(&format!("o-{n}"), "s", &format!("u-{}", n % 100), 1)).collect();
    stage.post_orders(&all).await;
    stage.post_orders(&[order("x", "never-opened", "u", 1)]).await;
    let worker = stage.worker().await;
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(totals.created, 70);
    // In queue order: the first seventy users have theirs.
    for (n, order) in all.iter().enumerate().take(70) {
        let outcome = check::outcome(&stage, "s", order.id.as_str()).await;
        assert_eq!(outcome, Some(floodgate::domain::decision::Outcome::Created), "order {n}");
    }
    assert_eq!(stage.dead_letters(1).await[0].0, "unknown_sale");
    worker.stop().await;
    redis.restart(true);
    stage.remove().await;
}

#[tokio::test]
async fn redis_killed_and_restarted_with_or_without_its_data_changes_nothing() {
    for with_data in [true, false] {
        let mut redis = PrivateRedis::start();
        let mut stage = stage_with(&redis, "restart", Ledger).await;
        with_fault(
            &mut stage,
            2500,
            async || {
                redis.kill();
                redis.restart(with_data);
            },
            async || (),
        )
        .await;
        stage.remove().await;
    }
}

#[tokio::test]
async fn redis_that_forgets_or_refuses_changes_nothing() {
    for commands in [
        &["FLUSHALL"][..],
        &["SCRIPT", "FLUSH"],
        &["CONFIG", "SET", "maxmemory", "1"],
        &["REPLICAOF", "127.0.0.1", "1"],
    ] {
        let redis = PrivateRedis::start();
        let mut stage = stage_with(&redis, "forgets", Ledger).await;
        with_fault(
            &mut stage,
            2500,
            async || {
                redis.command(commands);
            },
            async || {
                redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
                redis.command(&["REPLICAOF", "NO", "ONE"]);
            },
        )
        .await;
        stage.remove().await;
    }
}

#[tokio::test]
async fn redis_whose_replies_are_lost_changes_nothing() {
    let redis = PrivateRedis::start();
    let (proxy, url) = through_proxy(&redis.url()).await;
    let mut stage = Stage::with("replies", |settings| settings.redis_url = url.into()).await;
    with_fault(
        &mut stage,
        2500,
        async || proxy.set(Faults::without_answers()),
        async || {
            proxy.heal();
            proxy.cut();
        },
    )
    .await;
    stage.remove().await;
}

#[tokio::test]
async fn a_database_whose_replies_are_lost_or_whose_links_break_changes_nothing() {
    let servers = crate::harness::settings();
    let (proxy, through) = through_proxy(servers.database_url.expose_secret()).await;
    let mut stage = Stage::with("database", |settings| {
        settings.database_url = through.into();
        settings.ledger.timeout = Duration::from_secs(1);
    })
    .await;
    with_fault(
        &mut stage,
        2500,
        async || {
            proxy.cut();
            proxy.set(Faults::without_answers());
        },
        async || {
            proxy.heal();
            proxy.cut();
        },
    )
    .await;
    stage.remove().await;
}

#[tokio::test]
async fn a_broker_whose_links_break_loses_nothing() {
    let servers = crate::harness::settings();
    let (proxy, through) = through_proxy(servers.amqp_url.expose_secret()).await;
    let mut stage = Stage::new("links").await;
    stage.open(sale("s", 2500)).await;
    let all = orders("s", 10_000);
    stage.post_orders(&all).await;
    let variables = [
        ("FLOODGATE_AMQP_URL", through.as_str()),
        ("FLOODGATE_BROKER__CONFIRM_TIMEOUT_MS", "1000"),
    ];
    let worker = WorkerProcess::with(&stage, &variables);
    // A worker that can't reach its servers when it starts ends; this one has started.
    stage.event().await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.cut();
    }
    proxy.set(Faults::without_answers());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    proxy.heal();
    proxy.cut();
    let totals = check::settled_but(&mut stage, &all, 1).await;
    assert_eq!(totals, Totals { created: 2500, sold_out: 7500, rejected: 0 });
    check::empty(&stage).await;
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
    stage.remove().await;
}

#[tokio::test]
async fn a_worker_that_starts_while_the_broker_is_silent_goes_on_when_it_answers() {
    let servers = crate::harness::settings();
    let (proxy, through) = through_proxy(servers.amqp_url.expose_secret()).await;
    let mut stage = Stage::with("silent", |settings| {
        settings.amqp_url = through.into();
        settings.broker.confirm_timeout = Duration::from_secs(2);
    })
    .await;
    stage.open(sale("s", 100)).await;
    let adapters = stage.deployment.app.adapters().await.expect("adapters");
    proxy.set(Faults::stall());
    let worker = Running::start(stage.deployment.app.worker(&adapters));
    tokio::time::sleep(Duration::from_secs(5)).await;
    proxy.heal();
    proxy.cut();
    let all = orders("s", 300);
    until(async || stage.broker.depth(Queue::Intents).await.is_ok()).await;
    stage.post_orders(&all).await;
    let totals = check::settled_but(&mut stage, &all, 1).await;
    assert_eq!(totals, Totals { created: 100, sold_out: 200, rejected: 0 });
    check::empty(&stage).await;
    worker.stop().await;
    stage.remove().await;
}
