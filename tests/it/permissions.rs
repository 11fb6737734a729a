//! Worker and API with no more permissions than `docs/permissions.md` gives them, by its own statements.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use floodgate::app::App;
use floodgate::broker::{Broker, Queue, RabbitBroker};
use floodgate::ledger::PostgresLedger;
use floodgate::metrics::Metrics;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;

use crate::harness::api::{Served, answer, on_free_port};
use crate::harness::process::bare_floodgate;
use crate::harness::{Stage, post, redis, until};

const PAGE: &str = include_str!("../../docs/permissions.md");

/// The blocks of code on the page, in their order: PostgreSQL's two, Redis's and RabbitMQ's, for `name` in place of
/// `floodgate`.
fn statements(name: &str) -> [String; 4] {
    let blocks = PAGE.split("```").skip(1).step_by(2);
    let blocks = blocks.map(|block| block.split_once('\n').expect("a line").1);
    let blocks: Vec<String> = blocks.map(|block| block.replace("floodgate", name)).collect();
    blocks.try_into().expect("four blocks")
}

/// `url` with another user and, if there is one, another database.
fn as_user(url: &SecretString, user: &str, password: &str, database: Option<&str>) -> SecretString {
    let mut url: Url = url.expose_secret().parse().expect("a URL");
    url.set_username(user).expect("a user");
    url.set_password(Some(password)).expect("a password");
    if let Some(database) = database {
        url.set_path(database);
    }
    url.to_string().into()
}

async fn sql(url: &SecretString, statements: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url.expose_secret()).await?;
    for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
    }
    Ok(())
}

