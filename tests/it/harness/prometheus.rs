//! A Prometheus of a test's own.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Client;
use serde_json::Value;
use tempfile::TempDir;

use super::process::free_port;
use super::{PATIENCE, until};

/// Scrapes some processes each second; killed when dropped.
pub struct Prometheus {
    child: Child,
    url: String,
    client: Client,
    _folder: TempDir,
}

impl Prometheus {
    /// Scrapes these targets, each with its job.
    pub fn start(targets: &[(&str, String)]) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let jobs = targets.iter().map(|(job, address)| {
            format!("  - job_name: {job}\n    static_configs: [{{ targets: [\"{address}\"] }}]\n")
        });
        let jobs: String = jobs.collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\nscrape_configs:\n{jobs}"
        );
        let path = folder.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("a configuration");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .expect("prometheus is not installed; run scripts/prometheus");
        Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            client: Client::new(),
            _folder: folder,
        }
    }

    /// What an expression gives now: series with their values. Nothing until Prometheus is up.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let query = [("query", expression)];
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url), query);
        let asked = self.client.get(url.expect("a URL")).timeout(PATIENCE).send().await;
        let Ok(answer) = asked else { return Vec::new() };
        // While it starts it says so in words.
        let Ok(answer) = answer.json::<Value>().await else { return Vec::new() };
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().expect("a vector").clone()
    }

    /// Waits until an expression gives something, or nothing.
    pub async fn until(&self, expression: &str, expected: bool) {
        let told = async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.query(expression).await.is_empty() != expected
        };
        let deadline = tokio::time::Instant::now() + 2 * PATIENCE;
        while !told().await {
            assert!(tokio::time::Instant::now() < deadline, "never {expected}: {expression}");
        }
    }

    /// Waits until it has scraped every target.
    pub async fn until_it_scrapes(&self, targets: usize) {
        until(async || self.query("up == 1").await.len() == targets).await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
