//! Pieces that are delivered when they are due.

use std::future::pending;
use std::io;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Delivers the delayed pieces of all links of a proxy.
pub(crate) struct Pieces(mpsc::Sender<Piece>);

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    to: UnboundedSender<Vec<u8>>,
}

/// The pieces on one way of a link.
pub(crate) struct Delayed {
    pieces: mpsc::Sender<Piece>,
    to: UnboundedSender<Vec<u8>>,
    arriving: UnboundedReceiver<Vec<u8>>,
    under_way: usize,
}

impl Pieces {
    /// Starts a thread, because timers of the runtime are no finer than a millisecond. It ends with the last
    /// link.
    pub(crate) fn start() -> io::Result<Self> {
        let (send, pieces) = mpsc::channel();
        std::thread::Builder::new().name("proxy".to_owned()).spawn(move || deliver(&pieces))?;
        Ok(Self(send))
    }

    pub(crate) fn way(&self) -> Delayed {
        let (to, arriving) = unbounded_channel();
        Delayed { pieces: self.0.clone(), to, arriving, under_way: 0 }
    }
}

/// Hands every piece over when it is due, and in the order of sending: with one delay the first to be sent is the
/// first to be due.
fn deliver(pieces: &mpsc::Receiver<Piece>) {
    while let Ok(Piece { due, bytes, to }) = pieces.recv() {
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        // Whoever it was for may have gone.
        let _ = to.send(bytes);
    }
}

impl Delayed {
    pub(crate) fn send(&mut self, bytes: Vec<u8>, delay: Duration) {
        let piece = Piece { due: Instant::now() + delay, bytes, to: self.to.clone() };
        if self.pieces.send(piece).is_ok() {
            self.under_way += 1;
        }
    }

    /// Nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.under_way == 0
    }

    /// The next piece, once it is due.
    pub(crate) async fn next(&mut self) -> Vec<u8> {
        match self.arriving.recv().await {
            Some(bytes) => {
                self.under_way -= 1;
                bytes
            }
            None => pending().await,
        }
    }
}
