//! `floodgate up` without servers, as a newcomer runs it: one process, one file, killed.

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use reqwest::Client;

use crate::harness::PATIENCE;
use crate::harness::api::client;
use crate::harness::process::bare_floodgate;

/// A `floodgate up` on a file in `folder`; killed when dropped.
struct Up {
    child: Child,
    url: String,
}

fn command(folder: &tempfile::TempDir) -> Command {
    let mut command = bare_floodgate(&[]);
    command
        .env("FLOODGATE_EMBEDDED__FILE", folder.path().join("floodgate.db"))
        .env("FLOODGATE_LOG__FILTER", "error")
        .stderr(Stdio::null());
    command
}

impl Up {
    async fn start(folder: &tempfile::TempDir, client: &Client, port: u16) -> Self {
        Self::start_as("up", folder, client, port).await
    }

    async fn start_as(what: &str, folder: &tempfile::TempDir, client: &Client, port: u16) -> Self {
        let mut command = command(folder);
        let child = command
            .arg(what)
            .env("FLOODGATE_API__LISTEN", format!("127.0.0.1:{port}"))
            .spawn()
            .expect("floodgate starts");
        let up = Self { child, url: format!("http://127.0.0.1:{port}") };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = client.get(format!("{}/readyz", up.url)).send().await;
            if ready.is_ok_and(|answer| answer.status() == 200) {
                return up;
            }
            assert!(Instant::now() < deadline, "floodgate up is not ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn an_api_and_a_worker_on_one_file_answer_who_waits() {
    let (folder, client) = (tempfile::tempdir().expect("a folder"), client());
    let port = crate::harness::process::free_port();
    let mut open = command(&folder);
    let opened = open.args(["sale", "open", "--sale-id", "s", "--stock", "1"]).status();
    assert!(opened.expect("runs").success());
    let api = Up::start_as("api", &folder, &client, port).await;
    let mut worker = command(&folder).arg("worker").spawn().expect("a worker starts");
    let order = serde_json::json!({ "user_id": "u", "quantity": 1 });
    let posted = client
        .post(format!("{}/v1/sales/s/orders", api.url))
        .header("Prefer", "wait=10")
        .json(&order)
        .send()
        .await
        .expect("an answer");
    assert_eq!(posted.status(), 200);
    let decision: serde_json::Value = posted.json().await.expect("JSON");
    assert_eq!(decision["outcome"], "created");
    worker.kill().expect("kill");
    worker.wait().expect("wait");
}

/// Posts orders until `count` are posted or the server is gone. Returns those accepted.
async fn post(url: String, client: Client, next: Arc<AtomicU32>, count: u32) -> Vec<String> {
    let mut accepted = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return accepted;
        }
        let id = format!("o-{number}");
        let order =
            serde_json::json!({ "user_id": format!("u-{number}"), "quantity": 1, "order_id": id });
        let posted = client.post(format!("{url}/v1/sales/s/orders")).json(&order).send().await;
        match posted {
            Ok(answer) if answer.status() == 202 => accepted.push(id),
            Ok(answer) => panic!("{}: {:?}", answer.status(), answer.text().await),
            // Whether the last one was accepted is unknown.
            Err(_) => return accepted,
        }
    }
}

async fn post_from_many(
    up: &Up,
    client: &Client,
    next: &Arc<AtomicU32>,
    count: u32,
) -> Vec<String> {
    let mut posting = tokio::task::JoinSet::new();
    for _ in 0..32 {
        posting.spawn(post(up.url.clone(), client.clone(), next.clone(), count));
    }
    posting.join_all().await.concat()
}

