//! `floodgate-lab user-service`: what can go wrong with it.

use std::process::Stdio;
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{Instant, sleep, timeout};

use super::bare_lab;

const PATIENCE: Duration = Duration::from_mins(1);

/// A `floodgate-lab user-service` on a free port; killed when dropped.
struct Users {
    child: Child,
    /// Read no further, but open: the process may still want to write.
    _log: BufReader<ChildStderr>,
    url: String,
    client: Client,
}

impl Users {
    async fn start(arguments: &[&str]) -> Self {
        let mut command = bare_lab(&["user-service", "--listen", "127.0.0.1:0", "--json"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Command::from(command).kill_on_drop(true).spawn().expect("it starts");
        let mut log = BufReader::new(child.stderr.take().expect("standard error"));
        let mut line = String::new();
        timeout(PATIENCE, log.read_line(&mut line)).await.expect("in time").expect("a line");
        let (_, address) = line.trim().split_once("http://").expect("it says where it listens");
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { child, _log: log, url: format!("http://{address}"), client: Client::new() }
    }

    fn question(&self, user: &str, sale: &str) -> RequestBuilder {
        let question = json!({ "user_id": user, "sale_id": sale, "order_id": "o-1" });
        self.client.post(format!("{}/verify", self.url)).json(&question)
    }

    async fn counts(&self) -> Value {
        let counts = self.client.get(format!("{}/calls", self.url)).send().await.expect("counts");
        counts.json().await.expect("JSON")
    }

    /// Ends it by SIGTERM; whether it ended well.
    async fn stop(self) -> bool {
        let id = self.child.id().expect("it runs").to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill");
        let output = timeout(PATIENCE, self.child.wait_with_output()).await.expect("it ends");
        killed.success() && output.expect("output").status.success()
    }
}

#[tokio::test]
async fn too_many_calls_are_told_when_to_come_back() {
    let users = Users::start(&["--rate-limit", "1"]).await;
    let asking = (0..50).map(|_| users.question("u", "s").send());
    let answers = futures_util::future::try_join_all(asking).await.expect("answers");
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status() == 429).collect();
    assert!(!refused.is_empty() && refused.len() < 50, "{} of 50 refused", refused.len());
    for refusal in &refused {
        assert_eq!(refusal.headers()["retry-after"], "1");
        assert_eq!(refusal.headers()["content-type"], "application/problem+json");
    }
    assert_eq!(users.counts().await["rate_limited"], refused.len());
}

#[tokio::test]
async fn calls_that_hang_hold_up_no_others_and_are_answered_at_the_end() {
    let users = Users::start(&["--hang-sale", "slow", "--hang-ms", "3600000"]).await;
    let patient = tokio::spawn(users.question("u-2", "slow").send());
    assert_eq!(users.question("u-3", "s").send().await.expect("an answer").status(), 200);
    sleep(Duration::from_millis(300)).await;
    assert!(!patient.is_finished());
    let counts = users.counts().await;
    assert_eq!((&counts["hung"], &counts["allowed"]), (&json!(1), &json!(1)));
    assert!(users.stop().await);
    assert_eq!(patient.await.expect("asked").expect("an answer").status(), 200);
}

#[tokio::test]
async fn a_share_of_calls_hangs() {
    let users = Users::start(&["--hangs", "0.5", "--hang-ms", "1500"]).await;
    let mut slow = 0;
    for _ in 0..4 {
        let asking = users.question("u", "s").timeout(Duration::from_millis(700)).send();
        slow += usize::from(asking.await.is_err());
    }
    assert_eq!(slow, 2);
}

#[tokio::test]
async fn a_stall_delays_what_is_due_to_its_end() {
    // It stalls all the time but for the first milliseconds of each second.
    let users = Users::start(&["--stall-every-ms", "1000", "--stall-ms", "990"]).await;
    let ask = async || users.question("u", "s").send().await.expect("an answer").status();
    ask().await;
    // The first answer came when a stall ended; the next one comes when the next stall does.
    sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    assert_eq!(ask().await, 200);
    assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[test]
fn bad_arguments_exit_with_2_and_say_what_is_accepted() {
    for (bad, said) in [
        (&["--hangs", "some"][..], "accepted: a number from 0 to 1"),
        (&["--hang-sale", "a.b"], "sale_id has a character"),
        (&["--rate-limit", "0"], "--rate-limit"),
        (&["--stall-ms", "100"], "--stall-every-ms"),
        (&["--stall-every-ms", "100", "--stall-ms", "100"], "a stall of 100ms every 100ms"),
    ] {
        let output = bare_lab(&[&["user-service"], bad].concat()).output().expect("runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {error}");
        assert!(error.contains(said), "{bad:?}: {error}");
    }
}
