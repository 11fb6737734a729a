//! The command line, as a person or a script meets it.

use secrecy::ExposeSecret;

use crate::harness::api::Served;
use crate::harness::process::{WorkerProcess, bare_floodgate, floodgate, free_port, run};
use crate::harness::{Stage, check, order, root, sale, until};

fn json(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn error(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn sales_are_opened_shown_and_listed() {
    let stage = Stage::new("sales").await;
    let opened = run(
        &stage,
        &[
            "sale",
            "open",
            "--sale-id",
            "s",
            "--stock",
            "5",
            "--per-user-limit",
            "2",
            "--opens-at",
            "2026-11-27T08:00:00Z",
            "--json",
        ],
    );
    assert_eq!(json(&opened)["opened"], 1, "{}", error(&opened));
    let shown = json(&run(&stage, &["sale", "show", "s", "--json"]));
    assert_eq!(shown["stock"], 5);
    assert_eq!(shown["remaining"], 5);
    assert_eq!(shown["per_user_limit"], 2);
    let differing = run(&stage, &["sale", "open", "--sale-id", "s", "--stock", "6"]);
    assert_eq!(differing.status.code(), Some(1));
    assert!(error(&differing).contains("stock 5"), "{}", error(&differing));
    assert_eq!(json(&run(&stage, &["sale", "show", "s", "--json"]))["stock"], 5);
    let table = String::from_utf8(run(&stage, &["sale", "list"]).stdout).expect("UTF-8");
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    let unknown = run(&stage, &["sale", "show", "t"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(error(&unknown).contains("floodgate sale open --sale-id t"));
    stage.remove().await;
}

#[tokio::test]
async fn a_file_of_sales_is_opened_whole_or_not_at_all() {
    let stage = Stage::new("file").await;
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("sales.csv");
    std::fs::write(&path, "sale_id,stock\na,1\nb.c,2\nd,-3\n").expect("write");
    let file = path.to_str().expect("UTF-8");
    let refused = run(&stage, &["sale", "open", "--file", file]);
    assert_eq!(refused.status.code(), Some(1));
    let text = error(&refused);
    assert!(text.contains("line 3: sale_id has a character") && text.contains("line 4"), "{text}");
    assert_eq!(json(&run(&stage, &["sale", "list", "--json"])), serde_json::json!([]));
    std::fs::write(
        &path,
        "sale_id,stock,per_user_limit,closes_at\na,1,,\nb,2,1,2026-11-27T08:00:00Z\n",
    )
    .expect("write");
    assert_eq!(json(&run(&stage, &["sale", "open", "--file", file, "--json"]))["opened"], 2);
    assert_eq!(json(&run(&stage, &["sale", "open", "--file", file, "--json"]))["unchanged"], 2);

    std::fs::write(&path, "sale_id,stock,verification\nc,1,true\nd,1,false\ne,1,\nf,1,true\n")
        .expect("write");
    let opened = run(&stage, &["sale", "open", "--file", file, "--json"]);
    assert_eq!(json(&opened)["opened"], 4, "{}", error(&opened));
    assert!(error(&opened).contains("sale c and 1 more"), "{}", error(&opened));
    let all = json(&run(&stage, &["sale", "list", "--json"]));
    let checked: Vec<bool> = all.as_array().expect("sales")[2..]
        .iter()
        .map(|sale| sale["verification"].as_bool().expect("true or false"))
        .collect();
    assert_eq!(checked, [true, false, false, true]);
    std::fs::write(&path, "sale_id,stock,verification\ng,1,yes\n").expect("write");
    let refused = run(&stage, &["sale", "open", "--file", file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(error(&refused).contains("line 2"), "{}", error(&refused));
    stage.remove().await;
}

#[tokio::test]
async fn verification_is_switched_and_a_missing_user_service_is_told_of() {
    const HINT: &str = "FLOODGATE_VERIFICATION__URL";
    let stage = Stage::new("switch").await;
    let open = ["sale", "open", "--sale-id", "s", "--stock", "5", "--verification"];
    let opened = run(&stage, &open);
    assert_eq!(opened.status.code(), Some(0), "workers may have other settings");
    assert!(error(&opened).contains(HINT), "{}", error(&opened));
    let url = floodgate(&stage, &open).env(HINT, "http://127.0.0.1:1").output().expect("it runs");
    assert!(!error(&url).contains(HINT), "{}", error(&url));

    for (to, version) in [("off", 2), ("off", 2), ("on", 3)] {
        let switched = run(&stage, &["sale", "verification", "s", to, "--json"]);
        let shown = json(&switched);
        assert_eq!(shown["verification"], to == "on", "{}", error(&switched));
        assert_eq!(shown["version"], version);
        assert_eq!(error(&switched).contains(HINT), to == "on", "{}", error(&switched));
    }
    let table = run(&stage, &["sale", "verification", "s", "off"]).stdout;
    let shown = run(&stage, &["sale", "show", "s"]).stdout;
    assert_eq!(String::from_utf8_lossy(&table), String::from_utf8_lossy(&shown));
    let again = run(&stage, &open);
    assert_eq!(again.status.code(), Some(1));
    assert!(error(&again).contains("users not checked"), "{}", error(&again));
    assert_eq!(run(&stage, &["sale", "verification", "never", "off"]).status.code(), Some(1));
    let bad = run(&stage, &["sale", "verification", "s", "maybe"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(error(&bad).contains("[possible values: on, off]"), "{}", error(&bad));
    stage.remove().await;
}

#[tokio::test]
async fn a_replayed_file_is_decided_and_its_bad_lines_are_dead_lettered() {
    let mut stage = Stage::new("replay").await;
    run(&stage, &["sale", "open", "--sale-id", "A", "--stock", "10"]);
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("orders.csv");
    std::fs::write(&path, "No,Code,Qty,Customer\n1,A,6,u\n2,A,6,u\n3,A,x,u\n4,A,4,\n")
        .expect("write");
    let file = path.to_str().expect("UTF-8");
    for batch in ["1", "3"] {
        let replayed = run(
            &stage,
            &[
                "replay",
                file,
                "--order-id",
                "No,Code",
                "--sale-id",
                "Code",
                "--user-id",
                "Customer",
                "--quantity",
                "Qty",
                "--batch",
                batch,
                "--json",
            ],
        );
        assert_eq!(json(&replayed)["lines"], 4, "{}", error(&replayed));
    }
    let worker = WorkerProcess::start(&stage);
    let orders = [order("1-A", "A", "u", 6), order("2-A", "A", "u", 6)];
    let totals = check::settled(&mut stage, &orders).await;
    assert_eq!((totals.created, totals.sold_out), (1, 1));
    let mut reasons: Vec<String> =
        stage.dead_letters(4).await.into_iter().map(|(reason, _)| reason).collect();
    reasons.sort();
    assert_eq!(reasons, ["bad_id", "bad_id", "wrong_type", "wrong_type"]);
    let shown = json(&run(&stage, &["order", "show", "A", "1-A", "--json"]));
    assert_eq!((&shown["sale_id"], &shown["order_id"]), (&"A".into(), &"1-A".into()));
    assert_eq!((&shown["outcome"], &shown["event_id"]), (&"created".into(), &"order:A:1-A".into()));
    assert_eq!((&shown["version"], &shown["sold"]), (&1.into(), &0.into()));
    let refused = json(&run(&stage, &["order", "show", "A", "2-A", "--json"]));
    assert_eq!((&refused["outcome"], &refused["sold"]), (&"sold_out".into(), &6.into()));
    for (sale, id) in [("A", "4-A"), ("B", "1-A")] {
        let none = run(&stage, &["order", "show", sale, id]);
        assert_eq!(none.status.code(), Some(1));
        assert!(error(&none).contains(&format!("{sale}/{id}")), "{}", error(&none));
    }
    worker.signal("TERM");
    assert_eq!(worker.wait(), Some(0));
    stage.remove().await;
}

fn bare(arguments: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
    bare_floodgate(arguments).envs(variables.iter().copied()).output().expect("floodgate runs")
}

#[test]
fn bad_usage_exits_with_2_and_failures_with_1() {
    for bad in [
        &["sale", "open"][..],
        &["nonsense"],
        &["replay"],
        &["sale", "show", "a.b"],
        &["order", "show", "o-1"],
        &["order", "show", "a.b", "o-1"],
    ] {
        assert_eq!(bare(bad, &[]).status.code(), Some(2), "{bad:?}");
    }
    let missing = bare(&["worker"], &[("FLOODGATE_REDIS_URL", "redis://127.0.0.1:1/")]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(error(&missing).contains("not set: FLOODGATE_AMQP_URL, FLOODGATE_DATABASE_URL"));
}

#[test]
fn a_server_that_is_down_is_named_and_its_password_is_not() {
    let variables = [
        ("FLOODGATE_AMQP_URL", "amqp://me:hush@127.0.0.1:1/%2f"),
        ("FLOODGATE_REDIS_URL", "redis://:hush@127.0.0.1:1/"),
        ("FLOODGATE_DATABASE_URL", "postgres://me:hush@127.0.0.1:1/none"),
    ];
    for (command, server) in [(&["worker"][..], "RabbitMQ"), (&["sale", "list"], "PostgreSQL")] {
        let mut all = variables.to_vec();
        all.push(("FLOODGATE_LEDGER__TIMEOUT_MS", "500"));
        let output = bare(command, &all);
        assert_eq!(output.status.code(), Some(1));
        let text = error(&output);
        assert!(text.contains(server) && !text.contains("hush"), "{text}");
    }
}

#[tokio::test]
async fn check_looks_at_everything_and_says_what_to_do() {
    let stage = Stage::new("check").await;
    let found = |command: &mut std::process::Command| {
        let output = command.output().expect("floodgate runs");
        let findings = json(&output);
        let text = |what: &str, name: &str| {
            let findings = findings.as_array().expect("an array");
            let finding = findings.iter().find(|finding| finding["what"] == what);
            finding.expect("a finding")[name].as_str().unwrap_or_default().to_owned()
        };
        let texts = ["RabbitMQ", "Redis", "PostgreSQL"].map(|what| {
            [text(what, "result"), text(what, "found"), text(what, "to_do")].join(" | ")
        });
        (output.status.code(), texts)
    };
    let arguments = ["check", "--json"];
    let (code, texts) = found(&mut floodgate(&stage, &arguments));
    assert_eq!(code, Some(0), "{texts:?}");
    for text in &texts {
        assert!(text.starts_with("ok | ") && text.contains(|c: char| c.is_ascii_digit()), "{text}");
    }

    let url = stage.deployment.app.settings().database_url.expose_secret().to_owned();
    let role = format!("clerk_{}", std::process::id());
    let pool = sqlx::PgPool::connect(&url).await.expect("connect");
    let make =
        format!("create role {role} login password 'clerk'; grant select on sales to {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&pool).await.expect("a role");
    let mut limited = url::Url::parse(&url).expect("a URL");
    limited.set_username(&role).expect("a name");
    limited.set_password(Some("clerk")).expect("a password");
    let mut command = floodgate(&stage, &arguments);
    command
        .env("FLOODGATE_DATABASE_URL", limited.as_str())
        .env("FLOODGATE_REDIS_URL", "redis://:hush@127.0.0.1:1/");
    let (code, [broker, inventory, ledger]) = found(&mut command);
    assert_eq!(code, Some(1));
    assert!(broker.starts_with("ok"), "{broker}");
    assert!(
        inventory.starts_with("failed") && inventory.contains("FLOODGATE_REDIS_URL"),
        "{inventory}"
    );
    assert!(!inventory.contains("hush"), "{inventory}");
    assert!(ledger.contains("grant insert, update on sales"), "{ledger}");
    assert!(ledger.contains("grant select, insert on decisions"), "{ledger}");
    assert!(ledger.contains("grant select, insert on operator_log"), "{ledger}");
    let drop = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&pool).await.expect("no role");
    pool.close().await;
    stage.remove().await;
}

#[test]
fn a_database_without_a_ledger_says_what_to_run() {
    let settings = crate::harness::settings();
    let (server, _) =
        settings.database_url.expose_secret().rsplit_once('/').expect("a database in the URL");
    let url = format!("{server}/postgres");
    let empty = bare(&["sale", "list"], &[("FLOODGATE_DATABASE_URL", &url)]);
    assert!(error(&empty).contains("run: floodgate migrate"), "{}", error(&empty));
}

#[test]
fn every_command_has_an_example_and_the_settings_are_printed() {
    for command in [
        &["migrate"][..],
        &["worker"],
        &["sale", "open"],
        &["sale", "show"],
        &["sale", "restock"],
        &["sale", "verification"],
        &["sale", "close"],
        &["sale", "list"],
        &["order", "show"],
        &["replay"],
        &["dead-letters", "list"],
        &["dead-letters", "redrive"],
        &["dead-letters", "purge"],
        &["operator-log"],
        &["shards"],
        &["token"],
        &["user-service"],
        &["completions"],
        &["settings"],
    ] {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let help = String::from_utf8(bare(&arguments, &[]).stdout).expect("UTF-8");
        assert!(help.contains("Example"), "{command:?}");
    }
    let printed = String::from_utf8(bare(&["settings"], &[]).stdout).expect("UTF-8");
    assert_eq!(
        printed,
        std::fs::read_to_string(root().join("config/floodgate.toml")).expect("file")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_on_this_machine_is_asked_for_its_health() {
    let address = format!("127.0.0.1:{}", free_port());
    let listen = address.parse().expect("an address");
    let stage = Stage::with("health", |settings| settings.api.listen = listen).await;
    let ask = |arguments: &[&str]| {
        let asked = floodgate(&stage, arguments)
            .env("FLOODGATE_API__LISTEN", &address)
            .env("FLOODGATE_WORKER__LISTEN", "off")
            .output()
            .expect("runs");
        (asked.status.code(), String::from_utf8(asked.stdout).expect("UTF-8"))
    };
    assert_eq!(ask(&["health", "api"]), (Some(1), String::new()), "nothing listens");
    let served = Served::up(&stage.deployment.app).await;
    // Once it has had an answer of every server.
    until(async || ask(&["health", "api"]).0 == Some(0)).await;
    assert_eq!(ask(&["health", "api"]), (Some(0), "ready\n".into()));
    assert_eq!(ask(&["health", "api", "--live"]), (Some(0), "live\n".into()));
    assert_eq!(ask(&["health", "worker"]).0, Some(1), "worker.listen is off");
    assert_eq!(ask(&["health"]).0, Some(2));
    served.stop().await;
    stage.remove().await;
}

#[test]
fn shells_are_told_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let printed = bare(&["completions", shell], &[]);
        let text = String::from_utf8(printed.stdout).expect("UTF-8");
        assert!(text.contains("accept-ledger") && text.contains("rate"), "{shell}: {text}");
    }
}

#[tokio::test]
async fn a_sale_is_exported_as_csv() {
    let mut stage = Stage::new("export").await;
    stage.open(sale("s", 3)).await;
    let all =
        [order("o-2", "s", "u-1", 2), order("o-1", "s", "u-2", 2), order("o-3", "s", "u-3", 1)];
    stage.post_orders(&all).await;
    let worker = stage.worker().await;
    check::settled(&mut stage, &all).await;
    worker.stop().await;
    let export = |more: &[&str]| {
        let exported = run(&stage, &[&["sale", "export", "s"], more].concat());
        assert!(exported.status.success(), "{}", error(&exported));
        let text = String::from_utf8(exported.stdout).expect("UTF-8");
        // But for the times.
        let line = |line: &str| line.split(',').take(5).collect::<Vec<_>>().join(",");
        text.lines().map(line).collect::<Vec<_>>()
    };
    let heading = "order_id,user_id,quantity,outcome,reason";
    assert_eq!(export(&[]), [heading, "o-2,u-1,2,created,", "o-3,u-3,1,created,"]);
    let all = [heading, "o-1,u-2,2,sold_out,", "o-2,u-1,2,created,", "o-3,u-3,1,created,"];
    assert_eq!(export(&["--all"]), all);
    assert_eq!(run(&stage, &["sale", "export", "t"]).status.code(), Some(1));
    stage.remove().await;
}