/// Asks for each order until it has its decision.
async fn until_all_are_created(url: String, client: Client, mut waiting: Vec<String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(id) = waiting.pop() {
        let answer =
            client.get(format!("{url}/v1/sales/s/orders/{id}")).send().await.expect("answer");
        if answer.status() == 404 {
            assert!(Instant::now() < deadline, "{id} has no decision");
            waiting.push(id);
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let decision: serde_json::Value = answer.json().await.expect("JSON");
        assert_eq!(decision["outcome"], "created");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_a_kill_is_decided_once() {
    const ORDERS: u32 = 8_000;
    let folder = tempfile::tempdir().expect("a folder");
    let client = client();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    let mut up = Up::start(&folder, &client, port).await;
    // More stock than orders, so that none is refused.
    let sale = serde_json::json!({ "sale_id": "s", "stock": 2 * ORDERS });
    client.post(format!("{}/v1/sales", up.url)).json(&sale).send().await.expect("opened");

    let next = Arc::new(AtomicU32::new(0));
    let killed = async {
        while next.load(Ordering::Relaxed) < ORDERS / 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let id = up.child.id();
        Command::new("kill").arg("-KILL").arg(id.to_string()).status().expect("kill");
    };
    let (mut accepted, ()) = tokio::join!(post_from_many(&up, &client, &next, ORDERS), killed);
    assert!(accepted.len() < ORDERS as usize, "it was killed in the middle");
    up.child.wait().expect("wait");
    up = Up::start(&folder, &client, port).await;
    accepted.extend(post_from_many(&up, &client, &next, ORDERS).await);
    assert!(accepted.len() > ORDERS as usize - 100, "{} accepted", accepted.len());

    let mut asking = tokio::task::JoinSet::new();
    for ids in accepted.chunks(1000) {
        asking.spawn(until_all_are_created(up.url.clone(), client.clone(), ids.to_vec()));
    }
    asking.join_all().await;
    // One decision each: no unit was sold twice for an order, also of those not known to be accepted.
    let shown = command(&folder).args(["sale", "show", "s", "--json"]).output().expect("shown");
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let sold = usize::try_from(shown["sold"].as_u64().expect("sold")).expect("sold");
    let distinct = accepted.iter().collect::<HashSet<_>>().len();
    assert_eq!(distinct, accepted.len());
    assert!((distinct..=ORDERS as usize).contains(&sold), "{sold} sold, {distinct} accepted");
}

#[tokio::test]
async fn a_clean_stop_leaves_one_file_and_files_may_be_many_meanwhile() {
    let (folder, client) = (tempfile::tempdir().expect("a folder"), client());
    let mut up = Up::start(&folder, &client, crate::harness::process::free_port()).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", up.child.id()));
    let limits = limits.expect("a process");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut files = files.expect("a limit").split_whitespace();
    assert_eq!(files.next(), files.next(), "the soft limit is the hard one");
    crate::harness::process::signal(up.child.id(), "TERM");
    assert_eq!(up.child.wait().expect("it ends").code(), Some(0));
    let left = std::fs::read_dir(folder.path()).expect("a folder");
    let left: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["floodgate.db"]);
}

#[test]
fn commands_share_the_file_and_servers_say_that_they_are_embedded() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let mut command = command(&folder);
        command.args(arguments).env("FLOODGATE_LOG__FILTER", "warn").stderr(Stdio::piped());
        command.output().expect("floodgate runs")
    };
    let opened = run(&["sale", "open", "--sale-id", "s", "--stock", "1"]);
    let said = String::from_utf8_lossy(&opened.stderr).into_owned();
    assert!(opened.status.success() && !said.contains("running embedded"), "{said}");
    let mut up = command(&folder);
    // It says so, and then refuses to be reached by others without a key.
    up.arg("up").env("FLOODGATE_API__LISTEN", "0.0.0.0:0").env("FLOODGATE_LOG__FILTER", "warn");
    let said = up.stderr(Stdio::piped()).output().expect("floodgate runs").stderr;
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("running embedded") && said.contains("api.listen"), "{said}");
    let restock = ["sale", "restock", "s", "--units", "2", "--adjustment-id", "r", "--json"];
    for _ in 0..2 {
        let shown: serde_json::Value = serde_json::from_slice(&run(&restock).stdout).expect("JSON");
        assert_eq!((shown["stock"].as_u64(), shown["version"].as_u64()), (Some(3), Some(2)));
    }
    let other = ["sale", "restock", "s", "--units", "3", "--adjustment-id", "r"];
    assert_eq!(run(&other).status.code(), Some(1));
    let closed: serde_json::Value =
        serde_json::from_slice(&run(&["sale", "close", "s", "--json"]).stdout).expect("JSON");
    assert_eq!(closed["state"], "closed");
    let path = folder.path().join("orders.jsonl");
    std::fs::write(
        &path,
        "{\"order_id\":\"o\",\"sale_id\":\"none\",\"user_id\":\"u\",\"quantity\":1}\n",
    )
    .expect("write");
    let replayed = run(&["replay", path.to_str().expect("UTF-8"), "--json"]);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
}

#[test]
fn the_demo_holds_every_promise() {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = command(&folder)
        .args(["demo", "--stock", "20", "--buyers", "1000", "--user-latency-ms", "10", "--json"])
        .output()
        .expect("floodgate runs");
    let report: serde_json::Value = serde_json::from_slice(&demo.stdout).expect("JSON");
    assert!(demo.status.success(), "{report:#}");
    assert_eq!((report["sold"].as_u64(), report["crashes"].as_u64()), (Some(20), Some(1)));
    assert!(report["user_service_calls"].as_u64().is_some_and(|calls| calls >= 20));
}
