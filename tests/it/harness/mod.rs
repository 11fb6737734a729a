//! What tests share: a place apart on the servers, workers in and out of process, and checks of
//! the invariants.

pub mod api;
pub mod browser;
pub mod check;
mod cleanup;
pub mod collector;
pub mod deployment;
pub mod embedded;
pub mod issuer;
pub mod private;
pub mod process;
pub mod prometheus;
mod servers;
pub mod users;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use chrono::{DateTime, Utc};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::app::{Records, Retention};
use floodgate::broker::topology::Topology;
use floodgate::broker::{Broker, Deliveries, Message, Queue};
use floodgate::config::Settings;
use floodgate::domain::order::{
    Candidate, Eligibility, Order, OrderId, OrderKey, Quantity, SaleId, UserId,
};
use floodgate::domain::sale::Sale;
use floodgate::inventory::Inventory;
use floodgate::ledger::Ledger;
use floodgate::operator_log::OperatorLog;
use floodgate::worker::Worker;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use cleanup::Cleanup;
pub use servers::{
    address, channel, database, delete_queue, forget, redis, redis_keys, tap, through_proxy,
};

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The settings of the servers to test with, or a failure that says how to get them.
pub fn settings() -> Settings {
    static LOGS: Once = Once::new();
    LOGS.call_once(|| {
        let filter =
            std::env::var("RUST_LOG").unwrap_or_else(|_| "floodgate=warn,lapin=off".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
    let settings = Settings::load(None).expect("settings");
    let all = [
        floodgate::config::Server::Amqp,
        floodgate::config::Server::Redis,
        floodgate::config::Server::Database,
    ];
    if let Err(error) = settings.require(&all) {
        panic!(
            "these tests need servers. Run scripts/test, or: scripts/services up && eval \"$(scripts/services env)\"\n{error}"
        );
    }
    settings
}

/// A name that no other test has.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A deployment of its own on the servers.
pub struct Stage {
    pub deployment: TempDeployment,
    pub broker: Arc<dyn Broker>,
    pub inventory: Arc<dyn Inventory>,
    pub ledger: Arc<dyn Ledger>,
    pub operator_log: Arc<dyn OperatorLog>,
    pub records: Records,
    pub retention: Retention,
    pub events: Deliveries,
    _cleanup: Cleanup,
}

impl Stage {
    pub async fn new(what: &str) -> Self {
        Self::with(what, |_| ()).await
    }

    /// A stage with changed settings.
    pub async fn with(what: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        cleanup::sweep(&settings).await;
        change(&mut settings);
        Box::pin(Self::create(settings, unique(what))).await
    }

    async fn create(settings: Settings, name: String) -> Self {
        let cleanup = Cleanup { settings: Box::new(settings.clone()), name };
        let deployment = TempDeployment::create(&settings, &cleanup.name).await.expect("servers");
        let broker = deployment.app.broker().await.expect("broker");
        let inventory = deployment.app.inventory().expect("inventory").expect("Redis");
        let records = deployment.app.records().await.expect("ledger");
        let Records { ledger, operator_log, .. } = records.clone();
        let retention = deployment.app.retention().await.expect("ledger");
        let events = deployment.events(5000).await.expect("events");
        Self {
            deployment,
            broker,
            inventory,
            ledger,
            operator_log,
            records,
            retention,
            events,
            _cleanup: cleanup,
        }
    }

    pub async fn open(&self, sale: Sale) {
        self.ledger.open(&[sale]).await.expect("open a sale");
    }

    /// Publishes one message for each body.
    pub async fn post<B: AsRef<[u8]>>(&self, bodies: &[B]) {
        post(self.broker.as_ref(), bodies).await;
    }

    pub async fn post_orders(&self, orders: &[Order]) {
        let bodies: Vec<Vec<u8>> = orders.iter().map(body).collect();
        self.post(&bodies).await;
    }

    /// Starts a worker in this process.
    pub async fn worker(&self) -> Running {
        let adapters = self.deployment.app.adapters().await.expect("adapters");
        Running::start(self.deployment.app.worker(&adapters))
    }

    /// The next event's data; fails when none comes.
    pub async fn event(&mut self) -> serde_json::Value {
        let next = tokio::time::timeout(PATIENCE, self.events.next()).await;
        let delivery = next.expect("an event in time").expect("an event");
        let value = serde_json::from_slice(&delivery.body).expect("JSON");
        delivery.ack();
        value
    }

    /// Dead letters, as many as are asked for: reason and body.
    pub async fn dead_letters(&self, count: usize) -> Vec<(String, Vec<u8>)> {
        let mut letters = self.broker.consume(Queue::DeadLetters, 1000).await.expect("consume");
        let mut found = Vec::new();
        while found.len() < count {
            let next = tokio::time::timeout(PATIENCE, letters.next()).await;
            let letter = next.expect("a dead letter in time").expect("a dead letter");
            let reason = letter.properties.dead.clone().expect("a reason").reason;
            found.push((reason, letter.body.clone()));
            letter.ack();
        }
        letters.stop();
        letters.finished().await;
        found
    }

    /// Removes everything; called at the end of a test that passed.
    pub async fn remove(self) {
        self.events.stop();
        drop(self.events);
        self.deployment.remove().await.expect("clean up");
    }
}

/// Publishes one message for each body.
pub async fn post<B: AsRef<[u8]>>(broker: &dyn Broker, bodies: &[B]) {
    for chunk in bodies.chunks(500) {
        let messages: Vec<Message<'_>> =
            chunk.iter().map(|body| Message::intent("any", body.as_ref())).collect();
        broker.publish(&messages).await.all().expect("publish");
    }
}

/// A worker in this process.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), floodgate::worker::WorkerError>>,
}

impl Running {
    pub fn start(worker: Worker) -> Self {
        Self::of(|stop| worker.run(stop))
    }

    /// One that runs until the token is cancelled.
    pub fn of<F>(run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), floodgate::worker::WorkerError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(stop.clone()));
        Self { stop, task }
    }

    /// Ends it on the spot.
    pub async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }

    /// Drains it.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("drained");
    }
}

