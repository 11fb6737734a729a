//! What a user service may answer, over real HTTP.

use std::time::Duration;

use floodgate::config::Settings;
use floodgate::verification::{HttpVerifier, Verdict, Verifier, VerifierError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::order;

/// What comes of a service that sends `answer` to everybody and hangs up, or, with nothing to
/// send, never answers.
async fn asked(answer: &[u8]) -> Result<Verdict, VerifierError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut settings = Settings::load(None).expect("settings").verification;
    settings.url = format!("http://{}/base/", listener.local_addr().expect("an address"));
    settings.timeout = Duration::from_millis(200);
    let answer = answer.to_vec();
    let serving = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        let mut question = vec![0; 4096];
        let read = client.read(&mut question).await.expect("a question");
        let question = String::from_utf8_lossy(&question[..read]).into_owned();
        if answer.is_empty() {
            std::future::pending::<()>().await;
        }
        client.write_all(&answer).await.expect("an answer");
        question
    });
    let verifier = HttpVerifier::new(&settings).expect("a verifier");
    let said = verifier.verify(&order("o-1", "s", "u", 1)).await;
    if serving.is_finished() {
        let question = serving.await.expect("served");
        assert!(question.starts_with("POST /base/verify HTTP/1.1"), "{question}");
        assert!(question.contains(r#"{"user_id":"u","sale_id":"s","order_id":"o-1"}"#));
    } else {
        serving.abort();
    }
    said
}

fn with_body(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn a_verdict_is_what_says_so_in_json() {
    let json = "content-type: application/json\r\n";
    let allowed = with_body("200 OK", json, r#"{"allowed": true, "more": [1]}"#);
    assert_eq!(asked(&allowed).await.expect("a verdict"), Verdict::Allowed);
    let denied = with_body("200 OK", json, r#"{"allowed": false, "reason": "bot"}"#);
    assert_eq!(asked(&denied).await.expect("a verdict"), Verdict::Denied);
}

#[tokio::test]
async fn nothing_else_is_a_verdict() {
    let json = "content-type: application/json\r\n";
    let huge = format!(r#"{{"allowed": true, "x": "{}"}}"#, "x".repeat(1 << 20));
    let broken = [
        with_body("500 Internal Server Error", json, r#"{"allowed": false}"#),
        with_body("403 Forbidden", json, r#"{"allowed": false}"#),
        with_body("302 Found", "location: /elsewhere\r\n", ""),
        with_body("204 No Content", "", ""),
        with_body("200 OK", json, "<html>login</html>"),
        with_body("200 OK", json, r#"{"allowed": "yes"}"#),
        with_body("200 OK", json, r#"{"allowed": null}"#),
        with_body("200 OK", json, "{}"),
        with_body("200 OK", json, ""),
        with_body("200 OK", json, &huge),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"allowed\": true}".to_vec(),
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        Vec::new(),
    ];
    for answer in &broken {
        let said = asked(answer).await;
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        assert!(matches!(said, Err(VerifierError::Unavailable(_))), "{shown}: {said:?}");
    }
}

#[tokio::test]
async fn a_user_it_cant_digest_says_nothing_about_the_service() {
    for status in ["400 Bad Request", "422 Unprocessable Content"] {
        let said = asked(&with_body(status, "", r#"{"allowed": false}"#)).await;
        assert!(matches!(said, Err(VerifierError::Unanswerable(_))), "{status}: {said:?}");
    }
}

#[tokio::test]
async fn patience_is_granted_when_it_is_asked_for() {
    for (status, headers, expected) in [
        ("429 Too Many Requests", "retry-after: 7\r\n", Some(Duration::from_secs(7))),
        ("429 Too Many Requests", "", None),
        ("503 Service Unavailable", "retry-after: 1\r\n", Some(Duration::from_secs(1))),
    ] {
        match asked(&with_body(status, headers, "")).await {
            Err(VerifierError::Busy { retry_after }) => assert_eq!(retry_after, expected),
            other => panic!("{status}: {other:?}"),
        }
    }
}
