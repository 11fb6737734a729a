//! `floodgate user-service`, as who tries verification against it meets it.

use std::process::Stdio;

use floodgate::config::Settings;
use floodgate::verification::{HttpVerifier, Verdict, Verifier};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::harness::api::{answer, client};
use crate::harness::process::{bare_floodgate, signal};
use crate::harness::{PATIENCE, order};

/// A `floodgate user-service` on a free port; killed when dropped.
pub struct Users {
    child: Child,
    /// Read no further, but open: the process may still want to write.
    _log: BufReader<ChildStderr>,
    pub url: String,
    client: Client,
}

impl Users {
    async fn start(arguments: &[&str]) -> Self {
        Self::listening("127.0.0.1:0", arguments).await
    }

    pub async fn listening(address: &str, arguments: &[&str]) -> Self {
        let mut command = bare_floodgate(&["user-service", "--listen", address, "--json"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Command::from(command).kill_on_drop(true).spawn().expect("it starts");
        let mut log = BufReader::new(child.stderr.take().expect("standard error"));
        let mut line = String::new();
        timeout(PATIENCE, log.read_line(&mut line)).await.expect("in time").expect("a line");
        let (_, address) = line.trim().split_once("http://").expect("it says where it listens");
        Self { child, _log: log, url: format!("http://{address}"), client: client() }
    }

    fn question(&self, user: &str, sale: &str) -> RequestBuilder {
        let question = json!({ "user_id": user, "sale_id": sale, "order_id": "o-1" });
        self.client.post(format!("{}/verify", self.url)).json(&question)
    }

    async fn ask(&self, user: &str) -> (u16, Value) {
        answer(self.question(user, "s")).await
    }

    async fn counts(&self) -> Value {
        answer(self.client.get(format!("{}/calls", self.url))).await.1
    }

    /// Ends it by SIGTERM; its exit code and what it has printed.
    async fn stop(self) -> (Option<i32>, Value) {
        signal(self.child.id().expect("it runs"), "TERM");
        let output = timeout(PATIENCE, self.child.wait_with_output()).await.expect("it ends");
        let output = output.expect("output");
        (output.status.code(), serde_json::from_slice(&output.stdout).expect("JSON"))
    }
}

#[tokio::test]
async fn questions_are_answered_and_counted() {
    let users = Users::start(&["--deny", "u-1", "--deny", "u-2", "--latency-ms", "1"]).await;
    assert_eq!(users.ask("u-0").await, (200, json!({ "allowed": true })));
    for denied in ["u-1", "u-2"] {
        let (status, answer) = users.ask(denied).await;
        assert_eq!((status, &answer["allowed"]), (200, &json!(false)));
        assert_eq!(answer["reason"], "this user is on the list of those who may not buy");
    }
    assert_eq!(users.ask("u-0").await.0, 200);
    let (status, problem) = users.ask("u 0").await;
    assert_eq!((status, &problem["title"]), (400, &json!("Bad Request")));
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.starts_with("user_id has a character that is not accepted"), "{detail}");
    assert_eq!(users.ask(&"u".repeat(5000)).await.0, 413);
    let counts = users.counts().await;
    for (name, count) in
        [("calls", 4), ("users", 3), ("allowed", 2), ("denied", 2), ("malformed", 2)]
    {
        assert_eq!(counts[name], count, "{name}: {counts}");
    }
    let (code, printed) = users.stop().await;
    assert_eq!((code, printed), (Some(0), counts));
}

#[tokio::test]
async fn the_same_users_are_denied_in_every_process() {
    let mut answers = Vec::new();
    for _ in 0..2 {
        let users = Users::start(&["--denials", "0.3"]).await;
        let mut denied = Vec::new();
        for number in 0..100 {
            let user = format!("u-{number}");
            if users.ask(&user).await.1["allowed"] == false {
                denied.push(user);
            }
        }
        answers.push(denied);
    }
    assert!((10..60).contains(&answers[0].len()), "{} of 100", answers[0].len());
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn a_share_of_calls_fails() {
    let users = Users::start(&["--failures", "0.25"]).await;
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(users.ask("u").await.0);
    }
    assert_eq!(statuses, [200, 200, 200, 503, 200, 200, 200, 503]);
}

#[tokio::test]
async fn latencies_come_from_a_file_of_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("samples");
    let latency = format!("file:{}", path.display());
    std::fs::write(&path, "0.5\n1\n1.5\n").expect("write");
    let users = Users::start(&["--latency-ms", &latency, "--seed", "7"]).await;
    assert_eq!(users.ask("u").await.0, 200);

    std::fs::write(&path, "0.5\n1\n1.5 ms\n").expect("write");
    let (code, error) = refused(&["--latency-ms", &latency]);
    assert_eq!(code, Some(2));
    assert!(error.contains("line 3: \"1.5 ms\"; accepted: 0 to 600000"), "{error}");
}

#[tokio::test]
async fn floodgate_understands_its_answers() {
    let users = Users::start(&["--deny", "bad", "--failures", "0.34"]).await;
    let mut settings = Settings::load(None).expect("settings").verification;
    settings.url.clone_from(&users.url);
    let verifier = HttpVerifier::new(&settings).expect("a verifier");
    let verify = async |user| verifier.verify(&order("o", "s", user, 1)).await;
    assert_eq!(verify("good").await.expect("a verdict"), Verdict::Allowed);
    assert_eq!(verify("bad").await.expect("a verdict"), Verdict::Denied);
    let error = verify("good").await.expect_err("every third call fails").to_string();
    assert!(error.contains("503"), "{error}");
}

/// The exit code and the error of a command line that is not accepted.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = bare_floodgate(&["user-service", "--listen", "127.0.0.1:0"]);
    let output = command.args(arguments).output().expect("floodgate runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn bad_arguments_exit_with_2_and_say_what_is_accepted() {
    for (bad, said) in [
        (&["--latency-ms", "50ms"][..], "accepted: 0 to 600000 (milliseconds), lognormal:"),
        (&["--latency-ms", "lognormal:50"], "e.g. lognormal:50:0.5"),
        (&["--latency-ms", "file:/nowhere"], "/nowhere: No such file"),
        (&["--failures", "1.1"], "accepted: a number from 0 to 1"),
        (&["--denials", "NaN"], "accepted: a number from 0 to 1"),
        (&["--deny", "u 1"], "accepted: 1 to 64 of A-Z"),
        (&["--listen", "localhost"], "--listen"),
    ] {
        let (code, error) = refused(bad);
        assert_eq!(code, Some(2), "{bad:?}: {error}");
        assert!(error.contains(said), "{bad:?}: {error}");
    }
}

#[test]
fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = bare_floodgate(&["user-service", "--listen", &address]);
    let output = command.output().expect("floodgate runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains(&format!("can't listen on {address} (--listen)")), "{error}");
}
