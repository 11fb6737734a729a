//! What the log says of a server that is away for a while: that it went, and that it is back.

use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use secrecy::ExposeSecret;

use floodgate_fault_proxy::FaultProxy;

use crate::harness::process::{floodgate, signal};
use crate::harness::{PATIENCE, Stage, order, sale, until};

const REDIS_PREFIX: &str = "redis://";

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
    let servers = crate::harness::settings();
    let (_, database_address) = crate::harness::database_address(&servers);
    let (broker, broker_address) = crate::harness::broker_address(&servers);
    let redis = servers.redis_url.expose_secret().to_owned();
    let redis_address =
        redis.trim_start_matches(REDIS_PREFIX).split('/').next().expect("an address");
    for (server, variable, address) in [
        ("PostgreSQL", "FLOODGATE_DATABASE_URL", database_address.as_str()),
        ("Redis", "FLOODGATE_REDIS_URL", redis_address),
        ("RabbitMQ", "FLOODGATE_AMQP_URL", broker_address.as_str()),
    ] {
        let mut stage = Stage::new("outage").await;
        stage.open(sale("s", 1000)).await;
        let proxy = FaultProxy::start(address.to_owned()).await.expect("a proxy");
        let url = match server {
            "PostgreSQL" => stage.deployment.app.settings().database_url.expose_secret().to_owned(),
            "Redis" => redis.clone(),
            _ => broker.clone(),
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = std::fs::File::create(&path).expect("a log");
        let mut command = floodgate(&stage, &["worker"]);
        let mut worker = command
            .env(variable, url.replace(address, &proxy.address().to_string()))
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
        proxy.lead_to(address.to_owned());
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
