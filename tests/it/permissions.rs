//! Worker and API with no more permissions than `docs/permissions.md` gives them, by its own statements.

use std::path::Path;
use std::process::Command;

use floodgate::app::App;
use floodgate::ledger::PostgresLedger;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;

use crate::harness::api::{Served, answer, on_free_port};
use crate::harness::{Stage, redis};

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
    let settings = stage.scratch.app.settings();
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
    nothing_else_is_allowed(&database("worker"), &redis_url).await;

    let broker = floodgate::broker::RabbitBroker::new(app.settings()).expect("a broker");
    broker.remove(&[]).await.expect("queues removed");
    shell(&format!("rabbitmqctl delete_user {name}"));
    let mut forget = redis::cmd("ACL");
    forget.arg("DELUSER").arg(&name);
    forget.query_async::<()>(&mut superuser_of_redis).await.expect("DELUSER");
    let drop = format!(
        "drop database {name} with (force); drop role {name}_owner; drop role {name}_worker"
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
    served.stop().await;
    let broker = app.broker().await.expect("a broker");
    assert_eq!(broker.depth(floodgate::broker::Queue::Intents).await.expect("depth").messages, 0);
    for finding in Box::pin(app.check()).await {
        assert!(finding.found.is_ok(), "{}: {:?}", finding.what, finding.found);
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
