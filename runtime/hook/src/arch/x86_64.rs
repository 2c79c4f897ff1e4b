//! x86-64: the thread pointer is FS, whose first word holds its own address.
//!
//! # Safety
//! The block is defined here and nowhere else, 128 bytes, aligned to 16, zeroed by the loader for each new thread.
//! Initial-exec access needs static TLS, which preloaded libraries have.
#![allow(unsafe_code)]
use crate::thread::PerThread;

core::arch::global_asm!(
    ".pushsection .tbss.__slackwater_thread,\"awT\",@nobits",
    ".p2align 4",
    ".hidden __slackwater_thread",
    ".weak __slackwater_thread",
    ".type __slackwater_thread, @object",
    ".size __slackwater_thread, 128",
    "__slackwater_thread:",
    ".zero 128",
    ".popsection",
);

/// This library's own block of the calling thread: a load and an addition.
#[inline(always)]
pub fn own_block() -> *mut PerThread {
    let p: *mut PerThread;
    // SAFETY: reads the offset that the loader put into our GOT, and FS:0, which holds the thread pointer by the ABI.
    unsafe {
        core::arch::asm!(
            "mov {0}, qword ptr [rip + __slackwater_thread@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) p, options(nostack, pure, readonly)
        );
    }
    p
}

/// The thread pointer.
#[inline(always)]
pub fn thread_pointer() -> usize {
    let p: usize;
    // SAFETY: as above.
    unsafe { core::arch::asm!("mov {0}, qword ptr fs:[0]", out(reg) p, options(nostack, pure, readonly)) };
    p
}

/// Adds one to the 32-bit counter at `offset` from the thread pointer; one instruction, so a signal sees it before or after.
///
/// # Safety
/// `offset` leads to a counter of the calling thread.
#[inline(always)]
pub unsafe fn increment(offset: isize) {
    // SAFETY: by contract. Not `nomem`: it orders the compiler's other accesses.
    unsafe { core::arch::asm!("add dword ptr fs:[{0}], 1", in(reg) offset, options(nostack)) };
}

/// Takes one from it.
///
/// # Safety
/// As [`increment`].
#[inline(always)]
pub unsafe fn decrement(offset: isize) {
    // SAFETY: by contract.
    unsafe { core::arch::asm!("sub dword ptr fs:[{0}], 1", in(reg) offset, options(nostack)) };
}
