//! A TCP proxy that delays what passes, as a network between two machines does.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::task::AbortOnDropHandle;

/// The most bytes that are delayed as one piece.
const PIECE: usize = 64 * 1024;

/// A proxy in front of one server. Closes every link when dropped.
pub struct Proxy {
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

/// Bytes on their way, and where to; none when one side has closed.
struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    to: UnboundedSender<Vec<u8>>,
}

impl Proxy {
    /// Passes everything on to `server` and back, each way after `delay`. Pieces follow each other as
    /// closely as they came: the delay is a distance, not a bottleneck.
    pub async fn start(server: String, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (send, pieces) = mpsc::channel::<Piece>();
        std::thread::Builder::new().name("proxy".to_owned()).spawn(move || deliver(&pieces))?;
        let accepting = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                links.spawn(link(client, server.clone(), delay, send.clone()));
                while links.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Hands every piece over when it is due. All have the same delay, so that the first to come is the first
/// to be due. A thread of its own, because timers of the runtime are no finer than a millisecond.
fn deliver(pieces: &mpsc::Receiver<Piece>) {
    while let Ok(Piece { due, bytes, to }) = pieces.recv() {
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        // Whoever it was for may have gone.
        let _ = to.send(bytes);
    }
}

async fn link(
    client: TcpStream,
    server: String,
    delay: Duration,
    pieces: mpsc::Sender<Piece>,
) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = one_way(from_client, to_server, delay, pieces.clone()) => ended,
        ended = one_way(from_server, to_client, delay, pieces) => ended,
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    pieces: mpsc::Sender<Piece>,
) -> io::Result<()> {
    let (send, mut arriving) = unbounded_channel::<Vec<u8>>();
    let reading = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<_, io::Error>(());
            }
            let (due, bytes) = (Instant::now() + delay, buffer[..read].to_vec());
            // Fails only when the thread has ended, which it does with the last sender.
            let _ = pieces.send(Piece { due, bytes, to: send.clone() });
        }
    };
    let writing = async move {
        while let Some(bytes) = arriving.recv().await {
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each way.
    const DELAY: Duration = Duration::from_millis(40);

    #[tokio::test]
    async fn pieces_are_delayed_both_ways_and_arrive_in_order() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = echo.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = echo.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let proxy = Proxy::start(server, DELAY).await.unwrap();
        let mut links = Vec::new();
        for _ in 0..5 {
            links.push(TcpStream::connect(proxy.address()).await.unwrap());
        }
        let begun = Instant::now();
        for (number, link) in (0_u8..).zip(&mut links) {
            for round in 0..20 {
                link.write_all(&[number, round]).await.unwrap();
            }
        }
        for (number, link) in (0_u8..).zip(&mut links) {
            let mut answer = [0; 40];
            link.read_exact(&mut answer).await.unwrap();
            let expected: Vec<u8> = (0..20).flat_map(|round| [number, round]).collect();
            assert_eq!(answer.as_slice(), expected);
        }
        assert!(begun.elapsed() >= 2 * DELAY);
    }
}