/// Runs the lines as a shell would, where `rabbitmqctl` is that of the test servers.
fn shell(lines: &str) {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let lines = lines.replace("rabbitmqctl", &format!("{} rabbitmqctl", services.display()));
    let done = Command::new("bash").args(["-euc", &lines]).output().expect("bash runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn worker_and_api_run_with_what_the_page_gives_them() {
    let stage = Stage::with("permissions", on_free_port).await;
    let settings = stage.deployment.app.settings();
    let (name, superuser) = (settings.namespace.replace('-', "_"), settings.database_url.clone());
    let [roles, grants, acl, users] = statements(&name);
    sql(&superuser, &roles).await.expect("roles");
    let database = |role: &str| {
        let password = format!("change-me-{role}");
        as_user(&superuser, &format!("{name}_{role}"), &password, Some(&name))
    };
    PostgresLedger::migrate(&database("owner")).await.expect("migrate");
    sql(&database("owner"), &grants).await.expect("grants");
    let mut superuser_of_redis = redis(&stage).await;
    let mut command = redis::Cmd::new();
    for word in acl.split_whitespace() {
        command.arg(word);
    }
    command.query_async::<()>(&mut superuser_of_redis).await.expect("ACL");
    shell(&users);

    let mut settings = settings.clone();
    settings.namespace.clone_from(&name);
    settings.database_url = database("worker");
    settings.redis_url = as_user(&settings.redis_url, &name, "change-me-redis", None);
    settings.amqp_url = as_user(&settings.amqp_url, &name, "change-me-rabbitmq", None);
    let (redis_url, app) = (settings.redis_url.clone(), App::new(settings));
    Box::pin(orders_are_decided(&app)).await;
    decisions_are_archived_and_a_user_erased(&app, &database("operator"));
    rabbitmq_refuses_the_rest(&app.settings().amqp_url, &name).await;
    nothing_else_is_allowed(&database("worker"), &redis_url).await;

    let settings = app.settings();
    let tls = settings.amqp_tls().expect("no certificates");
    let broker = RabbitBroker::new(
        &settings.amqp_url,
        tls,
        &name,
        &settings.broker,
        settings.bounds(),
        &Metrics::new(),
    );
    let broker = broker.expect("a broker");
    broker.remove(&[], 1).await.expect("queues removed");
    shell(&format!("rabbitmqctl delete_user {name}"));
    let mut forget = redis::cmd("ACL");
    forget.arg("DELUSER").arg(&name);
    forget.query_async::<()>(&mut superuser_of_redis).await.expect("DELUSER");
    let drop = format!(
        "drop database {name} with (force); drop role {name}_owner; drop role {name}_operator; \
         drop role {name}_worker"
    );
    sql(&superuser, &drop).await.expect("dropped");
    stage.remove().await;
}

/// Orders of every outcome, and what operators do.
async fn orders_are_decided(app: &App) {
    let served = Served::up(app).await;
    let post = async |path: &str, body: Value| answer(served.post(path, &body)).await;
    let sale = json!({ "sale_id": "s", "stock": 2, "per_user_limit": 1 });
    assert_eq!(post("/v1/sales", sale).await.0, 201);
    let order = async |id: &str, user: &str| {
        let body = json!({ "order_id": id, "user_id": user, "quantity": 1 });
        let request = served.post("/v1/sales/s/orders", &body).header("prefer", "wait=30");
        answer(request).await
    };
    for (id, user, outcome) in [
        ("o-1", "ada", "created"),
        ("o-1", "ada", "created"),
        ("o-2", "ada", "rejected"),
        ("o-3", "bob", "created"),
        ("o-4", "cleo", "sold_out"),
    ] {
        let (status, decision) = order(id, user).await;
        assert_eq!((status, &decision["outcome"]), (200, &outcome.into()), "{id}: {decision}");
    }
    let units = json!({ "adjustment_id": "a", "units": 1 });
    assert_eq!(post("/v1/sales/s/restock", units).await.0, 200);
    assert_eq!(order("o-5", "dan").await.1["outcome"], "created");
    assert_eq!(post("/v1/sales/s/close", Value::Null).await.0, 200);

    // An order that waits, because no service checks its user, and comes back.
    let checked = json!({ "sale_id": "t", "stock": 1, "verification": true });
    assert_eq!(post("/v1/sales", checked).await.0, 201);
    let body = json!({ "order_id": "o-6", "user_id": "ada", "quantity": 1 });
    assert_eq!(post("/v1/sales/t/orders", body).await.0, 202);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let off = json!({ "verification": false });
    assert_eq!(post("/v1/sales/t/verification", off).await.0, 200);
    let outcome = async || answer(served.get("/v1/sales/t/orders/o-6")).await.1["outcome"].clone();
    until(async || outcome().await == "created").await;

    let broker = app.broker().await.expect("a broker");
    dead_letters_are_redriven_and_purged(app, broker.as_ref()).await;
    served.stop().await;
    assert_eq!(broker.depth(Queue::Intents).await.expect("depth").messages, 0);
    for finding in Box::pin(app.check()).await {
        assert!(finding.found.is_ok(), "{}: {:?}", finding.what, finding.found);
    }
    run(app, &["audit"]);
}

/// What the third role is for.
fn decisions_are_archived_and_a_user_erased(app: &App, database: &SecretString) {
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().to_str().expect("UTF-8");
    for arguments in [
        &["user", "erase", "ada"][..],
        &["sale", "archive", "s", "--to", to],
        &["user", "erase", "bob"],
        &["sale", "restore", "s"],
    ] {
        run_as(app, database, arguments);
    }
}

/// Runs a command as worker and API are run.
fn run(app: &App, arguments: &[&str]) {
    run_as(app, &app.settings().database_url, arguments);
}

fn run_as(app: &App, database: &SecretString, arguments: &[&str]) {
    let settings = app.settings();
    let mut command = bare_floodgate(arguments);
    command.env("FLOODGATE_NAMESPACE", &settings.namespace).env("FLOODGATE_INTENT__MAX_AGE_S", "1");
    for (variable, url) in [
        ("FLOODGATE_AMQP_URL", &settings.amqp_url),
        ("FLOODGATE_REDIS_URL", &settings.redis_url),
        ("FLOODGATE_DATABASE_URL", database),
    ] {
        command.env(variable, url.expose_secret());
    }
    let done = command.output().expect("floodgate runs");
    let said = String::from_utf8_lossy(&[done.stderr, done.stdout].concat()).into_owned();
    assert!(done.status.success(), "{arguments:?}: {said}");
}

async fn dead_letters_are_redriven_and_purged(app: &App, broker: &dyn Broker) {
    post(broker, &["no JSON"]).await;
    let dead = async || broker.depth(Queue::DeadLetters).await.expect("depth").messages;
    until(async || dead().await == 1).await;
    for arguments in [&["dead-letters", "redrive"][..], &["dead-letters", "purge", "--all"]] {
        run(app, arguments);
        let expected = u32::from(arguments.contains(&"redrive"));
        until(async || dead().await == expected).await;
    }
}

/// RabbitMQ ends the channel of a client that asks for what it may not have.
async fn rabbitmq_refuses_the_rest(url: &SecretString, name: &str) {
    let connection =
        lapin::Connection::connect(url.expose_secret(), lapin::ConnectionProperties::default());
    let connection = connection.await.expect("connect");
    let (name, table) = (format!("other-{name}"), lapin::types::FieldTable::default());
    let channel = connection.create_channel().await.expect("a channel");
    let queue =
        channel.queue_declare(name.as_str().into(), QueueDeclareOptions::default(), table.clone());
    let queue = queue.await.map(drop);
    let channel = connection.create_channel().await.expect("a channel");
    let kind = lapin::ExchangeKind::Fanout;
    let exchange = channel.exchange_declare(
        name.as_str().into(),
        kind,
        ExchangeDeclareOptions::default(),
        table,
    );
    for denied in [queue, exchange.await] {
        let denied = denied.expect_err("refused").to_string();
        assert!(denied.contains("access to"), "{denied}");
    }
}

async fn nothing_else_is_allowed(database: &SecretString, redis_url: &SecretString) {
    for statement in [
        "drop table decisions",
        "delete from decisions",
        "update decisions set quantity = 1",
        "truncate sales",
        "delete from operator_log",
        "create table mine (x int)",
    ] {
        let denied = sql(database, statement).await.expect_err(statement).to_string();
        assert!(
            denied.contains("permission denied") || denied.contains("must be owner"),
            "{denied}"
        );
    }
    let client = redis::Client::open(redis_url.expose_secret()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis");
    for words in [
        &["FLUSHALL"][..],
        &["CONFIG", "GET", "*"],
        &["HMGET", "other:{s}:sale", "stock"],
        &["KEYS", "*"],
    ] {
        let mut command = redis::Cmd::new();
        command.arg(words);
        let denied = command.query_async::<redis::Value>(&mut connection).await;
        let denied = denied.expect_err(words[0]).to_string();
        assert!(denied.to_lowercase().contains("perm"), "{denied}");
    }
}
