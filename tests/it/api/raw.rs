//! A client that writes its own bytes, for requests that a library would not send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::PATIENCE;
use crate::harness::api::Served;

/// A connection to the API.
pub struct Raw(TcpStream);

impl Raw {
    pub async fn open(served: &Served) -> Self {
        Self(TcpStream::connect(address(served)).await.expect("connect"))
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        // A server that has refused already may have closed its side.
        let _ = self.0.write_all(text.as_ref()).await;
    }

    /// Status and text of all that comes until the server closes; 0 when nothing comes.
    pub async fn answer(mut self) -> (u16, String) {
        let mut bytes = Vec::new();
        let reading = self.0.read_to_end(&mut bytes);
        // What came before a reset is in `bytes` all the same.
        let _ = tokio::time::timeout(PATIENCE, reading).await.expect("the server closes in time");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), text)
    }
}

/// Host and port of the API.
pub fn address(served: &Served) -> &str {
    served.url().strip_prefix("http://").expect("http")
}

/// The head of a request to order from sale `s`, whose body has `length` bytes.
pub fn head(length: usize) -> String {
    format!(
        "POST /v1/sales/s/orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
}
