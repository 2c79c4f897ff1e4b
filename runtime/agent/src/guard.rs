//! The wrapper guard as the stop handler sees it.
//!
//! # Safety
//! A thread's block is touched by that thread alone.
use crate::{asleep::Asleep, stop, sys};
use slackwater_hook::thread::{per_thread, set_park};

/// Is the calling thread inside a wrapper?
pub fn in_wrapper() -> bool {
    // SAFETY: this thread's own block.
    unsafe { (&raw const (*per_thread()).wrapper_depth).read_volatile() != 0 }
}

/// In the stop handler: true if this thread is inside a wrapper and will park as it leaves.
pub fn defer_stop() -> bool {
    if !in_wrapper() {
        return false;
    }
    // SAFETY: this thread's own block.
    unsafe { (&raw mut (*per_thread()).stop_requested).write_volatile(1) };
    true
}

/// Parks the calling thread as it leaves its outermost wrapper: by the checkpoint signal, once more, so that there is one
/// way to park.
extern "C" fn park() {
    // SAFETY: this thread's own block.
    unsafe { (&raw mut (*per_thread()).stop_requested).write_volatile(0) };
    _ = stop::signal_thread(sys::gettid(), Asleep::UNKNOWN);
}

slackwater_hook::export_thread_block!(park);

/// Once, in the constructor.
pub fn install() {
    set_park(park);
}
