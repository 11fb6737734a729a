//! Alerts and dashboards against a real Prometheus, with faults made for real.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use chrono::Utc;
use floodgate::domain::intent;
use floodgate::domain::sale::PauseMode;
use floodgate::ledger::Change;
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::harness::api::Served;
use crate::harness::process::{PrivateRedis, WorkerProcess, free_port};
use crate::harness::prometheus::Prometheus;
use crate::harness::users::checked_sale;
use crate::harness::{Stage, address, order, post, root, sale, sale_id, settings, through_proxy};
use crate::user_service::Users;
use floodgate_fault_proxy::FaultProxy;

/// The expressions of the alerts that are shipped, by name. Their windows are shortened, so that a test needs not wait
/// for what has healed to leave them.
fn alerts() -> BTreeMap<String, String> {
    let path = root().join("deploy/prometheus/rules.yml");
    let rules = std::fs::read_to_string(path).expect("the rules");
    let mut alerts = BTreeMap::new();
    let mut name = None;
    for line in rules.lines().map(str::trim) {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            name = Some(alert.to_owned());
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            let expression =
                expression.replace("10m", "30s").replace("[5m]", "[15s]").replace("[1m]", "[15s]");
            alerts.insert(name.take().expect("a name before"), expression);
        }
    }
    alerts
}