pub fn sale_id(text: &str) -> SaleId {
    SaleId::parse(text).expect("sale id")
}

/// The order `id` of sale `sale`.
pub fn order_key(sale: &str, id: &str) -> OrderKey {
    OrderKey { sale_id: sale_id(sale), order_id: OrderId::parse(id).expect("order id") }
}

/// A sale without limit and window.
pub fn sale(id: &str, stock: u32) -> Sale {
    Sale {
        id: sale_id(id),
        stock,
        per_user_limit: None,
        opens_at: None,
        closes_at: None,
        verification: false,
    }
}

pub fn order(id: &str, sale: &str, user: &str, quantity: i64) -> Order {
    Order {
        id: OrderId::parse(id).expect("order id"),
        sale_id: sale_id(sale),
        user_id: UserId::parse(user).expect("user id"),
        quantity: Quantity::new(quantity).expect("quantity"),
    }
}

/// `count` orders of one unit each, from as many users.
pub fn orders(sale: &str, count: usize) -> Vec<Order> {
    (0..count).map(|n| order(&format!("o-{n}"), sale, &format!("u-{n}"), 1)).collect()
}

pub fn body(order: &Order) -> Vec<u8> {
    serde_json::to_vec(order).expect("JSON")
}

pub fn time(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect("time").to_utc()
}

pub fn candidate(order: Order) -> Candidate {
    Candidate { order, submitted_at: None, eligibility: Eligibility::Unchecked }
}

/// Waits until something is true.
pub async fn until(is_true: impl AsyncFn() -> bool) {
    until_within(PATIENCE, is_true).await;
}

/// The same, where servers are started meanwhile.
pub async fn until_within(limit: Duration, is_true: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + limit;
    while !is_true().await {
        assert!(tokio::time::Instant::now() < deadline, "it does not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Posts an order as a request, and waits for its reply.
pub async fn ask(stage: &Stage, order: &Order) -> serde_json::Value {
    use futures_util::StreamExt;
    use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
    use lapin::types::FieldTable;

    let channel = channel(stage).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue =
        channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("declare");
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = channel
        .basic_consume(queue.name().clone(), "".into(), no_ack, FieldTable::default())
        .await
        .expect("consume");
    let properties = lapin::BasicProperties::default()
        .with_reply_to(queue.name().clone())
        .with_correlation_id("question-1".into());
    let exchange = Topology::new(&stage.deployment.app.settings().namespace).intents_exchange();
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(exchange.into(), "s".into(), options, &body(order), properties)
        .await
        .expect("publish");
    let reply = tokio::time::timeout(PATIENCE, replies.next()).await;
    let reply = reply.expect("a reply in time").expect("a reply").expect("a reply");
    let correlation_id = reply.properties.correlation_id().clone().expect("a correlation id");
    assert_eq!(correlation_id.to_string(), "question-1");
    serde_json::from_slice(&reply.data).expect("JSON")
}
