//! Digests, and ids derived from what they stand for.

use std::fmt::Write;

use ring::digest::{Context, SHA256};
use ring::hmac;

/// Bytes of the digest that an id holds.
const BYTES: usize = 16;

/// The first 32 hex digits of SHA-256 over `parts`. Each is preceded by its length in bytes, as a
/// big-endian u32, so that no other parts give the same input.
pub fn digest<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut digest = Context::new(&SHA256);
    for part in parts {
        // Everything that is put in is bounded far below this.
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        digest.update(&length.to_be_bytes());
        digest.update(part);
    }
    hex(&digest.finish().as_ref()[..BYTES])
}

/// The first 16 bytes of SHA-256 over `bytes`.
pub fn half_digest(bytes: &[u8]) -> [u8; BYTES] {
    let mut half = [0; BYTES];
    half.copy_from_slice(&ring::digest::digest(&SHA256, bytes).as_ref()[..BYTES]);
    half
}

/// HMAC-SHA256 of `text` (RFC 2104).
pub fn keyed(key: &[u8], text: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(tag.as_ref());
    bytes
}

/// SHA-256 over what is put in bit by bit.
pub struct Sha256(Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Sha256 {
    /// Puts `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest, in hex.
    pub fn finish(self) -> String {
        hex(self.0.finish().as_ref())
    }
}

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