/// A deployment that is watched, with orders coming in all the time.
struct Watched {
    stage: Stage,
    served: Served,
    prometheus: Prometheus,
    alerts: BTreeMap<String, String>,
    variables: Vec<(&'static str, String)>,
    orders: JoinHandle<()>,
}

impl Watched {
    /// Its worker gets these variables.
    async fn start(
        what: &str,
        variables: impl FnOnce(&Stage) -> Vec<(&'static str, String)>,
    ) -> (Self, WorkerProcess) {
        // One that a second API process can have.
        let address = format!("127.0.0.1:{}", free_port()).parse().expect("an address");
        let stage = Stage::with(what, |settings| settings.api.listen = address).await;
        stage.open(sale("s", 1_000_000)).await;
        stage.open(checked_sale("checked", 1_000_000)).await;
        let served = Served::without_worker(&stage.deployment.app).await;
        let (mut variables, listen) = (variables(&stage), format!("127.0.0.1:{}", free_port()));
        variables.push(("FLOODGATE_WORKER__LISTEN", listen.clone()));
        let worker = Self::worker(&stage, &variables);
        let api = served.url().trim_start_matches("http://").to_owned();
        let targets = [("floodgate-api", api), ("floodgate-worker", listen)];
        let prometheus = Prometheus::start(&targets);
        let broker = stage.broker.clone();
        let orders = tokio::spawn(async move {
            for n in 0.. {
                let id = format!("o-{n}");
                let orders = ["s", "checked"]
                    .map(|sale| intent::to_json(&order(&id, sale, &id, 1), Utc::now()));
                post(broker.as_ref(), &orders).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        prometheus.until_it_scrapes(2).await;
        let alerts = alerts();
        (Self { stage, served, prometheus, alerts, variables, orders }, worker)
    }

    fn worker(stage: &Stage, variables: &[(&'static str, String)]) -> WorkerProcess {
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        WorkerProcess::with(stage, &variables)
    }

    async fn until(&self, alert: &str, expected: bool) {
        self.prometheus.until(&self.alerts[alert], expected).await;
    }

    /// Waits until no alert would fire.
    async fn until_all_is_well(&self) {
        for expression in self.alerts.values() {
            self.prometheus.until(expression, false).await;
        }
    }

    /// The servers that some process gets no answer from.
    async fn down(&self) -> Vec<String> {
        let series = self.prometheus.query("floodgate_dependency_up == 0").await;
        let name = |one: &Value| one["metric"]["dependency"].as_str().expect("a label").to_owned();
        series.iter().map(name).collect()
    }

    /// Ends the API, and starts it again when its absence is told.
    async fn with_another_api(self) -> Self {
        let Self { stage, served, prometheus, alerts, variables, orders } = self;
        served.stop().await;
        prometheus.until(&alerts["FloodgateNothingWatched"], true).await;
        let served = Served::without_worker(&stage.deployment.app).await;
        Self { stage, served, prometheus, alerts, variables, orders }
    }

    async fn end(self, worker: WorkerProcess) {
        self.orders.abort();
        worker.signal("TERM");
        assert_eq!(worker.wait(), Some(0));
        self.served.stop().await;
        self.stage.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_do_not_answer_are_told() {
    let settings = settings();
    let database = address(settings.database_url.expose_secret());
    let to_database = FaultProxy::start(database).await.expect("a proxy");
    let (to_broker, broker) = through_proxy(settings.amqp_url.expose_secret()).await;
    let mut redis = PrivateRedis::start();
    let listen = format!("127.0.0.1:{}", free_port());
    let _users = Users::listening(&listen, &[]).await;
    let (watched, worker) = Watched::start("alerts-servers", |stage| {
        // Its database is on the same server.
        let direct = stage.deployment.app.settings().database_url.expose_secret();
        vec![
            ("FLOODGATE_VERIFICATION__URL", format!("http://{listen}")),
            ("FLOODGATE_REDIS_URL", redis.url()),
            ("FLOODGATE_AMQP_URL", broker.clone()),
            (
                "FLOODGATE_DATABASE_URL",
                direct.replace(database, &to_database.address().to_string()),
            ),
        ]
    })
    .await;
    watched.until_all_is_well().await;

    redis.kill();
    watched.until("FloodgateDependencyDown", true).await;
    assert_eq!(watched.down().await, ["redis"]);
    redis.restart(true);
    watched.until_all_is_well().await;

    to_database.lead_to("127.0.0.1:1");
    to_database.cut();
    watched.until("FloodgateDependencyDown", true).await;
    assert_eq!(watched.down().await, ["postgresql"]);
    watched.until("FloodgateOrdersWait", true).await;
    watched.until("FloodgateWorkerStuck", true).await;
    to_database.lead_to(database);
    watched.until("FloodgateSlowDecisions", true).await;
    watched.until_all_is_well().await;

    let breaking = async {
        loop {
            to_broker.cut();
            // Long enough for a connection to work, or the next attempt comes later each time.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    tokio::select! {
        () = breaking => {}
        () = watched.until("FloodgateReconnecting", true) => {}
    }
    watched.until_all_is_well().await;
    watched.end(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_stuck_or_gone_and_poison_are_told_and_every_panel_has_data() {
    let listen = format!("127.0.0.1:{}", free_port());
    let users = Users::listening(&listen, &[]).await;
    let (watched, worker) = Watched::start("alerts-workers", |_| {
        vec![
            ("FLOODGATE_VERIFICATION__URL", format!("http://{listen}")),
            ("FLOODGATE_VERIFICATION__BREAKER_CALLS", "20".into()),
        ]
    })
    .await;
    watched.until_all_is_well().await;
    for query in queries() {
        watched.prometheus.until(&query, true).await;
    }

    watched.stage.post(&["{"]).await;
    watched.until("FloodgateDeadLetters", true).await;
    watched.until("FloodgateDeadLettersGrow", true).await;
    watched.until_all_is_well().await;

    drop(users);
    watched.until("FloodgateDependencyDown", true).await;
    assert_eq!(watched.down().await, ["user_service"]);
    watched.until("FloodgateBreakerOpen", true).await;
    let _users = Users::listening(&listen, &[]).await;
    watched.until_all_is_well().await;

    let at = Utc::now();
    let pause = |mode| Change::Pause { mode, at };
    for (change, alert, expected) in [
        (pause(Some(PauseMode::Hold)), "FloodgateSaleHeld", true),
        (pause(None), "FloodgateSaleHeld", false),
        (Change::Lost { version: 3, at }, "FloodgateLedgerRestored", true),
        (Change::Accept { at }, "FloodgateLedgerRestored", false),
    ] {
        watched.stage.ledger.change(&sale_id("s"), &change).await.expect("changed");
        watched.until(alert, expected).await;
    }
    watched.until_all_is_well().await;

    worker.signal("STOP");
    watched.until("FloodgateWorkerSilent", true).await;
    watched.until("FloodgateTargetDown", true).await;
    watched.until("FloodgateOrdersWait", true).await;
    worker.signal("CONT");
    watched.until_all_is_well().await;

    worker.kill();
    watched.until("FloodgateNoWorker", true).await;
    let mut worker = Watched::worker(&watched.stage, &watched.variables);
    while watched.prometheus.query(&watched.alerts["FloodgateRestarting"]).await.is_empty() {
        watched.prometheus.until("sum(up) == 2", true).await;
        worker.kill();
        worker = Watched::worker(&watched.stage, &watched.variables);
    }
    watched.until_all_is_well().await;

    let watched = watched.with_another_api().await;
    watched.until_all_is_well().await;
    watched.until_all_is_well().await;
    watched.end(worker).await;
}

#[test]
fn rules_and_their_tests_pass() {
    let folder = root().join("deploy/prometheus");
    for arguments in [
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
        ["check", "config", "prometheus.yml"],
    ] {
        let promtool = Command::new("promtool").args(arguments).current_dir(&folder).output();
        let output = promtool.expect("promtool is not installed; run scripts/prometheus");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_alert_has_a_test_and_its_section_in_the_runbook() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("a file");
    let (runbook, tests) = (read("docs/runbook.md"), read("deploy/prometheus/rules_test.yml"));
    for alert in alerts().keys() {
        assert!(runbook.contains(&format!("\n## {alert}\n")), "docs/runbook.md lacks {alert}");
        for ends in ["fires", "does not fire"] {
            assert!(tests.contains(&format!("name: {alert} {ends}\n")), "no test: {alert} {ends}");
        }
    }
}

/// The queries of the dashboard's panels.
fn queries() -> Vec<String> {
    let path = root().join("deploy/grafana/floodgate.json");
    let text = std::fs::read_to_string(path).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    expressions.map(|expression| expression.replace("$__rate_interval", "5s")).collect()
}
