//! A TCP proxy that makes the faults of a network: delay, stall, cut, reset, lost answers.

mod pieces;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use pieces::Pieces;

/// The most bytes that are passed on as one piece.
const PIECE: usize = 64 * 1024;

/// What goes wrong on every link of a proxy. By default, nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// How long each piece takes, each way. Pieces follow each other as closely as they came: it is a distance, not a
    /// bottleneck.
    pub delay: Duration,
    /// Nothing is passed on, either way, until this ends.
    pub stalled: bool,
    /// What the server says is dropped.
    pub answers_dropped: bool,
    /// A link is reset once so many bytes have passed, both ways together.
    pub reset_after: Option<usize>,
    /// New links are closed at once.
    pub refuses: bool,
    /// A link is closed on a request like this.
    pub trap: Option<Trap>,
}

/// A request on which a link is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    /// What the request holds.
    pub holds: Vec<u8>,
    /// Whether the server gets it all the same.
    pub passes: bool,
}

/// A proxy in front of one server. Closes every link when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

/// What a proxy and its links share.
struct Shared {
    server: Mutex<String>,
    faults: watch::Sender<Faults>,
    ends: watch::Sender<Ends>,
    trapped: AtomicUsize,
    pieces: Pieces,
}

/// How often all links were ended, and whether the last time by a reset.
#[derive(Clone, Copy, Default)]
struct Ends {
    count: u64,
    by_reset: bool,
}

/// How a link ends.
enum End {
    /// As TCP ends: what was passed on arrives.
    Close,
    /// By a reset (RST), after which what was under way is lost.
    Reset,
}

impl Faults {
    /// Each piece takes so long, each way.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Nothing is passed on.
    pub fn stall() -> Self {
        Self { stalled: true, ..Self::default() }
    }

    /// What the server says is dropped.
    pub fn without_answers() -> Self {
        Self { answers_dropped: true, ..Self::default() }
    }

    /// A link is closed on a request that holds `text`, before or after the server gets it.
    pub fn trap(text: &str, passes: bool) -> Self {
        Self { trap: Some(Trap { holds: text.as_bytes().to_vec(), passes }), ..Self::default() }
    }
}

impl FaultProxy {
    /// Listens on a free loopback port and passes everything on to `server`, a host and port.
    pub async fn start(server: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: Mutex::new(server.into()),
            faults: watch::Sender::default(),
            ends: watch::Sender::default(),
            trapped: AtomicUsize::new(0),
            pieces: Pieces::start()?,
        });
        let links = shared.clone();
        let accepting = tokio::spawn(async move {
            let mut linked = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if !links.faults.borrow().refuses {
                    linked.spawn(links.clone().link(client));
                }
                while linked.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, shared, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new links to `server`. Those there are stay as they are.
    pub fn lead_to(&self, server: impl Into<String>) {
        *self.shared.server.lock() = server.into();
    }

    /// From now on this goes wrong, on the links there are and on new ones.
    pub fn set(&self, faults: Faults) {
        self.shared.faults.send_replace(faults);
    }

    /// From now on nothing goes wrong.
    pub fn heal(&self) {
        self.set(Faults::default());
    }

    /// Closes every link there is; new ones are made as before.
    pub fn cut(&self) {
        self.end(false);
    }

    /// Resets every link there is; new ones are made as before.
    pub fn reset(&self) {
        self.end(true);
    }

    fn end(&self, by_reset: bool) {
        self.shared.ends.send_modify(|ends| *ends = Ends { count: ends.count + 1, by_reset });
    }

    /// How many links were closed on a request.
    pub fn trapped(&self) -> usize {
        self.shared.trapped.load(Ordering::SeqCst)
    }
}

impl Shared {
    async fn link(self: Arc<Self>, client: TcpStream) {
        let mut ends = self.ends.subscribe();
        let server = self.server.lock().clone();
        let Ok(server) = TcpStream::connect(server).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        // All four halves live until the end is known, so that it can be a reset.
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let passed = AtomicUsize::new(0);
        let up = Way { shared: &self, passed: &passed, to_server: true };
        let down = Way { shared: &self, passed: &passed, to_server: false };
        let end = tokio::select! {
            end = up.pass(&mut from_client, &mut to_server) => end.unwrap_or(End::Close),
            end = down.pass(&mut from_server, &mut to_client) => end.unwrap_or(End::Close),
            changed = ends.changed() => match changed {
                Ok(()) if ends.borrow().by_reset => End::Reset,
                _ => End::Close,
            },
        };
        if matches!(end, End::Reset) {
            for half in [to_client, to_server] {
                let _ = half.as_ref().set_zero_linger();
                // Dropped, it would end its way as TCP ends.
                half.forget();
            }
        }
    }
}

/// One way of a link.
struct Way<'a> {
    shared: &'a Shared,
    passed: &'a AtomicUsize,
    to_server: bool,
}

impl Way<'_> {
    async fn pass(&self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<End> {
        let mut delayed = self.shared.pieces.way();
        let mut buffer = vec![0; PIECE];
        let mut faults = self.shared.faults.subscribe();
        loop {
            let read = tokio::select! {
                biased;
                piece = delayed.next() => {
                    to.write_all(&piece).await?;
                    continue;
                }
                read = from.read(&mut buffer) => read?,
            };
            if read == 0 {
                while !delayed.is_empty() {
                    to.write_all(&delayed.next().await).await?;
                }
                return Ok(End::Close);
            }
            // What has come while it stalls waits, and nothing more is read.
            let Ok(now) = faults.wait_for(|faults| !faults.stalled).await.map(|now| now.clone())
            else {
                return Ok(End::Close);
            };
            let piece = &buffer[..read];
            let is_trapped =
                self.to_server && now.trap.as_ref().is_some_and(|trap| trap.has(piece));
            let is_dropped = if self.to_server {
                is_trapped && !now.trap.as_ref().is_some_and(|trap| trap.passes)
            } else {
                now.answers_dropped
            };
            let before = self.passed.fetch_add(read, Ordering::SeqCst);
            let left = now.reset_after.map_or(read, |most| most.saturating_sub(before).min(read));
            if !is_dropped {
                let piece = &piece[..left];
                if now.delay.is_zero() && delayed.is_empty() {
                    to.write_all(piece).await?;
                } else {
                    delayed.send(piece.to_vec(), now.delay);
                }
            }
            if is_trapped {
                self.shared.trapped.fetch_add(1, Ordering::SeqCst);
                return Ok(End::Close);
            }
            if left < read {
                return Ok(End::Reset);
            }
        }
    }
}

impl Trap {
    fn has(&self, request: &[u8]) -> bool {
        request.windows(self.holds.len().max(1)).any(|window| window == self.holds)
    }
}

#[cfg(test)]
mod tests;
