//! The bytes of a connection, and what is answered where no request could be read.
//!
//! The HTTP library answers a head that it can't read by itself, with a status and no body, and closes a
//! connection whose head does not arrive in time without a word. Clients of this API get a problem there
//! too, so its bare answers are replaced on their way out.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::problem::{ProblemType, Problems};

/// What every answer that a request has led to has, and no bare one. A name of
/// [`HEADERS`](super::server::HEADERS).
const MARK: &[u8] = b"x-content-type-options";

/// A connection whose bare answers are replaced by problems.
pub(super) struct Connection {
    stream: TcpStream,
    problems: Arc<Problems>,
    /// Whether something was read since the last answer.
    in_head: bool,
    /// What is left of an answer that replaces a bare one, and how long that was.
    replacing: Option<(Vec<u8>, usize)>,
    is_late: Arc<AtomicBool>,
}

/// Says of a [`Connection`] that the head of a request did not arrive in time.
pub(super) struct Late(Arc<AtomicBool>);

impl Late {
    /// Has the connection tell its client so when it is dropped.
    pub(super) fn tell(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, problems: Arc<Problems>) -> (Self, Late) {
        let is_late = Arc::<AtomicBool>::default();
        let late = Late(is_late.clone());
        (Self { stream, problems, in_head: false, replacing: None, is_late }, late)
    }

    /// What is sent in place of `answer`, if that is a bare one.
    fn replacement(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let (kind, detail) = match status {
            b"400" => (ProblemType::BadRequest, "the head of the request is not HTTP/1.1"),
            b"414" | b"431" => (ProblemType::HeadTooLarge, "the head of the request is too large"),
            _ => return None,
        };
        if answer.windows(MARK.len()).any(|window| window.eq_ignore_ascii_case(MARK)) {
            return None;
        }
        Some(self.problems.closing(&kind.because(detail)))
    }
}

/// A client that has begun to send a head is told that it was too slow (RFC 9110 section 15.5.9), as well as
/// that can be done without waiting. A client that is silent is not spoken to.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.in_head && self.is_late.load(Ordering::Relaxed) {
            let problem =
                ProblemType::Timeout.because("the head of the request did not arrive in time");
            let _ = self.stream.try_write(&self.problems.closing(&problem));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.in_head = buffer.filled().len() > before;
        Poll::Ready(Ok(()))
    }
}

/// Writes are not vectored: the library then hands over an answer's head and body in one piece.
impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_head = false;
        if self.replacing.is_none() {
            self.replacing = self.replacement(bytes).map(|answer| (answer, bytes.len()));
        }
        let Some((mut answer, replaced)) = self.replacing.take() else {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        };
        while !answer.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &answer) {
                Poll::Ready(sent) => drop(answer.drain(..sent?)),
                Poll::Pending => {
                    self.replacing = Some((answer, replaced));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(replaced))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
