//! The event feed: nothing is missed by who polls, nor by who streams and comes back.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use floodgate::app::App;
use floodgate::broker::topology::Topology;
use floodgate::broker::{
    Bounds, Broker, EmbeddedBroker, FeedBounds, FeedError, Message, PublishedAs,
};
use floodgate::config::Settings;
use floodgate::domain::event::{Event, FeedStart};
use floodgate::domain::order::Order;
use floodgate::domain::sale::SoldOut;
use floodgate::metrics::Metrics;
use floodgate::sqlite::SqliteFile;
use lapin::options::QueueDeleteOptions;
use secrecy::ExposeSecret;
use serde_json::Value;

use crate::api::tokens::{SECRET, Signer, claims};
use crate::harness::api::{Served, answer, on_free_port, problem};
use crate::harness::process::WorkerProcess;
use crate::harness::{
    PATIENCE, Stage, address, body, channel, order, orders, post, sale, sale_id, through_proxy,
    time, until,
};

/// How many orders there are of the hot sale. FEED_ORDERS says another number.
fn count() -> usize {
    std::env::var("FEED_ORDERS").ok().and_then(|count| count.parse().ok()).unwrap_or(4000)
}

fn with_feed(settings: &mut Settings) {
    on_free_port(settings);
    settings.feed.enabled = true;
}

fn id(event: &Value) -> String {
    assert_eq!(event["specversion"], "1.0", "{event}");
    event["id"].as_str().expect("an id").to_owned()
}

/// Reads by one request after the other until `wanted` events are there. Each with how often it came.
async fn poll(served: &Served, wanted: usize) -> HashMap<String, usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut after = String::new();
    let begun = tokio::time::Instant::now();
    while seen.len() < wanted {
        assert!(begun.elapsed() < PATIENCE * 5, "{} of {wanted}", seen.len());
        let asked = served.get(&format!("/v1/events?limit=500{after}")).header("prefer", "wait=2");
        let (status, page) = answer(asked).await;
        assert_eq!(status, 200, "{page}");
        for event in page["events"].as_array().expect("events") {
            *seen.entry(id(event)).or_default() += 1;
        }
        if let Some(next) = page["next"].as_u64() {
            after = format!("&after={next}");
        }
    }
    seen
}

/// Listens until `wanted` events are there; breaks off again and again, and goes on where it was.
async fn follow(served: &Served, wanted: usize) -> HashMap<String, usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut last: Option<String> = None;
    while seen.len() < wanted {
        let mut asked = served.get("/v1/events").header("accept", "text/event-stream");
        if let Some(last) = &last {
            asked = asked.header("last-event-id", last);
        }
        let mut response = asked.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let (mut text, mut taken) = (String::new(), 0);
        while taken < 700 && seen.len() < wanted {
            let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await;
            let Some(chunk) = chunk.expect("in time").expect("a chunk") else { break };
            text.push_str(std::str::from_utf8(&chunk).expect("ASCII"));
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                for line in event.lines() {
                    if let Some(data) = line.strip_prefix("data: ") {
                        *seen.entry(id(&serde_json::from_str(data).expect("JSON"))).or_default() +=
                            1;
                        taken += 1;
                    }
                    if let Some(id) = line.strip_prefix("id: ") {
                        last = Some(id.to_owned());
                    }
                }
            }
        }
    }
    seen
}

