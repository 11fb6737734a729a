//! Rules of the house that the compiler doesn't hold: who may name what, and sizes of files.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of `endings`, with its text.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                let name =
                    path.strip_prefix(root()).unwrap_or(&path).to_string_lossy().into_owned();
                found.push((name, std::fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    assert!(!found.is_empty(), "nothing below {folder}");
    found
}

/// Whether `text` uses the crate, or the module of this crate, by that name.
fn names(text: &str, path: &str) -> bool {
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")).any(|line| {
        line.match_indices(&format!("{path}::")).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
        })
    })
}

#[test]
fn a_library_is_named_only_where_it_belongs() {
    for (library, allowed) in [
        ("lapin", &["src/broker/rabbitmq"][..]),
        ("amq_protocol", &["src/broker/rabbitmq"][..]),
        ("redis", &["src/inventory/redis"]),
        ("deadpool_redis", &["src/inventory/redis/server.rs"]),
        ("sqlx", &["src/ledger", "src/broker/embedded", "src/migrations.rs", "src/sqlite.rs"]),
        ("axum", &["src/api", "src/user_service", "src/cli/user_service.rs"]),
        ("utoipa", &["src/api"]),
        ("governor", &["src/api"]),
        ("rand", &["src/retry.rs", "src/user_service"]),
        ("rand_distr", &["src/user_service"]),
        ("xxhash_rust", &["src/user_service", "src/inventory/redis.rs"]),
        ("jsonwebtoken", &["src/api/auth"]),
        (
            "ring",
            &[
                "src/api/auth",
                "src/domain/digest.rs",
                "src/ledger/keys.rs",
                "src/webhooks/secret.rs",
            ],
        ),
        ("hyper", &["src/api/server.rs"]),
        ("ipnet", &["src/api", "src/hosts.rs", "src/webhooks"]),
        ("tower_http", &["src/api/server.rs"]),
        ("spki", &["src/api/auth"]),
        (
            "reqwest",
            &[
                "src/http.rs",
                "src/webhook_sender",
                "src/verification/http.rs",
                "src/api/auth/location.rs",
                "src/cli/client.rs",
            ],
        ),
        (
            "rustls",
            &["src/config/tls.rs", "src/http.rs", "src/api/auth/sign.rs", "src/api/auth/tests"],
        ),
        ("backoff", &["src/retry.rs"]),
        ("recloser", &["src/verification/breaker.rs"]),
        ("moka", &["src/verification/verdict_cache.rs", "src/sales/cache.rs"]),
        ("whoami", &["src/cli/operator.rs", "src/status/worker_status.rs"]),
        ("prometheus", &["src/metrics"]),
        ("opentelemetry", &["src/traces"]),
        ("opentelemetry_otlp", &["src/traces.rs"]),
        ("opentelemetry_sdk", &["src/traces"]),
        ("ratatui", &["src/cli/top"]),
        ("anyhow", &["src/app", "src/cli", "src/telemetry.rs"]),
        ("clap", &["src/cli", "src/main.rs"]),
        ("clap_complete", &["src/cli"]),
    ] {
        for (name, text) in files("src", &[".rs"]) {
            let fine = allowed.iter().any(|allowed| name.starts_with(allowed));
            assert!(fine || !names(&text, library), "{name} names {library}; allowed: {allowed:?}");
        }
    }
}

/// The modules of the library by floors: each may use those on floors above its line here, and no others.
const FLOORS: [&[&str]; 11] = [
    &["fuzzing"],
    &["domain", "migrations"],
    &["metrics"],
    &["clock", "fault", "hosts", "http", "outage", "retry", "shutdown", "sqlite", "tls"],
    &["operator_log", "shards", "traces", "webhooks"],
    &["broker", "inventory", "ledger", "user_service", "verification"],
    &["sales", "status", "telemetry"],
    &["api", "webhook_sender", "worker"],
    &["config"],
    &["app"],
    &["cli"],
];

#[test]
fn modules_use_only_those_on_lower_floors() {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    for (name, text) in files("src", &[".rs"]) {
        let module = name.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default();
        if ["main", "lib"].contains(&module) || name.contains("tests") {
            continue;
        }
        let own = floor(module).unwrap_or_else(|| panic!("{module} is on no floor"));
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, other) in
            FLOORS.iter().enumerate().flat_map(|(at, floor)| floor.iter().map(move |m| (at, m)))
        {
            let allowed = at < own || *other == module;
            assert!(allowed || !names(code, &format!("crate::{other}")), "{name} uses {other}");
        }
    }
}

