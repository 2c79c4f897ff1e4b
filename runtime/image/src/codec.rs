//! Zero pages, and blocks compressed and decompressed.
//!
//! Rules: no allocation in compressing but at [`Compressor::new`]; decoding writes into a buffer whose length the index has bounded,
//! and content that does not fill it exactly is an error.
use crate::layout::{Codec, MAX_BLOCK};
use crate::sink::{WriteError, zeroed};
use alloc::vec::Vec;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// Whether all bytes are zero. Looks at 64 bytes at a time, so that a page with content costs one cache line, mostly.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut lines = bytes.chunks_exact(64);
    lines.all(|line| line.iter().fold(0, |all, b| all | b) == 0) && lines.remainder().iter().all(|b| *b == 0)
}

/// A codec with its working memory.
pub enum Compressor {
    /// Stores as is.
    Raw,
    /// LZ4 blocks.
    Lz4 {
        /// Hash table, reused.
        table: CompressTable,
        /// Output.
        out: Vec<u8>,
    },
    /// zstd frames.
    #[cfg(feature = "zstd")]
    Zstd(crate::zstd::Encoder),
}

impl Compressor {
    /// Working memory for `codec`.
    ///
    /// # Errors
    /// This build cannot write it, or there is no memory.
    pub fn new(codec: Codec) -> Result<Compressor, WriteError> {
        match codec {
            Codec::Raw => Ok(Compressor::Raw),
            Codec::Lz4 => {
                let out = zeroed(get_maximum_output_size(MAX_BLOCK))?;
                Ok(Compressor::Lz4 { table: CompressTable::large(), out })
            }
            #[cfg(feature = "zstd")]
            Codec::Zstd => Ok(Compressor::Zstd(crate::zstd::Encoder::new()?)),
            _ => Err(WriteError::Options("this codec")),
        }
    }

    /// Compresses at most [`MAX_BLOCK`] bytes. None: it does not save an eighth, so that raw is better (a restart reads
    /// raw pages straight into place).
    pub fn compress(&mut self, block: &[u8]) -> Option<(Codec, &[u8])> {
        let (codec, out) = match self {
            Compressor::Raw => return None,
            Compressor::Lz4 { table, out } => {
                let len = compress_into_with_table(block, out, table).ok()?;
                (Codec::Lz4, out.get(..len)?)
            }
            #[cfg(feature = "zstd")]
            Compressor::Zstd(encoder) => (Codec::Zstd, encoder.compress(block)?),
        };
        (out.len() <= block.len() - block.len() / 8).then_some((codec, out))
    }
}

/// Decompresses a block which must fill `out` exactly.
///
/// # Errors
/// What is wrong, in words.
pub fn decompress(codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let len = match codec {
        Codec::Lz4 => decompress_into(stored, out).map_err(|_| "its content is no LZ4 block of that length")?,
        #[cfg(feature = "zstd")]
        Codec::Zstd => crate::zstd::decompress(stored, out).ok_or("its content is no zstd frame of that length")?,
        #[cfg(not(feature = "zstd"))]
        Codec::Zstd => return Err("it is compressed with zstd, and this build of slackwater is without it"),
        Codec::Zero | Codec::Raw => return Err("it is not compressed"),
    };
    if len == out.len() { Ok(()) } else { Err("its content is too short for its pages") }
}
