//! What the log says of a server that is away for a while: that it went, and that it is back.

use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use secrecy::ExposeSecret;

use crate::harness::process::{floodgate, signal};
use crate::harness::{PATIENCE, Stage, address, order, sale, through_proxy, until};

/// Waits for the end of a process, while everything else goes on here.
async fn ended(process: &mut Child) -> ExitStatus {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().expect("a process") {
            return status;
        }
        assert!(tokio::time::Instant::now() < deadline, "it does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_outage_is_one_line_and_one_when_the_server_is_back() {
    for (server, variable) in [
        ("PostgreSQL", "FLOODGATE_DATABASE_URL"),
        ("Redis", "FLOODGATE_REDIS_URL"),
        ("RabbitMQ", "FLOODGATE_AMQP_URL"),
    ] {
        let mut stage = Stage::new("outage").await;
        stage.open(sale("s", 1000)).await;
        let settings = stage.deployment.app.settings();
        let direct = match server {
            "PostgreSQL" => settings.database_url.expose_secret(),
            "Redis" => settings.redis_url.expose_secret(),
            _ => settings.amqp_url.expose_secret(),
        };
        let address = address(direct).to_owned();
        let (proxy, through) = through_proxy(direct).await;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = std::fs::File::create(&path).expect("a log");
        let mut command = floodgate(&stage, &["worker"]);
        let mut worker = command
            .env(variable, through)
            .env("FLOODGATE_LOG__FILTER", "info")
            .stderr(Stdio::from(log))
            .spawn()
            .expect("a worker starts");
        let mut events = 0;
        let mut buy = async |stage: &mut Stage, n: usize| {
            for m in 0..n {
                let id = format!("o-{events}-{m}");
                stage.post_orders(&[order(&id, "s", &id, 1)]).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            events += n;
        };
        buy(&mut stage, 20).await;
        for _ in 0..20 {
            stage.event().await;
        }
        proxy.lead_to("127.0.0.1:1");
        proxy.cut();
        buy(&mut stage, 150).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        proxy.lead_to(address);
        for _ in 0..150 {
            stage.event().await;
        }
        let said = || std::fs::read_to_string(&path).expect("a log");
        until(async || {
            // Redis is asked again only with the next orders.
            stage.post_orders(&[order("last", "s", "last", 1)]).await;
            said().contains("available again")
        })
        .await;
        signal(worker.id(), "TERM");
        let ended = ended(&mut worker).await;
        let said = said();
        assert!(ended.success(), "{server}: {said}");
        let lines = |text: &str| said.lines().filter(|line| line.contains(text)).count();
        assert_eq!(lines("WARN"), 1, "{said}");
        assert_eq!((lines("unavailable;"), lines("available again")), (1, 1), "{said}");
        assert_eq!(lines(&format!("server=\"{server}\"")), 2, "{said}");
        assert_eq!((lines("ERROR"), lines("ping on idle")), (0, 0), "{said}");
        stage.remove().await;
    }
}
