//! Ids derived from what they stand for.

use std::fmt::Write;

use ring::digest::{Context, SHA256};

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
    digest.finish().as_ref()[..BYTES].iter().fold(String::new(), |mut id, byte| {
        let _ = write!(id, "{byte:02x}");
        id
    })
}