async fn nobody_misses_anything(publish: PublishedAs) {
    let stage = Stage::with("feed", |settings| {
        with_feed(settings);
        settings.events.publish = publish;
    })
    .await;
    let count = count();
    let stock = u32::try_from(count / 2).expect("a stock");
    stage.open(sale("hot", stock)).await;
    stage.open(sale("cold", 5)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let mut workers: Vec<_> = (0..4).map(|_| WorkerProcess::start(&stage)).collect();
    let mut all: Vec<Order> = orders("hot", count);
    all.extend((0..10).map(|n| order(&format!("o-{n}"), "cold", "u", 1)));
    let expected: HashSet<String> = all
        .iter()
        .map(|order| format!("order:{}:{}", order.sale_id, order.id))
        .chain(["hot", "cold"].map(|sale| format!("sale:{sale}:sold_out:1")))
        .collect();
    let posting = async {
        for part in all.chunks(count / 4 + 10) {
            stage.post_orders(part).await;
            if let Some(worker) = workers.pop().filter(|_| workers.len() == 2) {
                worker.kill();
                workers.push(WorkerProcess::start(&stage));
            }
        }
    };
    let ((), polled, followed) =
        tokio::join!(posting, poll(&served, expected.len()), follow(&served, expected.len()));
    for seen in [&polled, &followed] {
        assert!(seen.keys().all(|id| expected.contains(id)));
        assert_eq!(seen.len(), expected.len());
    }
    let asked = served.get("/v1/events?sale=cold&limit=1000");
    let (_, page) = answer(asked).await;
    let of_cold: HashSet<String> =
        page["events"].as_array().expect("events").iter().map(id).collect();
    assert!(of_cold.iter().all(|id| id.contains(":cold:")), "{of_cold:?}");
    for worker in workers {
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
    }
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn nobody_misses_an_event_although_workers_are_killed_and_connections_break() {
    nobody_misses_anything(PublishedAs::Single).await;
}

#[tokio::test]
async fn nobody_misses_an_event_of_a_batch_either() {
    nobody_misses_anything(PublishedAs::Batch).await;
}

#[tokio::test]
async fn an_embedded_deployment_has_a_feed_in_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut settings = Settings::load(None).expect("settings");
    for url in [&mut settings.amqp_url, &mut settings.redis_url, &mut settings.database_url] {
        *url = String::new().into();
    }
    settings.embedded.file = folder.path().join("floodgate.db");
    with_feed(&mut settings);
    let app = App::new(settings);
    let served = Served::up(&app).await;
    app.ledger().await.expect("a ledger").open(&[sale("s", 300)]).await.expect("open");
    let bodies: Vec<Vec<u8>> = orders("s", 500).iter().map(body).collect();
    post(app.broker().await.expect("a broker").as_ref(), &bodies).await;
    let (polled, followed) = tokio::join!(poll(&served, 501), follow(&served, 501));
    assert_eq!(polled, followed);
    served.stop().await;
    app.close().await;
}

/// Any event, told apart by `version`.
fn event(version: u32) -> Event {
    let at = time("2026-11-27T08:00:00Z");
    Event::sold_out(&SoldOut { sale_id: sale_id("s"), version, stock: 1, at })
}

#[tokio::test]
async fn a_place_that_is_not_kept_any_more_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = SqliteFile::open(&folder.path().join("feed.db")).await.expect("a file");
    let broker = |max_age| {
        let feed = Some(FeedBounds { publish: PublishedAs::Single, max_age, max_bytes: 1 << 30 });
        let bounds =
            Bounds { delivery_limit: 5, max_body_bytes: 1 << 20, prefetch_bytes: 1 << 20, feed };
        EmbeddedBroker::new(file.clone(), "test", bounds, &Metrics::new())
    };
    let kept = broker(Duration::from_hours(800_000));
    let published = [event(1), event(2), event(3)];
    let messages: Vec<_> = published.iter().map(Message::Event).collect();
    kept.publish(&messages).await.all().expect("publish");
    // By when it was published, and not by what it is about.
    let since = FeedStart::Since(Utc::now() - TimeDelta::minutes(1));
    let mut reader = kept.feed(since).await.expect("a reader");
    assert_eq!(reader.next().await.expect("an event").offset, 1);
    assert!(matches!(kept.feed(FeedStart::After(4)).await, Err(FeedError::NotKept)), "beyond");
    let mut reader = kept.feed(FeedStart::After(1)).await.expect("a reader");
    let second = reader.next().await.expect("an event");
    assert_eq!((second.offset, &second.body), (2, &published[1].data));
    drop((reader, kept));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let short = broker(Duration::from_secs(1));
    until(async || {
        let mut reader = short.feed(FeedStart::Oldest).await.expect("a reader");
        tokio::time::timeout(Duration::from_millis(100), reader.next()).await.is_err()
    })
    .await;
    short.publish(&[Message::Event(&event(4))]).await.all().expect("publish");
    assert!(matches!(short.feed(FeedStart::After(1)).await, Err(FeedError::NotKept)));
    let mut reader = short.feed(FeedStart::After(3)).await.expect("a reader");
    assert_eq!(reader.next().await.expect("an event").body, event(4).data);
}

