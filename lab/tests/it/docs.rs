//! The commands in the documents do what the documents say: each block of shell runs, in order, in a folder
//! for its document.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::settings;
use secrecy::ExposeSecret;

/// What stands for the commands that a reader has: this build of floodgate, on a free port; the servers of the
/// tests; and for what takes minutes, a look at its arguments.
const PREAMBLE: &str = r#"
set -euo pipefail
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
lab() { (exec -a floodgate-lab "$LAB" "$@"); }
bare() { (exec -a floodgate "$LAB" "$@"); }
floodgate() {
  case "$1" in
    up | api | worker | user-service) (exec -a floodgate "$LAB" "$@") & sleep 2; kill -0 $! ;;
    # The sale closed a moment ago, not intent.max_age_s.
    sale) if [ "$2" = archive ]; then sleep 1.1; fi; FLOODGATE_INTENT__MAX_AGE_S=1 bare "$@" ;;
    order) for _ in $(seq 100); do bare "$@" && return; sleep 0.1; done; return 1 ;;
    *) bare "$@" ;;
  esac
}
floodgate-lab() { lab "$@" --help; }
target/release/floodgate-lab() { lab "$@"; }
cargo() {
  case "$*" in
    "build --release" | "build --release -p floodgate-lab" | test) ;;
    "run --release -- "*) shift 3; floodgate "$@" ;;
    "run --release -p floodgate-lab -- "*) shift 5; floodgate-lab "$@" ;;
    "bench --bench "*) test -e "$ROOT/benches/$3.rs" ;;
    *) echo "no such cargo: $*" >&2; return 1 ;;
  esac
}
scripts/services() {
  case "$1" in
    up | down) ;;
    env) printf 'export %s\n' "${SERVERS[@]}" ;;
    *) return 1 ;;
  esac
}
curl() { command curl --fail "${@/localhost:8080/$FLOODGATE_API__LISTEN}"; }
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The blocks of shell in a document.
fn script(text: &str) -> String {
    let blocks = text.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix("sh\n")).collect()
}

fn run(document: &str) {
    let text = std::fs::read_to_string(root().join(document)).expect(document);
    let script = script(&text);
    assert!(!script.is_empty(), "{document} has no commands");
    let (settings, name) = (settings(), document.replace(['/', '.'], "-"));
    let servers = [
        format!("FLOODGATE_AMQP_URL={}", settings.amqp_url.expose_secret()),
        format!("FLOODGATE_REDIS_URL={}", settings.redis_url.expose_secret()),
        format!("FLOODGATE_DATABASE_URL={}", settings.database_url.expose_secret()),
        format!("FLOODGATE_NAMESPACE=docs-{name}-{}", std::process::id()),
    ];
    let servers = servers.map(|server| format!("'{server}'")).join(" ");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("bash");
    for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOODGATE_")) {
        command.env_remove(variable);
    }
    let output = command
        .args(["-c", &format!("{PREAMBLE}\nSERVERS=({servers})\nset -x\n{script}")])
        .env("LAB", env!("CARGO_BIN_EXE_floodgate-lab"))
        .env("ROOT", root())
        .env("FLOODGATE_API__LISTEN", port.expect("an address").to_string())
        .env("FLOODGATE_LOG__FILTER", "warn")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{document}: {said}");
}

macro_rules! documents {
    ($($test:ident: $document:literal;)*) => {
        const DOCUMENTS: &[&str] = &[$($document),*];
        $(#[test] fn $test() { run($document); })*
    };
}

documents! {
    the_readme: "README.md";
    benchmarks: "docs/benchmarks.md";
    development: "docs/development.md";
    getting_started: "docs/getting-started.md";
    http_api: "docs/http-api.md";
    incident: "docs/incident.md";
    operations: "docs/operations.md";
}

#[test]
fn no_document_has_commands_that_are_not_run() {
    for entry in std::fs::read_dir(root().join("docs")).expect("docs") {
        let path = entry.expect("an entry").path();
        let name = format!("docs/{}", path.file_name().expect("a name").display());
        // The statements of that page run in a test of floodgate's.
        let is_document =
            path.extension().is_some_and(|ending| ending == "md") && name != "docs/permissions.md";
        if is_document && !DOCUMENTS.contains(&name.as_str()) {
            let text = std::fs::read_to_string(root().join(&name)).expect("UTF-8");
            assert_eq!(script(&text), "", "{name}");
        }
    }
}
