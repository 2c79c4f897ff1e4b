//! zstd without malloc: contexts live in memory of ours.
//!
//! zstd's ordinary contexts call malloc, whose lock a stopped thread may hold. `ZSTD_initStaticCCtx` and
//! `ZSTD_initStaticDCtx` (zstd.h, "Static memory management") make them in a given block instead, and such contexts never
//! allocate; so zstd may be used in the agent too, at the cost of linking the C library into it.
//!
//! # Safety
//! Unsafe code here does nothing but call the C library. A context is used only in the function that makes it, while the
//! workspace is borrowed; pointers and lengths come from slices.
#![allow(unsafe_code)]
use crate::{
    layout::MAX_BLOCK,
    sink::{WriteError, zeroed},
};
use alloc::{vec, vec::Vec};
use zstd_sys as c;

/// Fastest of the usual levels: the bound is how long the save takes, not the last byte.
const LEVEL: i32 = 1;

/// Compresses blocks.
pub struct Encoder {
    /// u64: zstd wants 8-byte alignment.
    workspace: Vec<u64>,
    out: Vec<u8>,
}

impl Encoder {
    /// Allocates the working memory (about 1 MiB).
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Encoder, WriteError> {
        // SAFETY: pure computations of sizes.
        let (work, out) = unsafe { (c::ZSTD_estimateCCtxSize(LEVEL), c::ZSTD_compressBound(MAX_BLOCK)) };
        Ok(Encoder { workspace: zeroed(work.div_ceil(8))?, out: zeroed(out)? })
    }

    /// Compresses `block`, of at most [`MAX_BLOCK`] bytes, to one frame; None: zstd refused.
    pub fn compress(&mut self, block: &[u8]) -> Option<&[u8]> {
        // SAFETY: the workspace is writable, 8-aligned and as long as said, and outlives the context's last use below.
        let context = unsafe { c::ZSTD_initStaticCCtx(self.workspace.as_mut_ptr().cast(), self.workspace.len() * 8) };
        if context.is_null() {
            return None;
        }
        // SAFETY: a context just made, and two slices which do not overlap.
        let len = unsafe {
            let (to, room) = (self.out.as_mut_ptr().cast(), self.out.len());
            c::ZSTD_compressCCtx(context, to, room, block.as_ptr().cast(), block.len(), LEVEL)
        };
        // SAFETY: a pure function of the number.
        if unsafe { c::ZSTD_isError(len) } != 0 { None } else { self.out.get(..len) }
    }
}

/// Decompresses the frames in `stored` into `out`: how many bytes they hold; None: damaged, or more than `out` takes.
pub fn decompress(stored: &[u8], out: &mut [u8]) -> Option<usize> {
    // SAFETY: a pure computation of a size.
    let mut workspace = vec![0u64; unsafe { c::ZSTD_estimateDCtxSize() }.div_ceil(8)];
    // SAFETY: the workspace is writable, 8-aligned and as long as said, and outlives the context's last use below.
    let context = unsafe { c::ZSTD_initStaticDCtx(workspace.as_mut_ptr().cast(), workspace.len() * 8) };
    if context.is_null() {
        return None;
    }
    // SAFETY: a context just made, and two slices which do not overlap.
    let len = unsafe {
        c::ZSTD_decompressDCtx(context, out.as_mut_ptr().cast(), out.len(), stored.as_ptr().cast(), stored.len())
    };
    // SAFETY: a pure function of the number.
    (unsafe { c::ZSTD_isError(len) } == 0).then_some(len)
}
