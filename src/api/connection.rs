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

use super::problem::{Kind, Problems};

/// What every answer that a request has led to has, and no bare one. A name of
/// [`HEADERS`](super::server::HEADERS).
const MARK: &[u8] = b"x-content-type-options";

/// A connection whose bare answers are replaced by problems.
pub(super) struct Connection {
    stream: Arc<TcpStream>,
    problems: Arc<Problems>,
    /// Whether something was read since the last answer.
    in_head: Arc<AtomicBool>,
    /// What is left of an answer that replaces a bare one, and how long that was.
    replacing: Option<(Vec<u8>, usize)>,
}

/// The other end of a [`Connection`] that the HTTP library has.
pub(super) struct Late {
    stream: Arc<TcpStream>,
    problems: Arc<Problems>,
    in_head: Arc<AtomicBool>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, problems: Arc<Problems>) -> (Self, Late) {
        let (stream, in_head) = (Arc::new(stream), Arc::new(AtomicBool::new(false)));
        let late =
            Late { stream: stream.clone(), problems: problems.clone(), in_head: in_head.clone() };
        (Self { stream, problems, in_head, replacing: None }, late)
    }

    /// What is sent in place of `answer`, if that is a bare one.
    fn replacement(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let status = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let (kind, detail) = match status {
            b"400" => (Kind::BadRequest, "the head of the request is not HTTP/1.1"),
            b"414" | b"431" => (Kind::HeadTooLarge, "the head of the request is too large"),
            _ => return None,
        };
        if answer.windows(MARK.len()).any(|window| window.eq_ignore_ascii_case(MARK)) {
            return None;
        }
        Some(self.problems.closing(&kind.because(detail)))
    }
}

impl Late {
    /// Tells the client that the head of its request did not arrive in time, if it had begun to send one
    /// (RFC 9110 section 15.5.9). Best effort: the connection is closed in any case.
    pub(super) fn tell(self) {
        if self.in_head.load(Ordering::Relaxed) {
            let problem = Kind::Timeout.because("the head of the request did not arrive in time");
            let _ = self.stream.try_write(&self.problems.closing(&problem));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    self.in_head.store(count > 0, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Connection {
    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

/// Writes are not vectored: the library then hands over an answer's head and body in one piece.
impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_head.store(false, Ordering::Relaxed);
        if self.replacing.is_none() {
            self.replacing = self.replacement(bytes).map(|answer| (answer, bytes.len()));
        }
        let Some((mut answer, replaced)) = self.replacing.take() else {
            return self.poll_send(context, bytes);
        };
        while !answer.is_empty() {
            match self.poll_send(context, &answer) {
                Poll::Ready(sent) => drop(answer.drain(..sent?)),
                Poll::Pending => {
                    self.replacing = Some((answer, replaced));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(replaced))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The stream is shared, and tokio shuts a stream down only for its owner.
        let shut = socket2::SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write);
        // A client that has left already is no error.
        Poll::Ready(shut.or_else(|error| {
            if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
        }))
    }
}
