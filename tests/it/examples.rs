//! The examples in `examples/`: producers whose orders are all decided, and subscribers that are killed in the middle and
//! process each decision once.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use floodgate::broker::topology::Topology;
use floodgate::domain::order::Order;
use floodgate_fault_proxy::Faults;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use secrecy::ExposeSecret;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::harness::check::{self, Totals};
use crate::harness::{
    PATIENCE, Stage, body, channel, database, orders, root, sale, through_proxy, unique, until,
};

const ORDERS: usize = 2000;
const STOCK: u32 = 1500;

/// Where `scripts/examples` puts what the examples need.
fn clients() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_floodgate"));
    built.ancestors().nth(2).expect("the folder of what is built").join("clients")
}

/// The program that runs an example of `language`, without its arguments.
pub fn example(language: &str, name: &str) -> Command {
    let file = |folder: &str, extension: &str| {
        root().join(format!("examples/{folder}/{name}.{extension}"))
    };
    let needed = |path: PathBuf| {
        assert!(path.exists(), "{} is missing: run scripts/examples first", path.display());
        path
    };
    match language {
        "python" => {
            let mut command = Command::new(needed(clients().join("python/bin/python")));
            command.arg(file("python", "py"));
            command
        }
        "node" => {
            // Modules are looked for where the program is.
            let program =
                needed(clients().join("node/node_modules")).with_file_name(format!("{name}.js"));
            std::fs::copy(file("node", "js"), &program).expect("copy");
            let mut command = Command::new("node");
            command.arg(program);
            command
        }
        "java" => {
            let jars = ["amqp-client", "postgresql", "slf4j-api"].map(|jar| {
                needed(format!("/usr/share/java/{jar}.jar").into()).display().to_string()
            });
            let class = name[..1].to_uppercase() + &name[1..];
            let mut command = Command::new("java");
            command.args(["-cp", &jars.join(":")]);
            command.arg(root().join(format!("examples/java/{class}.java")));
            command
        }
        _ => Command::new(
            Path::new(env!("CARGO_BIN_EXE_floodgate")).with_file_name(format!("examples/{name}")),
        ),
    }
}

/// Tells the example where servers are.
fn on(stage: &Stage, mut command: Command, exchange: &str, queue: &str) -> Command {
    let settings = stage.deployment.app.settings();
    let database_url = settings.database_url.expose_secret();
    command
        .env("AMQP_URL", settings.amqp_url.expose_secret())
        .env("DATABASE_URL", database_url)
        .env("JDBC_URL", jdbc(database_url))
        .env("EXCHANGE", exchange)
        .env("QUEUE", queue);
    command
}

/// The URL as JDBC has it: user and password are parameters.
fn jdbc(url: &str) -> String {
    let url = url::Url::parse(url).expect("a URL");
    let (host, port) = (url.host_str().expect("a host"), url.port().unwrap_or(5432));
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    format!("jdbc:postgresql://{host}:{port}{}?user={user}&password={password}", url.path())
}

fn names(stage: &Stage) -> Topology {
    Topology::new(&stage.deployment.app.settings().namespace)
}

/// A process that is killed with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended can't be killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn count(stage: &Stage, what: &str) -> i64 {
    let query = format!("select {what} from shipments");
    let mut database = database(stage).await;
    // The subscriber makes the table.
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut database).await.unwrap_or(0)
}

async fn each_order_is_shipped_once(language: &str) {
    let mut stage = Stage::new(language).await;
    stage.open(sale("s", STOCK)).await;
    let (exchange, queue) = (names(&stage).events_exchange(), unique("shipping"));
    let start = || {
        let mut command = on(&stage, example(language, "subscriber"), &exchange, &queue);
        Running(command.spawn().expect("the example"))
    };
    let subscriber = start();
    let amqp = channel(&stage).await;
    until(async || {
        // It is there once the subscriber has bound it.
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = channel(&stage).await;
        channel.queue_declare(queue.clone().into(), passive, FieldTable::default()).await.is_ok()
            && count(&stage, "1 + count(*)").await == 1
    })
    .await;
    let all = orders("s", ORDERS);
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    until(async || count(&stage, "count(*)").await > 100).await;
    drop(subscriber);
    let before = count(&stage, "count(*)").await;
    assert!(before < i64::from(STOCK), "it was killed too late");
    let subscriber = start();
    let totals = check::settled(&mut stage, &all).await;
    assert_eq!(
        totals,
        Totals { created: STOCK as usize, sold_out: ORDERS - STOCK as usize, rejected: 0 }
    );
    until(async || count(&stage, "count(distinct order_id)").await == i64::from(STOCK)).await;
    // All that came twice was acknowledged, and nothing was shipped twice.
    until(async || {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = amqp.queue_declare(queue.clone().into(), passive, FieldTable::default()).await;
        queue.expect("the queue").message_count() == 0
    })
    .await;
    assert_eq!(count(&stage, "count(*)").await, i64::from(STOCK), "{before} before it was killed");
    drop(subscriber);
    amqp.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("delete");
    worker.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn a_subscriber_in_python_ships_each_order_once_although_it_is_killed() {
    each_order_is_shipped_once("python").await;
}

#[tokio::test]
async fn a_subscriber_in_node_ships_each_order_once_although_it_is_killed() {
    each_order_is_shipped_once("node").await;
}

#[tokio::test]
async fn a_subscriber_in_java_ships_each_order_once_although_it_is_killed() {
    each_order_is_shipped_once("java").await;
}

#[tokio::test]
async fn a_subscriber_in_rust_ships_each_order_once_although_it_is_killed() {
    each_order_is_shipped_once("rust").await;
}

/// Has an example post orders. Its first connection breaks in the middle.
async fn produce(stage: &Stage, language: &str, orders: &[Order]) {
    let direct = stage.deployment.app.settings().amqp_url.expose_secret();
    let (proxy, through) = through_proxy(direct).await;
    proxy.set(Faults { reset_after: Some(50_000), ..Faults::default() });
    let mut command =
        on(stage, example(language, "producer"), &names(stage).intents_exchange(), "");
    if language == "java" {
        command.arg("s");
    }
    command.env("AMQP_URL", through);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut producer = tokio::process::Command::from(command).spawn().expect("the example");
    let mut input = producer.stdin.take().expect("a pipe");
    for order in orders {
        input.write_all(&[&body(order)[..], b"\n"].concat()).await.expect("write");
    }
    drop(input);
    let mut complaints = BufReader::new(producer.stderr.take().expect("a pipe")).lines();
    let broken = async {
        while let Some(line) = complaints.next_line().await.expect("a line") {
            if line.contains("trying again") {
                return;
            }
        }
        panic!("{language}: its connection did not break");
    };
    tokio::time::timeout(PATIENCE, broken).await.expect("in time");
    proxy.heal();
    while let Some(line) = complaints.next_line().await.expect("a line") {
        println!("{language}: {line}");
    }
    assert!(producer.wait().await.expect("wait").success(), "{language}");
}

#[tokio::test]
async fn every_order_of_a_producer_is_decided_although_its_connection_breaks() {
    for language in ["python", "node", "java"] {
        let mut stage = Stage::new(language).await;
        stage.open(sale("s", STOCK)).await;
        let all = orders("s", ORDERS);
        produce(&stage, language, &all).await;
        let worker = stage.worker().await;
        let totals = check::settled(&mut stage, &all).await;
        assert_eq!(totals.created, STOCK as usize, "{language}");
        worker.stop().await;
        stage.remove().await;
    }
}
