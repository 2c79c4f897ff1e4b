//! Threads that a checkpoint must leave alone: those with a seccomp filter of the program's own.
//!
//! A thread runs our stop handler under its filter, which may end the process for a system call that it does not know; and
//! no restart can put the filter back without privilege. So such a program is refused, before anybody is stopped. A filter
//! that the process has had from its beginning (a container's, systemd's) holds for the checkpoint thread too, and is no matter.
use crate::{
    sys,
    text::{dec, value},
};
use alloc::{ffi::CString, format, string::String};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// [`mark`] of the process in its first moment, or that of its restart.
static AT_FIRST: AtomicU64 = AtomicU64::new(0);

/// Mode and number of filters of a thread, as one number (Seccomp_filters: Linux 5.9).
fn mark(status: &[u8]) -> u64 {
    let number = |key| value(status, key).map_or(0, dec);
    number("Seccomp") << 32 | number("Seccomp_filters")
}

/// While all of the process's threads have the same filters, for nothing of the program has run.
pub fn remember() {
    if let Ok(status) = sys::read_file(c"/proc/thread-self/status") {
        AT_FIRST.store(mark(&status), Relaxed);
    }
}

/// # Errors
/// The thread, and what to do.
pub fn refuse() -> Result<(), String> {
    let me = sys::gettid();
    for tid in sys::numbers_in(c"/proc/self/task").unwrap_or_default().into_iter().filter(|&tid| tid != me) {
        let Ok(path) = CString::new(format!("/proc/self/task/{tid}/status")) else { continue };
        // A thread that has just ended has no filter.
        let Ok(status) = sys::read_file(&path) else { continue };
        if mark(&status) != AT_FIRST.load(Relaxed) {
            return Err(format!(
                "thread {tid} of process {} has put itself under a seccomp filter, which may forbid what a checkpoint does, and which no restart can bring back: run the program without its sandbox",
                sys::getpid()
            ));
        }
    }
    Ok(())
}
