//! Reading lines that may have no end.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The longest line, and the longest record of a CSV file, in bytes: what a worker can be made to accept.
const MAX_LINE_BYTES: usize = 16 << 20;
/// What readers may read ahead of the line that is being taken.
const READ_AHEAD: usize = 64 << 10;

/// Bytes that may be read until a line is complete.
#[derive(Clone)]
pub(super) struct Allowance(Arc<AtomicUsize>);

impl Default for Allowance {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(MAX_LINE_BYTES + READ_AHEAD)))
    }
}

impl Allowance {
    /// Another line begins.
    pub(super) fn renew(&self) {
        self.0.store(MAX_LINE_BYTES + READ_AHEAD, Ordering::Relaxed);
    }
}

/// A reader that fails when a line takes more than its allowance.
pub(super) struct Bounded<R> {
    inner: R,
    left: Allowance,
}

impl<R> Bounded<R> {
    pub(super) fn new(inner: R, left: Allowance) -> Self {
        Self { inner, left }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.0.load(Ordering::Relaxed);
        if left == 0 {
            let problem = format!("a line is longer than {MAX_LINE_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let most = buffer.len().min(left);
        let length = self.inner.read(&mut buffer[..most])?;
        self.left.0.store(left - length, Ordering::Relaxed);
        Ok(length)
    }
}
