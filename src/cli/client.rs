//! A client for floodgate's own HTTP API, for the commands that load it.
//!
//! One connection carries one request at a time (HTTP/1.1, RFC 9112); who wants more at once opens
//! more of them. There is no pool, no redirect and no TLS between a request and its bytes.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::domain::order::{OrderId, SaleId};

/// The longest body of an answer that is read, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Retry-After` in seconds (RFC 9110 section 10.2.3). A date, which the section allows too
    /// but floodgate never sends, is not read.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Bytes,
}

/// A connection that is kept alive, opened with the first request and again whenever the server has
/// closed it.
pub struct Connection {
    address: SocketAddr,
    host: HeaderValue,
    limit: Duration,
    /// Not there while a request is under way, so that one that fails, or is given up on, takes the
    /// connection with it. The answer to it can't be taken for the answer to the next.
    idle: Option<Link>,
}

/// An open connection. Closed when dropped.
struct Link {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// A connection to `address`. A request may take `limit`, from its start, or from opening the
    /// connection, to the end of the answer.
    pub fn new(address: SocketAddr, limit: Duration) -> anyhow::Result<Self> {
        let host = HeaderValue::try_from(address.to_string())?;
        Ok(Self { address, host, limit, idle: None })
    }

    /// Posts an order, as JSON. `key` goes into `Idempotency-Key`, `wait_s` into `Prefer: wait`
    /// (RFC 7240 section 4.3).
    ///
    /// The order needs an id, as `key` or in `body`: when the server closes a connection that was
    /// kept, it can't be known whether the request was read, and it is sent once more.
    pub async fn post_order(
        &mut self,
        sale: &SaleId,
        body: &[u8],
        key: Option<&OrderId>,
        wait_s: Option<u32>,
    ) -> anyhow::Result<Answer> {
        let mut request = self.request(Method::POST, &format!("/v1/sales/{sale}/orders"), body)?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = key {
            headers.insert("idempotency-key", HeaderValue::try_from(format!("\"{key}\""))?);
        }
        if let Some(seconds) = wait_s {
            headers.insert("prefer", HeaderValue::try_from(format!("wait={seconds}"))?);
        }
        self.send(request).await
    }

    /// Gets `path`, which begins with a slash and may have a query.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        let request = self.request(Method::GET, path, &[])?;
        self.send(request).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let body = Full::new(Bytes::copy_from_slice(body));
        let mut request = Request::builder().method(method).uri(path).body(body)?;
        request.headers_mut().insert(HOST, self.host.clone());
        Ok(request)
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let Ok(answer) = tokio::time::timeout(self.limit, self.exchange(request)).await else {
            bail!("no answer from {} within {:?}", self.address, self.limit);
        };
        answer.with_context(|| format!("no answer from {}", self.address))
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        if let Some(mut link) = self.idle.take()
            && link.sender.ready().await.is_ok()
        {
            match link.sender.send_request(request.clone()).await {
                Ok(response) => return self.receive(link, response).await,
                // The server closed the connection for being idle while the request was on its
                // way; every server may (RFC 9112 section 9.5).
                Err(error) if was_closed(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut link = Link::open(self.address).await?;
        let response = link.sender.send_request(request).await?;
        self.receive(link, response).await
    }

    /// Reads the answer to its end, after which the connection can be used again.
    async fn receive(
        &mut self,
        link: Link,
        response: Response<Incoming>,
    ) -> anyhow::Result<Answer> {
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(anyhow::Error::from_boxed(error).context("unreadable body")),
        };
        self.idle = Some(link);
        let status = head.status.as_u16();
        Ok(Answer { status, retry_after: retry_after(&head.headers), body })
    }
}

impl Link {
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("could not connect")?;
        // A request is written at once; holding back its last bytes for more to come (RFC 896) would
        // only delay it.
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // What goes wrong on the connection is told to the request that it happens to.
            let _ = connection.await;
        });
        Ok(Self { sender, _driver: AbortOnDropHandle::new(driver) })
    }
}

