//! Servers that speak TLS only, with certificates of a private CA, and want to know their clients.

use std::path::Path;
use std::process::{Command, Output};

use floodgate::ledger::{Ledger, LedgerError, PostgresLedger};
use floodgate::metrics::Metrics;
use secrecy::SecretString;
use serde_json::Value;

use crate::harness::private::PrivateServers;
use crate::harness::process::{PrivatePostgres, bare_floodgate};
use crate::harness::settings;

/// The binary with settings for servers.
struct Servers(PrivateServers);

impl Servers {
    fn start() -> Self {
        Self(PrivateServers::start(&[("TLS", "1")]))
    }

    /// The binary with settings for these servers, but without the variables that begin with `without`.
    fn floodgate(&self, arguments: &[&str], without: &str) -> Output {
        let mut command = self.command(arguments);
        for name in
            self.0.settings.keys().filter(|name| !without.is_empty() && name.starts_with(without))
        {
            command.env_remove(name);
        }
        command.output().expect("floodgate runs")
    }

    /// The binary with settings for these servers, and for their database what comes after its URL.
    fn floodgate_with(&self, arguments: &[&str], parameters: &str, ca: &Path) -> Output {
        let mut command = self.command(arguments);
        let url = format!("{}{parameters}", self.0.settings["FLOODGATE_DATABASE_URL"]);
        command.env("FLOODGATE_DATABASE_URL", url).env("FLOODGATE_DATABASE_CA_FILE", ca);
        command.output().expect("floodgate runs")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare_floodgate(arguments);
        command.envs(&self.0.settings).current_dir(self.0.folder());
        command
    }
}

/// What `floodgate check --json` says of `what`.
fn checked(output: &Output, what: &str) -> Value {
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    findings.into_iter().find(|finding| finding["what"] == what).expect("a finding")
}

#[test]
fn orders_go_all_the_way_over_tls_with_a_private_ca() {
    let servers = Servers::start();
    let migrated = servers.floodgate(&["migrate"], "");
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let check = servers.floodgate(&["check", "--json"], "");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let demo = servers.floodgate(&["demo", "--json"], "");
    assert!(demo.status.success(), "{}", String::from_utf8_lossy(&demo.stderr));
    for (variable, what) in [("AMQP", "RabbitMQ"), ("REDIS", "Redis"), ("DATABASE", "PostgreSQL")] {
        // Servers that this machine doesn't trust, and servers that don't trust this client.
        for missing in ["CA_FILE", "CLIENT_"] {
            let without = format!("FLOODGATE_{variable}_{missing}");
            let mut check = servers.floodgate(&["check", "--json"], &without);
            if variable == "DATABASE" && missing == "CA_FILE" {
                // Without a CA and without sslmode the server's certificate is not looked at, as with libpq.
                assert!(check.status.success(), "{check:?}");
                let none = Path::new("");
                check = servers.floodgate_with(&["check", "--json"], "?sslmode=verify-full", none);
            }
            assert_eq!(check.status.code(), Some(1), "{without}");
            let found = checked(&check, what).to_string();
            assert!(found.contains("failed"), "{without}: {found}");
            if missing == "CLIENT_" {
                // With TLS 1.3 a server refuses after the handshake, and may just close.
                continue;
            }
            assert!(found.contains("ertificate"), "{without}: {found}");
            let setting = format!("FLOODGATE_{variable}_CA_FILE");
            assert!(found.contains(&setting), "{without}: {found}");
        }
    }
    let worker = servers.floodgate(&["worker"], "FLOODGATE_AMQP_CA_FILE");
    let said = String::from_utf8_lossy(&worker.stderr);
    assert!(!worker.status.success() && said.contains("FLOODGATE_AMQP_CA_FILE"), "{said}");
    certificates_of_the_database_are_looked_at_as_libpq_does(&servers);
}

/// <https://www.postgresql.org/docs/current/libpq-ssl.html>: what each `sslmode` makes of a CA.
fn certificates_of_the_database_are_looked_at_as_libpq_does(servers: &Servers) {
    let other = tempfile::tempdir().expect("a folder");
    certificate(other.path(), "-days 2");
    let (none, other) = (Path::new("").to_owned(), other.path().join("server.pem"));
    let right = Path::new(&servers.0.settings["FLOODGATE_DATABASE_CA_FILE"]).to_owned();
    for (mode, ca, works) in [
        ("allow", &none, true),
        ("allow", &other, true),
        ("prefer", &other, true),
        ("require", &none, true),
        ("require", &right, true),
        ("require", &other, false),
        ("verify-ca", &right, true),
        ("verify-full", &other, false),
    ] {
        let migrated = servers.floodgate_with(&["migrate"], &format!("?sslmode={mode}"), ca);
        let said = String::from_utf8_lossy(&migrated.stderr);
        assert_eq!(migrated.status.success(), works, "{mode}, {}: {said}", ca.display());
        assert_eq!(said.contains("FLOODGATE_DATABASE_CA_FILE"), !works, "{mode}: {said}");
    }
}

