//! What has to be known of the C library under us; probed once, in one place.
//!
//! # Safety
//! Reads constants that glibc exports for this purpose.
use core::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use slackwater_hook::elf;

/// Offset of the rseq area from the thread pointer; 0: not registered by libc.
static RSEQ_OFFSET: AtomicIsize = AtomicIsize::new(0);

/// In the constructor: the loader's structures are stable then.
pub fn probe() {
    let of = |name| elf::first(name, None);
    if let (Some(offset), Some(size)) = (of(c"__rseq_offset"), of(c"__rseq_size")) {
        // SAFETY: glibc 2.35 and later: `const ptrdiff_t __rseq_offset; const unsigned int __rseq_size` (<sys/rseq.h>).
        unsafe {
            if *(size as *const u32) != 0 {
                RSEQ_OFFSET.store(*(offset as *const isize), Relaxed);
            }
        }
    }
}

/// The rseq area of the thread whose FS base is `fs`; 0: none.
pub fn rseq_area(fs: u64) -> u64 {
    match RSEQ_OFFSET.load(Relaxed) {
        0 => 0,
        o => fs.wrapping_add_signed(o as i64),
    }
}
