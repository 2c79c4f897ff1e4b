//! aarch64: the thread pointer is TPIDR_EL0.
//!
//! # Safety
//! As in the x86-64 file.
#![allow(unsafe_code)]
use crate::thread::PerThread;

core::arch::global_asm!(
    ".pushsection .tbss.__slackwater_thread,\"awT\",%nobits",
    ".p2align 4",
    ".hidden __slackwater_thread",
    ".weak __slackwater_thread",
    ".type __slackwater_thread, %object",
    ".size __slackwater_thread, 128",
    "__slackwater_thread:",
    ".zero 128",
    ".popsection",
);

/// This library's own block of the calling thread.
#[inline(always)]
pub fn own_block() -> *mut PerThread {
    let p: *mut PerThread;
    // SAFETY: reads the offset that the loader put into our GOT, and the thread pointer.
    unsafe {
        core::arch::asm!(
            "mrs {1}, tpidr_el0",
            "adrp {0}, :gottprel:__slackwater_thread",
            "ldr {0}, [{0}, :gottprel_lo12:__slackwater_thread]",
            "add {0}, {0}, {1}",
            out(reg) p, out(reg) _, options(nostack, pure, readonly)
        );
    }
    p
}

/// The thread pointer.
#[inline(always)]
pub fn thread_pointer() -> usize {
    let p: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mrs {0}, tpidr_el0", out(reg) p, options(nostack, pure, readonly)) };
    p
}

/// Adds one to the 32-bit counter at `offset` from the thread pointer. A signal between the load and the store leaves the
/// counter as it found it, so the sum is right.
///
/// # Safety
/// `offset` leads to a counter of the calling thread.
#[inline(always)]
pub unsafe fn increment(offset: isize) {
    let p = thread_pointer().wrapping_add_signed(offset) as *mut u32;
    // SAFETY: by contract.
    unsafe { p.write_volatile(p.read_volatile().wrapping_add(1)) };
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}

/// Takes one from it.
///
/// # Safety
/// As [`increment`].
#[inline(always)]
pub unsafe fn decrement(offset: isize) {
    let p = thread_pointer().wrapping_add_signed(offset) as *mut u32;
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    // SAFETY: by contract.
    unsafe { p.write_volatile(p.read_volatile().wrapping_sub(1)) };
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}