#[test]
fn only_app_chooses_adapters() {
    for (name, text) in files("src", &[".rs"]) {
        if ["src/worker", "src/api", "src/sales", "src/cli"]
            .iter()
            .any(|part| name.starts_with(part))
        {
            for adapter in [
                "RabbitBroker",
                "EmbeddedBroker",
                "RedisInventory",
                "PostgresLedger",
                "SqliteLedger",
                "HttpVerifier",
            ] {
                assert!(!text.contains(adapter), "{name} names {adapter}; only app.rs does");
            }
        }
    }
}

#[test]
fn the_product_does_not_know_its_laboratory() {
    for (name, text) in files("src", &[".rs"]) {
        assert!(!names(&text, "floodgate_lab"), "{name} uses the laboratory");
    }
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert!(!manifest.contains("floodgate-lab"), "the product depends on its laboratory");
}

#[test]
fn files_are_of_a_size_to_be_read() {
    for folder in ["src", "tests", "lab"] {
        for (name, text) in files(folder, &[".rs", ".lua"]) {
            let lines = text.lines().count();
            assert!(
                lines <= 420,
                "{name} has {lines} lines; split it by what changes for one reason"
            );
        }
    }
}

#[test]
fn scripts_say_what_they_take_and_return() {
    for (name, text) in files("src/inventory/lua", &[".lua"]) {
        for word in ["KEYS[1]", "ARGV", "Returns"] {
            let header: String = text.lines().take_while(|line| line.starts_with("--")).collect();
            assert!(header.contains(word), "{name}: its header doesn't mention {word}");
        }
    }
}

#[test]
fn the_readme_fits_one_screen() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let words = text.split_whitespace().count();
    assert!(words <= 700, "README.md has {words} words");
}

#[test]
fn the_tests_that_hold_the_promises_exist() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let rows = text.lines().filter(|line| line.contains("| `tests/"));
    let named: Vec<Vec<&str>> =
        rows.map(|row| row.split('`').skip(1).step_by(2).collect()).collect();
    assert_eq!(named.len(), 5, "{named:?}");
    for names in named {
        let [file, function] = names[..] else { panic!("{names:?}") };
        let code = std::fs::read_to_string(root().join(file)).expect(file);
        assert!(code.contains(&format!("fn {function}(")), "{file} has no {function}");
    }
}

#[test]
fn the_tests_of_faults_exist() {
    let text = std::fs::read_to_string(root().join("docs/faults.md")).expect("docs/faults.md");
    let mut found = 0;
    for name in text.split('`').skip(1).step_by(2).filter(|name| name.contains("::")) {
        let (module, function) = name.rsplit_once("::").expect("a module");
        let file = root().join("tests/it").join(module.replace("::", "/")).with_extension("rs");
        let code = std::fs::read_to_string(&file).unwrap_or_else(|_| panic!("there is no {name}"));
        assert!(code.contains(&format!("fn {function}(")), "{file:?} has no {function}");
        found += 1;
    }
    assert!(found > 50, "{found}");
}

#[test]
fn images_are_labelled_with_the_version() {
    let text =
        std::fs::read_to_string(root().join("deploy/Dockerfile")).expect("deploy/Dockerfile");
    let labels: Vec<&str> = text.lines().filter(|line| line.contains("image.version=")).collect();
    let version = format!("image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert_eq!(labels.len(), 2, "{labels:?}");
    assert!(labels.iter().all(|label| label.contains(&version)), "{labels:?}, not {version}");
}

#[test]
fn what_the_documents_link_to_exists() {
    let mut documents = files("docs", &[".md"]);
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"] {
        let text = std::fs::read_to_string(root().join(name)).expect(name);
        documents.push((name.to_owned(), text));
    }
    for (document, text) in documents {
        let folder = root().join(&document).parent().expect("a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            let is_local =
                !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:");
            assert!(!is_local || folder.join(path).exists(), "{document} links to {link}");
        }
    }
}

#[test]
fn what_the_documents_name_exists() {
    let mut documents = files("docs", &[".md"]);
    for name in ["README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(name)).expect(name);
        documents.push((name.to_owned(), text));
    }
    for (document, text) in documents {
        for piece in text.split('`').skip(1).step_by(2) {
            let path = piece.trim_end_matches('/');
            let is_path = [
                "src/",
                "tests/",
                "scripts/",
                "docs/",
                "migrations/",
                "config/",
                "deploy/",
                "lab/",
                "benches/",
            ]
            .iter()
            .any(|folder| path.starts_with(folder));
            let plain = !path.contains(|c: char| c.is_whitespace() || "{*<$".contains(c));
            if is_path && plain {
                assert!(Path::new(&root().join(path)).exists(), "{document} names {path}");
            }
        }
    }
}
