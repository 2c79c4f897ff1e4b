//! The checksum of everything in an image: XXH3, 64 bits, seed 0.
//!
//! It guards against damage (disks, transfers, truncation), not against an attacker: images are 0600, and every decoder
//! behind a checksum is bounded all the same. XXH3 because it runs at the speed of memory with plain SSE2 or NEON, which
//! every processor of these architectures has; crc32fast without std has no run-time detection and falls back to tables.
use alloc::boxed::Box;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// XXH3-64 of `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The same over bytes that come in pieces.
pub struct Hasher(Box<Xxh3>);

impl Hasher {
    /// Nothing hashed yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Hasher {
        Hasher(Box::new(Xxh3::new()))
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum so far; and begin anew.
    pub fn finish(&mut self) -> u64 {
        let sum = self.0.digest();
        self.0.reset();
        sum
    }
}
