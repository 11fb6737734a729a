//! Faults between an act and its entry.

use std::time::Duration;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use floodgate::domain::order::{AdjustmentId, Quantity};
use floodgate::operator_log::{Entry, Journal, Operator, OperatorLog, OperatorLogError, Wanted};
use floodgate::sales::operations::Operations;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{ALL, entries, json_of, said, told};
use crate::harness::api::{Served, answer, on_free_port, problem};
use crate::harness::embedded::Embedded;
use crate::harness::process::floodgate;
use crate::harness::{Stage, database, sale, sale_id, until};

/// Has the database take no more entries.
async fn refuse_entries(stage: &Stage) {
    let refuse = "alter table operator_log add constraint refused check (false) not valid";
    let mut connection = database(stage).await;
    sqlx::raw_sql(refuse).execute(&mut connection).await.expect("a constraint");
}

async fn stock(stage: &Stage, id: &str) -> u32 {
    stage.ledger.sales(Some(&[sale_id(id)])).await.expect("sales").remove(0).sale.stock
}

#[tokio::test]
async fn an_act_that_cannot_be_recorded_stands_and_the_log_has_it_whole() {
    let stage = Stage::with("unrecorded", on_free_port).await;
    stage.open(sale("s", 1)).await;
    refuse_entries(&stage).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let restock = json!({ "adjustment_id": "r-1", "units": 2 });
    let (status, shown) = answer(served.post("/v1/sales/s/restock", &restock)).await;
    assert_eq!((status, &shown["stock"]), (200, &3.into()), "{shown}");
    let restock = ["sale", "restock", "s", "--units", "4", "--adjustment-id", "r-2", "--json"];
    let mut command = floodgate(&stage, &restock);
    let output = command.env("FLOODGATE_LOG__FORMAT", "json").output().expect("floodgate runs");
    assert_eq!(json_of(&output)["stock"], 7);
    assert_eq!(stock(&stage, "s").await, 7);
    let said = said(&output);
    let errors: Vec<Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["level"] == "ERROR")
        .collect();
    let [error] = &errors[..] else { panic!("{said}") };
    assert!(error["error"].as_str().is_some_and(|text| text.contains("refused")), "{error}");
    let entry: Value =
        serde_json::from_str(error["entry"].as_str().expect("an entry")).expect("JSON");
    let names: Vec<_> = entry.as_object().expect("an entry").keys().cloned().collect();
    let expected = ["action", "actor", "at", "detail", "id", "origin", "request_id", "sale_id"];
    assert_eq!(names, expected);
    assert_eq!(entry["detail"], "4 units, adjustment r-2, stock 7");
    assert_eq!(entries(&stage).await, []);
    served.stop().await;
    stage.remove().await;
}

#[tokio::test]
async fn an_act_that_may_be_done_is_recorded_as_such() {
    let stage = Stage::with("unsure", |settings| {
        on_free_port(settings);
        settings.ledger.timeout = Duration::from_secs(1);
    })
    .await;
    stage.open(sale("s", 1)).await;
    let served = Served::without_worker(&stage.deployment.app).await;
    let mut connection = database(&stage).await;
    let lock = "begin; select 1 from sales for update";
    sqlx::raw_sql(lock).execute(&mut connection).await.expect("locked");
    let close = served.post("/v1/sales/s/close", &Value::Null);
    let (status, body) = answer(close).await;
    assert_eq!((status, problem(&body)), (503, "ledger-unavailable"));
    sqlx::raw_sql("rollback").execute(&mut connection).await.expect("unlocked");
    let entries = entries(&stage).await;
    let [(actor, action, detail)] = told(&entries)[..] else { panic!("{entries:?}") };
    assert_eq!((actor, action), ("a user of this machine", "closed"));
    assert!(detail.contains("; not known whether it is done: ledger unavailable"), "{detail}");
    served.stop().await;
    stage.remove().await;
}

/// A log that waits to be told before it takes an entry.
struct Slow {
    asked: Notify,
    go_on: Notify,
    log: Arc<dyn OperatorLog>,
}

#[async_trait]
impl OperatorLog for Slow {
    async fn record(&self, entries: &[Entry]) -> Result<(), OperatorLogError> {
        self.asked.notify_one();
        self.go_on.notified().await;
        self.log.record(entries).await
    }

    async fn entries(&self, wanted: &Wanted) -> Result<Vec<Entry>, OperatorLogError> {
        self.log.entries(wanted).await
    }
}

#[tokio::test]
async fn an_act_is_recorded_also_when_its_client_hangs_up() {
    let embedded = Embedded::new().await;
    let Embedded { broker, ledger, operator_log, .. } = &embedded;
    ledger.open(&[sale("s", 1)]).await.expect("open");
    let log = operator_log.clone();
    let slow = Arc::new(Slow { asked: Notify::new(), go_on: Notify::new(), log });
    let (ledger, broker) = (ledger.clone(), broker.clone());
    let operations = Operations { ledger, broker, journal: Journal::new(Some(slow.clone())) };
    let by = Operator { actor: "me".into(), origin: "cli".into(), request_id: None };
    let acting = tokio::spawn(async move {
        let id = AdjustmentId::parse("r").expect("an id");
        operations.restock(&by, &sale_id("s"), id, Quantity::ONE, Utc::now()).await
    });
    slow.asked.notified().await;
    acting.abort();
    assert!(acting.await.is_err_and(|error| error.is_cancelled()), "the client has left");
    slow.go_on.notify_one();
    until(async || operator_log.entries(&ALL).await.expect("read").len() == 1).await;
    let owed = async || embedded.ledger.unpublished(None).await.expect("outbox").len();
    until(async || owed().await == 0).await;
}