#[test]
fn files_and_urls_that_do_not_go_together_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "-days 2");
    let script = "openssl rsa -in server.key -aes128 -passout pass:x -out encrypted.key &&
        openssl rsa -in server.key -aes128 -passout pass:x -traditional -out old.key &&
        openssl genrsa -out other.key 2048 &&
        printf -- '-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n' > broken.pem &&
        echo nothing > empty.pem";
    run(folder.path(), script);
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (empty, broken, pem) =
        (&file("empty.pem")[..], &file("broken.pem")[..], &file("server.pem")[..]);
    for (variables, said) in [
        (
            &[("AMQP_URL", "amqps://h"), ("AMQP_CA_FILE", "/never")][..],
            "amqp_ca_file: /never: can't read it",
        ),
        (&[("AMQP_URL", "amqps://h"), ("AMQP_CA_FILE", empty)], "it has no CERTIFICATE in PEM"),
        (&[("AMQP_URL", "amqps://h"), ("AMQP_CA_FILE", broken)], "certificate can't be read"),
        (&[("DATABASE_URL", "postgres://h/d"), ("DATABASE_CA_FILE", broken)], "can't be read"),
        (&[("REDIS_URL", "redis://h"), ("REDIS_CA_FILE", empty)], "begin with rediss://"),
        (
            &[("REDIS_URL", "rediss://h"), ("REDIS_CLIENT_CERT_FILE", empty)],
            "redis_client_key_file is not; accepted: both or none",
        ),
        (
            &[("DATABASE_URL", "postgres://h/d"), ("DATABASE_CLIENT_KEY_FILE", empty)],
            "database_client_cert_file is not",
        ),
    ] {
        let mut command = bare_floodgate(&["check"]);
        for (name, value) in variables {
            command.env(format!("FLOODGATE_{name}"), value);
        }
        refuses(command, said);
    }
    for (key, said) in [
        ("encrypted.key", "the key is encrypted"),
        ("old.key", "the key is encrypted"),
        ("other.key", "no key for the certificate"),
        ("server.pem", "it has no PRIVATE KEY in PEM"),
    ] {
        let mut command = bare_floodgate(&["check"]);
        command.env("FLOODGATE_DATABASE_URL", "postgres://h/d");
        command.env("FLOODGATE_DATABASE_CLIENT_CERT_FILE", pem);
        command.env("FLOODGATE_DATABASE_CLIENT_KEY_FILE", file(key));
        refuses(command, &format!("database_client_key_file: {}: {said}", file(key)));
    }
}

fn refuses(mut command: Command, said: &str) {
    let output = command.output().expect("floodgate runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(said), "{text}");
}

fn run(folder: &Path, script: &str) {
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A certificate that signs itself, `server.pem`, and its key, `server.key`.
fn certificate(folder: &Path, options: &str) {
    let names = "-keyout server.key -subj /CN=floodgate-test";
    run(
        folder,
        &format!("openssl req -x509 -newkey rsa:2048 -nodes {names} {options} -out server.pem"),
    );
}

/// The same of X.509 version 1, as PostgreSQL's documentation lets people make one.
fn old_certificate(folder: &Path) {
    let script = "openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=old &&
        openssl x509 -req -in server.csr -signkey server.key -out server.pem && chmod 600 server.key &&
        if [ \"$(id -u)\" = 0 ]; then chown postgres . server.key server.pem; fi";
    run(folder, script);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_no_hindrance_where_none_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    old_certificate(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (certificate, key) = (
        format!("ssl_cert_file={}", file("server.pem")),
        format!("ssl_key_file={}", file("server.key")),
    );
    let server = PrivatePostgres::start(&["-c", "ssl=on", "-c", &certificate, "-c", &key]);
    for (mode, works) in [
        ("", true),
        ("?sslmode=prefer", true),
        ("?sslmode=allow", true),
        ("?sslmode=disable", true),
        ("?sslmode=require", false),
    ] {
        let url = SecretString::from(format!("{}{mode}", server.url()));
        let migrated = PostgresLedger::migrate(&url).await;
        assert_eq!(migrated.is_ok(), works, "{mode}: {migrated:?}");
        let ledger =
            PostgresLedger::new(&url, &settings().ledger, &Metrics::new()).expect("a ledger");
        // Without a check before it, as commands that only write to the operators' log use it.
        match ledger.sales(None).await {
            Ok(_) => assert!(works, "{mode}"),
            Err(LedgerError::Transient(error) | LedgerError::Permanent(error)) => {
                assert!(!works && error.to_string().contains("ertificate"), "{mode}: {error}");
            }
        }
        let name = format!("another{}", mode.len());
        let created = PostgresLedger::create_database(&url, &name).await;
        assert_eq!(created.is_ok(), works, "{mode}: {created:?}");
        if created.is_ok() {
            let created = PostgresLedger::url_of(&url, &name).expect("a URL");
            PostgresLedger::drop_database(&created).await.expect("drop");
        }
    }
}