#[tokio::test]
async fn a_stream_that_has_removed_a_place_says_so() {
    let stage = Stage::with("feed-small", |settings| {
        with_feed(settings);
        settings.feed.max_bytes = 2 << 20;
    })
    .await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let (status, page) = answer(served.get("/v1/events?after=18446744073709551615")).await;
    assert_eq!((status, problem(&page)), (410, "not-kept"), "there never was such a place");
    until(async || {
        let events: Vec<Event> = (0..2000).map(|n| event(n + 1)).collect();
        let messages: Vec<_> = events.iter().map(Message::Event).collect();
        stage.broker.publish(&messages).await.all().expect("publish");
        let (status, body) = answer(served.get("/v1/events?after=0&limit=1")).await;
        status == 410 && problem(&body) == "not-kept"
    })
    .await;
    let stream = served.get("/v1/events").header("accept", "text/event-stream");
    let (status, body) = answer(stream.header("last-event-id", "0")).await;
    assert_eq!((status, problem(&body)), (410, "not-kept"), "before it begins");
    let (status, page) = answer(served.get("/v1/events?limit=1")).await;
    assert_eq!(status, 200, "{page}");
    assert!(page["next"].as_u64().expect("a place") > 1);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_place_of_a_stream_that_was_made_again_is_told() {
    let stage = Stage::with("feed-again", with_feed).await;
    let events: Vec<Event> = (0..10).map(|n| event(n + 1)).collect();
    let messages: Vec<_> = events.iter().map(Message::Event).collect();
    stage.broker.publish(&messages).await.all().expect("publish");
    let mut reader = stage.broker.feed(FeedStart::After(4)).await.expect("a reader");
    assert_eq!(reader.next().await.expect("an event").offset, 5);
    drop(reader);
    let name = Topology::new(&stage.deployment.app.settings().namespace).feed();
    let amqp = channel(&stage).await;
    amqp.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("deleted");
    let again = stage.deployment.app.broker().await.expect("a broker");
    let told = again.feed(FeedStart::After(4)).await;
    assert!(matches!(told, Err(FeedError::NotKept)), "there is nothing yet");
    again.publish(&messages[..2]).await.all().expect("publish");
    let told = again.feed(FeedStart::After(4)).await;
    assert!(matches!(told, Err(FeedError::NotKept)), "it is beyond the end");
    let mut reader = again.feed(FeedStart::After(0)).await.expect("a reader");
    assert_eq!(reader.next().await.expect("an event").offset, 1);
    stage.remove().await;
}

#[tokio::test]
async fn a_browser_that_comes_back_goes_on_and_does_not_notice_an_outage() {
    let stage = Stage::with("feed-browser", with_feed).await;
    let mut settings = stage.deployment.app.settings().clone();
    let direct = settings.amqp_url.expose_secret().to_owned();
    let (proxy, through) = through_proxy(&direct).await;
    settings.amqp_url = through.into();
    let served = Served::without_worker(&App::new(settings)).await;
    let events: Vec<Event> = (0..10).map(|n| event(n + 1)).collect();
    let messages: Vec<_> = events.iter().map(Message::Event).collect();
    stage.broker.publish(&messages[..8]).await.all().expect("publish");
    let asked = served.get("/v1/events?after=1").header("accept", "text/event-stream");
    let mut response = asked.header("last-event-id", "5").send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let mut text = String::new();
    let mut read_until = async |wanted: &str| {
        while !text.contains(wanted) {
            let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("in time");
            let chunk = chunk.expect("a chunk").expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).expect("ASCII"));
        }
        text.clone()
    };
    let begun = read_until("id: 7\n").await;
    assert!(begun.contains("id: 6\n") && !begun.contains("id: 5\n"), "{begun}");
    proxy.lead_to("127.0.0.1:1");
    proxy.cut();
    stage.broker.publish(&messages[8..]).await.all().expect("publish");
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.lead_to(address(&direct));
    read_until("id: 9\n").await;
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn the_feed_is_for_those_who_may_know_who_buys() {
    let stage = Stage::with("feed-token", |settings| {
        with_feed(settings);
        settings.api.jwt_secret = SECRET.into();
    })
    .await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let at = |path: &str, scope: &str| {
        let token = Signer::Hs256(SECRET).sign(&claims("ada", scope));
        served.get(path).bearer_auth(token)
    };
    let with = |scope: &str| at("/v1/events", scope);
    assert_eq!(answer(served.get("/v1/events")).await.0, 401);
    assert_eq!(answer(with("floodgate:submit")).await.0, 403);
    assert_eq!(answer(with("floodgate:events")).await.0, 200);
    assert_eq!(answer(with("floodgate:admin")).await.0, 200);
    assert_eq!(answer(at("/v1/events?after=x", "floodgate:events")).await.0, 422);
    served.stop().await;
    stage.remove().await;

    let stage = Stage::with("no-feed", on_free_port).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let (status, body) = answer(served.get("/v1/events")).await;
    assert_eq!((status, problem(&body)), (404, "no-feed"));
    served.stop().await;
    stage.remove().await;
}
