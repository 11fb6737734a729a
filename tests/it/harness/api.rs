//! The HTTP API of tests: served in this process, and asked over HTTP.

use floodgate::app::App;
use floodgate::config::Settings;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Running;

/// An API, and a worker beside it, on a free port.
pub struct Served {
    url: String,
    client: Client,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    worker: Option<Running>,
}

impl Served {
    /// Serves `app`, with a worker.
    pub async fn up(app: &App) -> Self {
        Self::start(app, true).await
    }

    /// Serves `app` without a worker, so that what is queued stays queued.
    pub async fn without_worker(app: &App) -> Self {
        Self::start(app, false).await
    }

    async fn start(app: &App, with_worker: bool) -> Self {
        let adapters = app.adapters().await.expect("adapters");
        let worker = with_worker.then(|| Running::of(|stop| app.run_worker(&adapters, stop)));
        let api = app.api(&adapters).await.expect("API");
        let listener = app.listener(&api).expect("listen");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let stop = CancellationToken::new();
        let until = stop.clone();
        let serving = tokio::spawn(async move { api.serve(listener, until).await.expect("serve") });
        Self { url, client: client(), stop, serving, worker }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    /// Drains both.
    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.expect("no panic");
        if let Some(worker) = self.worker {
            worker.stop().await;
        }
    }
}

/// A client of HTTP.
pub fn client() -> Client {
    // As HttpVerifier does: the library leaves the choice of cryptography open.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new()
}

/// Settings for an API on a free port.
pub fn on_free_port(settings: &mut Settings) {
    settings.api.listen = "127.0.0.1:0".parse().expect("address");
}

/// Status and JSON of an answer.
pub async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), json(response).await)
}

pub async fn json(response: Response) -> Value {
    let text = response.text().await.expect("a body");
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
}

/// The word in the `type` of a problem.
pub fn problem(body: &Value) -> &str {
    body["type"]
        .as_str()
        .and_then(|text| Some(text.split_once("/problems/")?.1))
        .expect("a problem")
}
