//! `floodgate token`: what it prints, the API takes.

use std::process::Output;

use serde_json::Value;

use super::keys::Up;
use super::tokens::SECRET;
use crate::harness::issuer::{IssuingKey, JwksServer, jwks};
use crate::harness::process::bare_floodgate;

type Variables<'a> = &'a [(&'a str, &'a str)];

fn token_command(variables: Variables<'_>, arguments: &[&str]) -> Output {
    let arguments = [&["token"], arguments].concat();
    bare_floodgate(&arguments).envs(variables.iter().copied()).output().expect("it runs")
}

/// The token that it prints, alone and without a word besides.
fn token(variables: Variables<'_>, arguments: &[&str]) -> String {
    let output = token_command(variables, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    let token = String::from_utf8(output.stdout).expect("ASCII");
    let token = token.strip_suffix('\n').expect("a line").to_owned();
    assert!(token.split('.').count() == 3 && !token.contains(char::is_whitespace), "{token}");
    token
}

fn error(variables: Variables<'_>, arguments: &[&str], code: i32) -> String {
    let output = token_command(variables, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{said}");
    said
}

fn claims(token: &str) -> Value {
    use base64::Engine;
    let part = token.split('.').nth(1).expect("claims");
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part);
    serde_json::from_slice(&bytes.expect("base64url")).expect("JSON")
}

#[tokio::test]
async fn a_token_signed_with_the_secret_of_the_settings_is_taken() {
    let variables = [
        ("FLOODGATE_API__JWT_SECRET", SECRET),
        ("FLOODGATE_API__JWT_ISSUER", "https://id.example"),
        ("FLOODGATE_API__JWT_AUDIENCE", "shop"),
    ];
    let up = Up::start(&variables).await;
    let scopes = ["--scope", "floodgate:admin read", "--scope", "floodgate:submit"];
    let operator = token(&variables, &scopes);
    let before = chrono::Utc::now().timestamp();
    let buyer = token(&variables, &["--sub", "ada", "--expires-in-s", "60"]);
    up.sell("s", &operator, &buyer).await;
    let said = claims(&operator);
    assert_eq!(said["scope"], "floodgate:admin read floodgate:submit");
    assert_eq!((&said["iss"], &said["aud"]), (&"https://id.example".into(), &"shop".into()));
    assert_eq!(said["exp"].as_i64().zip(said["iat"].as_i64()).map(|(e, i)| e - i), Some(3600));
    assert!(said.get("sub").is_none());
    let said = claims(&buyer);
    assert_eq!(said["sub"], "ada");
    assert!(said.get("scope").is_none());
    assert!((before + 60..before + 120).contains(&said["exp"].as_i64().expect("a number")));
    // Made for another API.
    let other = token(&variables[..1], &["--sub", "ada"]);
    up.refuses(&other, "iss").await;
}

#[tokio::test]
async fn a_token_signed_with_a_private_key_is_taken() {
    let keys = [IssuingKey::rsa("r"), IssuingKey::ec("e"), IssuingKey::ed25519("d")];
    let issuer = JwksServer::start().await;
    issuer.publish(&jwks(&keys.each_ref()));
    let variables = [("FLOODGATE_API__JWT_JWKS", issuer.url.as_str())];
    let up = Up::start(&variables).await;
    let folder = tempfile::tempdir().expect("a folder");
    for key in &keys {
        let path = folder.path().join(key.kid);
        std::fs::write(&path, &key.pem).expect("written");
        let arguments =
            ["--private-key", path.to_str().expect("UTF-8"), "--kid", key.kid, "--sub", "ada"];
        let buyer = token(&variables, &arguments);
        let admin = [&arguments[..], &["--scope", "floodgate:admin"]].concat();
        super::until("the keys are read", async || up.status(&buyer).await == 404).await;
        up.sell(key.kid, &token(&variables, &admin), &buyer).await;
    }
}

#[test]
fn what_is_missing_or_wrong_is_said_and_no_secret_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("key.pem");
    let file = path.to_str().expect("UTF-8");
    let key = IssuingKey::ed25519("d");
    std::fs::write(&path, &key.pem).expect("written");
    let secret = ("FLOODGATE_API__JWT_SECRET", SECRET);
    for (variables, arguments, code, hints) in [
        (&[][..], &["--sub", "ada"][..], 1, &["FLOODGATE_API__JWT_SECRET", "--private-key"][..]),
        (&[("FLOODGATE_API__JWT_SECRET", "hush")], &["--sub", "ada"], 1, &["32 bytes"]),
        (&[("FLOODGATE_API__JWT_JWKS", "keys.json")], &[], 1, &["--private-key FILE"]),
        (&[secret], &["--sub", "a b"], 2, &["--sub"]),
        (&[secret], &["--scope", "a\"b"], 2, &["--scope", "visible ASCII"]),
        (&[secret], &["--expires-in-s", "0"], 2, &["--expires-in-s"]),
        (&[secret], &["--kid", "k"], 2, &["--private-key"]),
        (&[], &["--private-key", "/nowhere"], 1, &["--private-key /nowhere", "No such file"]),
        (&[], &["--private-key", "Cargo.toml"], 1, &["Cargo.toml", "BEGIN PRIVATE KEY"]),
    ] {
        let said = error(variables, arguments, code);
        assert!(hints.iter().all(|hint| said.contains(hint)), "{said}");
        assert!(!said.contains(SECRET) && !said.contains("hush"), "{said}");
    }
    let older = key.pem.replace("PRIVATE", "EC PRIVATE");
    std::fs::write(&path, &older).expect("written");
    let said = error(&[], &["--private-key", file], 1);
    assert!(said.contains("openssl pkcs8 -topk8") && !said.contains(&older[40..60]), "{said}");
    // A token that the API would refuse is made all the same, and that is said.
    std::fs::write(&path, &key.pem).expect("written");
    let output = token_command(&[secret], &["--private-key", file, "--sub", "ada"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("alg is not HS256"), "{said}");
    assert!(output.stdout.len() > 100 && !said.contains(SECRET), "{said}");
}

#[tokio::test]
async fn keys_that_cannot_be_had_are_told_of_at_the_start_and_by_check() {
    let run = |command: &[&str], jwks: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let output = bare_floodgate(command)
            .env("FLOODGATE_EMBEDDED__FILE", folder.path().join("floodgate.db"))
            .env("FLOODGATE_API__LISTEN", "127.0.0.1:0")
            .env("FLOODGATE_API__JWT_JWKS", jwks)
            .output()
            .expect("it runs");
        let [said, printed] =
            [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code(), said, printed)
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("jwks.json");
    let file = path.to_str().expect("UTF-8");
    for command in ["api", "up"] {
        for (jwks, hint) in [
            (file, "No such file"),
            ("http://id.example/keys", "https://, or http:// to this machine"),
        ] {
            let (code, said, _) = run(&[command], jwks);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("jwt_jwks") && said.contains(hint), "{said}");
        }
    }
    let (code, _, printed) = run(&["check"], file);
    assert!(code == Some(1) && printed.contains("No such file"), "{printed}");
    let issuer = JwksServer::start().await;
    let check = async |jwks: String| {
        let run = tokio::task::spawn_blocking(move || run(&["check"], &jwks));
        run.await.expect("no panic")
    };
    let (code, _, printed) = check(issuer.url.clone()).await;
    assert!(code == Some(1) && printed.contains("FLOODGATE_API__JWT_JWKS"), "{printed}");
    issuer.publish(&jwks(&[&IssuingKey::rsa("r"), &IssuingKey::ec("e")]));
    let (code, _, printed) = check(issuer.url.clone()).await;
    assert!(code == Some(0) && printed.contains("usable keys in the set: 2"), "{printed}");
}