/// Whether the connection ended before there was any answer. An error of the socket means the same:
/// writing to what the other side has closed is answered by a reset.
fn was_closed(error: &hyper::Error) -> bool {
    let is_io = error.source().is_some_and(<dyn Error>::is::<std::io::Error>);
    error.is_canceled() || error.is_closed() || error.is_incomplete_message() || is_io
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    /// Long enough for any machine; no test waits for it.
    const AMPLE: Duration = Duration::from_secs(30);
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    /// What the server does with the next request.
    enum Step {
        /// Writes this.
        Answer(String),
        /// Writes this, then closes the connection.
        AnswerAndClose(String),
        /// Closes the connection.
        Close,
        /// Nothing; waits until the client has gone.
        Silence,
    }

    /// A request as the server got it, and the number of its connection.
    type Seen = (usize, String);

    /// A server that takes `steps`, one for each request, and tells what it has seen.
    async fn server(steps: Vec<Step>) -> (SocketAddr, mpsc::UnboundedReceiver<Seen>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut steps = steps.into_iter();
            let mut next = steps.next();
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                while let Some(request) = read_request(&mut stream).await {
                    tell.send((number, request)).unwrap();
                    let step = next.take().unwrap();
                    next = steps.next();
                    match step {
                        Step::Answer(bytes) => write(&mut stream, &bytes).await,
                        Step::AnswerAndClose(bytes) => {
                            write(&mut stream, &bytes).await;
                            break;
                        }
                        Step::Close => break,
                        Step::Silence => assert!(read_request(&mut stream).await.is_none()),
                    }
                }
            }
        });
        (address, told)
    }

    /// The client may have closed already, when it has read more than it likes.
    async fn write(stream: &mut TcpStream, bytes: &str) {
        let _ = stream.write_all(bytes.as_bytes()).await;
    }

    /// The next request, which ends with its header or, if that is JSON, with a brace.
    async fn read_request(stream: &mut TcpStream) -> Option<String> {
        let mut request = String::new();
        loop {
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await.ok().filter(|&count| count > 0)?;
            request.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            let whole = if request.starts_with("POST") { "}" } else { "\r\n\r\n" };
            if request.ends_with(whole) {
                return Some(request);
            }
        }
    }

    fn answer(bytes: &str) -> Step {
        Step::Answer(bytes.to_owned())
    }

    async fn get(connection: &mut Connection) -> (u16, Bytes) {
        let answer = connection.get("/livez").await.unwrap();
        (answer.status, answer.body)
    }

    #[tokio::test]
    async fn an_order_is_posted_with_its_headers() {
        let (address, mut told) = server(vec![answer(OK), answer(OK)]).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        let (sale, order) = (SaleId::parse("bottles").unwrap(), OrderId::parse("o-1").unwrap());
        connection.post_order(&sale, b"{\"a\":1}", Some(&order), Some(5)).await.unwrap();
        let (_, request) = told.recv().await.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{\"a\":1}");
        let mut lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines.remove(0), "POST /v1/sales/bottles/orders HTTP/1.1");
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "content-length: 7",
                "content-type: application/json",
                &format!("host: {address}"),
                "idempotency-key: \"o-1\"",
                "prefer: wait=5",
            ]
        );
        connection.post_order(&sale, b"{}", None, None).await.unwrap();
        let (_, request) = told.recv().await.unwrap();
        assert!(!request.contains("idempotency-key") && !request.contains("prefer"), "{request}");
    }

    #[tokio::test]
    async fn a_connection_is_kept_for_many_requests() {
        let chunked =
            "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
        let (address, mut told) = server(vec![answer(OK), answer(chunked), answer(OK)]).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        assert_eq!(get(&mut connection).await, (200, "ok".into()));
        assert_eq!(get(&mut connection).await, (404, "no".into()));
        assert_eq!(get(&mut connection).await, (200, "ok".into()));
        for _ in 0..3 {
            assert_eq!(told.recv().await.unwrap().0, 0, "all on the first connection");
        }
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_is_opened_again() {
        let said = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        let until_the_end = "HTTP/1.0 200 OK\r\n\r\nok";
        let closing = |bytes: &str| Step::AnswerAndClose(bytes.to_owned());
        let steps = vec![closing(said), closing(OK), closing(until_the_end), answer(OK)];
        let (address, mut told) = server(steps).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        for number in 0..4 {
            assert_eq!(get(&mut connection).await, (200, "ok".into()));
            assert_eq!(told.recv().await.unwrap().0, number);
        }
    }

    #[tokio::test]
    async fn a_request_on_a_kept_connection_that_is_closed_meanwhile_is_sent_again() {
        let (address, mut told) = server(vec![answer(OK), Step::Close, answer(OK)]).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        get(&mut connection).await;
        assert_eq!(get(&mut connection).await, (200, "ok".into()));
        let numbers = [told.recv().await, told.recv().await, told.recv().await];
        assert_eq!(numbers.map(|seen| seen.unwrap().0), [0, 0, 1]);
    }

    #[tokio::test]
    async fn a_request_on_a_new_connection_that_is_closed_fails() {
        let (address, _told) = server(vec![Step::Close, answer(OK)]).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        let error = connection.get("/livez").await.unwrap_err();
        assert_eq!(error.to_string(), format!("no answer from {address}"));
        assert_eq!(get(&mut connection).await, (200, "ok".into()));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Connection::new(address, AMPLE).unwrap().get("/livez").await.unwrap_err();
        assert!(format!("{error:#}").contains("could not connect"), "{error:#}");
    }

    #[tokio::test]
    async fn a_slow_server_costs_the_limit_and_the_connection() {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
        let steps = vec![Step::Silence, answer(half), answer(OK)];
        let (address, mut told) = server(steps).await;
        let mut connection = Connection::new(address, Duration::from_millis(100)).unwrap();
        for _ in 0..2 {
            let error = connection.get("/livez").await.unwrap_err().to_string();
            assert_eq!(error, format!("no answer from {address} within 100ms"));
        }
        connection.limit = AMPLE;
        assert_eq!(get(&mut connection).await, (200, "ok".into()));
        for number in 0..3 {
            assert_eq!(told.recv().await.unwrap().0, number, "a connection each");
        }
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        let body = |bytes: usize| {
            let text = "x".repeat(bytes);
            answer(&format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n{text}"))
        };
        let steps = vec![body(MAX_BODY_BYTES), body(MAX_BODY_BYTES + 1), answer(OK)];
        let (address, _told) = server(steps).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        assert_eq!(get(&mut connection).await.1.len(), MAX_BODY_BYTES);
        let error = connection.get("/livez").await.unwrap_err();
        assert!(format!("{error:#}").contains("unreadable body"), "{error:#}");
        assert_eq!(get(&mut connection).await, (200, "ok".into()));
    }

    #[tokio::test]
    async fn retry_after_is_read_in_seconds() {
        let busy = |after: &str| {
            let head = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after";
            answer(&format!("{head}: {after}\r\n\r\n"))
        };
        let steps = vec![busy("2"), busy("Fri, 31 Dec 2027 23:59:59 GMT"), busy("-1"), answer(OK)];
        let (address, _told) = server(steps).await;
        let mut connection = Connection::new(address, AMPLE).unwrap();
        for expected in [Some(Duration::from_secs(2)), None, None] {
            let answer = connection.get("/v1/sales").await.unwrap();
            assert_eq!((answer.status, answer.retry_after), (429, expected));
        }
        assert_eq!(connection.get("/").await.unwrap().retry_after, None);
    }
}
