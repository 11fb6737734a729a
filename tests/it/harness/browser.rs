//! A headless Chromium, driven through chromedriver (the W3C's WebDriver protocol).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::elements::Element;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::{ParseError, Url};

use super::PATIENCE;

const MISSING: &str =
    "these tests need Chromium and chromedriver; scripts/browser installs them, or says how to";

/// One window of a browser of its own; gone, with its profile, when dropped.
pub struct Browser {
    client: Client,
    _driver: Driver,
}

impl Browser {
    pub async fn open() -> Self {
        let driver = Driver::start();
        // The sandbox refuses root and many containers; the only page opened here is floodgate's.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().expect("an object").clone())
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .expect(MISSING);
        Self { client, _driver: driver }
    }

    pub async fn go(&self, url: &str) {
        self.client.goto(url).await.expect("the page opens");
    }

    /// The element once it is there.
    pub async fn find(&self, css: &str) -> Element {
        let wait = self.client.wait().at_most(PATIENCE);
        wait.for_element(Locator::Css(css)).await.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    pub async fn click(&self, css: &str) {
        self.find(css).await.click().await.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Types `text` in place of what an input holds.
    pub async fn fill(&self, css: &str, text: &str) {
        let input = self.find(css).await;
        input.clear().await.expect("an input to empty");
        input.send_keys(text).await.expect("an input to type in");
    }

    /// What `script` returns.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.expect("the script runs")
    }

    /// Waits until an element's text holds `expected`.
    pub async fn sees(&self, css: &str, expected: &str) {
        let text = format!("return document.querySelector({css:?})?.textContent ?? ''");
        self.until(&format!("{css} says {expected:?}"), &text, |value| {
            value.as_str().is_some_and(|text| text.contains(expected))
        })
        .await;
    }

    /// Waits until `script` returns what `good` accepts.
    pub async fn until(&self, what: &str, script: &str, good: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.run(script).await;
            if good(&value) {
                return;
            }
            assert!(Instant::now() < deadline, "not so in time: {what}; it is {value}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A window as wide as that, in a light or dark colour scheme.
    pub async fn look(&self, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// Takes the network away, and gives it back.
    pub async fn offline(&self, offline: bool) {
        let conditions = json!({
            "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1,
        });
        self.devtools("Network.enable", json!({})).await;
        self.devtools("Network.emulateNetworkConditions", conditions).await;
    }

    /// Errors and warnings on the console since the last call, breaches of the content security
    /// policy among them.
    pub async fn complaints(&self) -> Vec<String> {
        let command = Extension { path: "se/log", body: json!({"type": "browser"}) };
        let entries = self.client.issue_cmd(command).await.expect("the console's log");
        let entries = entries.as_array().expect("a list").iter();
        entries
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING")
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        let body = json!({"cmd": command, "params": parameters});
        let command = Extension { path: "goog/cdp/execute", body };
        self.client.issue_cmd(command).await.expect("a command of the developer tools");
    }
}

/// A command of chromedriver's that the standard doesn't have.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

/// chromedriver in a process of its own, on a port that it chose.
struct Driver {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Driver {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect(MISSING);
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let port = lines
            .find_map(|line| {
                let line = line.expect("text");
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse().ok()
            })
            .expect("chromedriver says its port");
        // What it says later must not fill the pipe, nor break it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, port, _folder: folder }
    }

    /// Asks it to close its browsers, which would outlive a chromedriver that is only killed.
    fn shut_down(&self) -> std::io::Result<()> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        let host = format!("127.0.0.1:{}", self.port);
        write!(connection, "GET /shutdown HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        connection.read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.shut_down();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
