//! Databases that the ledger refuses to run on, and what it says then.

use floodgate::config::Settings;
use floodgate::ledger::{LedgerError, PostgresLedger};
use floodgate::metrics::Metrics;
use secrecy::{ExposeSecret, SecretString};

use crate::harness::process::{self, PrivatePostgres};
use crate::harness::{Stage, database, settings, unique};

/// What is wrong with the database at `url`.
async fn complaint(url: &SecretString) -> String {
    let ledger = PostgresLedger::new(url, &settings().ledger, &Metrics::new()).expect("a ledger");
    match ledger.check().await {
        Err(LedgerError::Permanent(error)) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_database_that_confirms_before_it_has_stored_is_refused() {
    // Without a pooler, whose sessions keep the settings they began with.
    let server = PrivatePostgres::start(&[]);
    let use_it = |settings: &mut Settings| settings.database_url = server.url().into();
    let stage = Stage::with("synchronous", use_it).await;
    let url = &stage.deployment.app.settings().database_url;
    let name = &stage.deployment.app.settings().namespace;
    for whose in
        [format!("database \"{name}\""), format!("role current_user in database \"{name}\"")]
    {
        let mut connection = database(&stage).await;
        let set = format!("alter {whose} set synchronous_commit = off");
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&mut connection).await.expect("set");
        let complaint = complaint(url).await;
        for part in ["synchronous_commit is off", "lose decisions", "turn it on"] {
            assert!(complaint.contains(part), "{complaint}");
        }
        let worker = process::run(&stage, &["worker"]);
        let said = String::from_utf8_lossy(&worker.stderr).into_owned();
        assert_eq!(worker.status.code(), Some(1), "{said}");
        assert!(said.contains("synchronous_commit is off"), "{said}");
        let reset = format!("alter {whose} reset synchronous_commit");
        sqlx::raw_sql(sqlx::AssertSqlSafe(reset)).execute(&mut connection).await.expect("reset");
    }
    let ledger = PostgresLedger::new(url, &settings().ledger, &Metrics::new()).expect("a ledger");
    ledger.check().await.expect("as it was");
    stage.remove().await;
}

#[tokio::test]
async fn a_server_that_does_not_write_to_its_disk_is_refused() {
    let server = PrivatePostgres::start(&["-c", "fsync=off"]);
    let url = SecretString::from(server.url());
    assert!(complaint(&url).await.contains("floodgate migrate"), "no ledger yet");
    PostgresLedger::migrate(&url).await.expect("migrate");
    let complaint = complaint(&url).await;
    assert!(complaint.contains("fsync is off") && complaint.contains("turn it on"), "{complaint}");
}

#[tokio::test]
async fn a_ledger_with_an_older_schema_is_refused() {
    let stage = Stage::new("older").await;
    let mut connection = database(&stage).await;
    let older = "drop table webhooks, webhook_deliveries; update ledger_schema set version = 6;
         delete from _sqlx_migrations where version = 7";
    sqlx::raw_sql(older).execute(&mut connection).await.expect("as it was before");
    let url = &stage.deployment.app.settings().database_url;
    assert!(complaint(url).await.contains("run: floodgate migrate"));
    stage.deployment.app.migrate().await.expect("migrate");
    let ledger = PostgresLedger::new(url, &settings().ledger, &Metrics::new()).expect("a ledger");
    ledger.check().await.expect("it is up to date");
    stage.remove().await;
}

#[tokio::test]
async fn a_ledger_with_a_newer_schema_is_refused_unless_it_may_be_shared() {
    let stage = Stage::new("newer").await;
    let mut connection = database(&stage).await;
    let url = &stage.deployment.app.settings().database_url;
    let newer = "update ledger_schema set version = 99, usable_from = 99";
    sqlx::raw_sql(newer).execute(&mut connection).await.expect("changed");
    assert!(complaint(url).await.contains("a newer version, which this one can't work on"));
    let shared = "update ledger_schema set usable_from = 2";
    sqlx::raw_sql(shared).execute(&mut connection).await.expect("changed");
    let ledger = PostgresLedger::new(url, &settings().ledger, &Metrics::new()).expect("a ledger");
    ledger.check().await.expect("it may be shared");
    stage.remove().await;
}

/// As much as floodgate 0.1 left in a database as is looked at.
const LEDGER_OF_0_1: &str = "
    create table decisions (order_id text primary key, sale_id text not null, user_id text not null);
    create table _sqlx_migrations (version bigint primary key, description text not null,
        installed_on timestamptz not null default now(), success boolean not null,
        checksum bytea not null, execution_time bigint not null);
    insert into _sqlx_migrations values (1, 'ledger', now(), true, '\\x00', 0);";

#[tokio::test]
async fn a_database_of_version_0_1_is_refused_and_left_as_it_is() {
    let (settings, name) = (settings(), unique("version-0-1"));
    PostgresLedger::create_database(&settings.database_url, &name).await.expect("create");
    let url = PostgresLedger::url_of(&settings.database_url, &name).expect("a URL");
    let connect = || <sqlx::PgConnection as sqlx::Connection>::connect(url.expose_secret());
    sqlx::raw_sql(LEDGER_OF_0_1)
        .execute(&mut connect().await.expect("connect"))
        .await
        .expect("as 0.1 left it");
    let migrated = PostgresLedger::migrate(&url).await;
    let Err(LedgerError::Permanent(refused)) = migrated else { panic!("migrated: {migrated:?}") };
    for complaint in [complaint(&url).await, refused.to_string()] {
        for part in ["floodgate 0.1", "drain 0.1", "another database", "CHANGELOG.md"] {
            assert!(complaint.contains(part), "{complaint}");
        }
    }
    let columns: i64 = sqlx::query_scalar(
        "select count(*) from information_schema.columns where table_name = 'decisions'",
    )
    .fetch_one(&mut connect().await.expect("connect"))
    .await
    .expect("columns");
    assert_eq!(columns, 3);
    PostgresLedger::drop_database(&url).await.expect("drop");
}
