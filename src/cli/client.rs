//! A client for floodgate's own HTTP API, for commands that send it many orders.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder};

use crate::domain::order::{OrderId, SaleId};
use crate::http;

/// One for the process, so that connections are kept, as many as there are requests at a time.
static CLIENT: LazyLock<reqwest::Result<Client>> = LazyLock::new(|| {
    // The API is on this machine, and in plain text.
    http::client().no_proxy().tls_certs_only([]).build()
});

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Retry-After` in seconds (RFC 9110 section 10.2.3). A date, which the section allows too
    /// but floodgate never sends, is not read.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Vec<u8>,
}

/// A client of the API at one address.
#[derive(Debug, Clone)]
pub struct ApiClient {
    client: Client,
    address: SocketAddr,
    limit: Duration,
}

impl ApiClient {
    /// A client of the API at `address`. A request and its answer may take `limit` together.
    pub fn new(address: SocketAddr, limit: Duration) -> anyhow::Result<Self> {
        let client = CLIENT.as_ref().context("no HTTP client")?.clone();
        Ok(Self { client, address, limit })
    }

    /// Posts an order, as JSON. `key` goes into `Idempotency-Key`, `wait_s` into `Prefer: wait`
    /// (RFC 7240 section 4.3).
    ///
    /// The order needs an id, as `key` or in `body`: when the server closes a connection that was
    /// kept, it can't be known whether the request was read, and it is sent once more.
    pub async fn post_order(
        &self,
        sale: &SaleId,
        body: &[u8],
        key: Option<&OrderId>,
        wait_s: Option<u32>,
    ) -> anyhow::Result<Answer> {
        let url = format!("http://{}/v1/sales/{sale}/orders", self.address);
        let mut request = self.client.post(url).body(body.to_vec());
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", format!("\"{key}\""));
        }
        if let Some(seconds) = wait_s {
            request = request.header("prefer", format!("wait={seconds}"));
        }
        self.send(request).await
    }

    /// Gets `path`, which begins with a slash and may have a query.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(self.client.get(format!("http://{}{path}", self.address))).await
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Answer> {
        let request = request.timeout(self.limit);
        let again = request.try_clone();
        let answer = match (exchange(request).await, again) {
            (Err(error), Some(again)) if was_closed(&error) => exchange(again).await,
            (answer, _) => answer,
        };
        answer.with_context(|| format!("no answer from {}", self.address))
    }
}

async fn exchange(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let (status, retry_after) = (response.status().as_u16(), retry_after.map(Duration::from_secs));
    Ok(Answer { status, retry_after, body: response.bytes().await?.to_vec() })
}

/// Whether the connection ended before there was any answer, as a kept one does when the server closes it
/// for being idle (RFC 9112 section 9.5).
fn was_closed(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// A server that takes a connection for each of `answers`, reads one request there, answers and closes.
    /// Returns its address, and what it was sent.
    async fn server(answers: &'static [&'static str]) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).await.unwrap();
                seen.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        (address, serving)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const BUSY: &str = "HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\nretry-after: 2\r\n\r\n";
    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn an_order_is_posted_with_its_headers() {
        let (address, seen) = server(&[OK]).await;
        let client = ApiClient::new(address, LIMIT).unwrap();
        let (sale, order) = (SaleId::parse("bottles").unwrap(), OrderId::parse("o-1").unwrap());
        client.post_order(&sale, b"{\"a\":1}", Some(&order), Some(5)).await.unwrap();
        let request = &seen.await.unwrap()[0];
        assert!(request.starts_with("POST /v1/sales/bottles/orders HTTP/1.1"), "{request}");
        for line in ["content-type: application/json", "idempotency-key: \"o-1\"", "prefer: wait=5"]
        {
            assert!(request.contains(&format!("{line}\r\n")), "{line}: {request}");
        }
    }

    #[tokio::test]
    async fn a_request_on_a_connection_that_was_closed_is_sent_again() {
        let (address, seen) = server(&[OK, "", BUSY]).await;
        let client = ApiClient::new(address, LIMIT).unwrap();
        assert_eq!(client.get("/livez").await.unwrap().body, b"ok");
        let busy = client.get("/livez").await.unwrap();
        assert_eq!((busy.status, busy.retry_after), (429, Some(Duration::from_secs(2))));
        assert_eq!(seen.await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = ApiClient::new(address, LIMIT).unwrap().get("/livez").await.unwrap_err();
        assert_eq!(error.to_string(), format!("no answer from {address}"));
    }
}
