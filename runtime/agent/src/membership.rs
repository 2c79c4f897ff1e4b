//! What this process is to its computation: member number, generations, restarts; and `slackwater_checkpoint()`, which waits for
//! the next generation.
//!
//! Rules: read by any thread of the program, written by the checkpoint thread alone.
use crate::{conn, follow::gate, sys};
use core::{
    cell::UnsafeCell,
    ffi::c_int,
    sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*},
};
use slackwater_protocol::message::FromProcess;
use slackwater_restorer::plan::RestartInfo;

/// Where the restorer leaves its note.
struct Note(UnsafeCell<RestartInfo>);
// SAFETY: written by the restorer before any thread runs, read by the checkpoint thread.
unsafe impl Sync for Note {}
static NOTE: Note = Note(UnsafeCell::new(RestartInfo::ZERO));

/// Generations finished, and how: what `slackwater_checkpoint` waits for.
static FINISHED: AtomicU32 = AtomicU32::new(0);
static LAST_RESULT: AtomicI32 = AtomicI32::new(0);
static MEMBER: AtomicU64 = AtomicU64::new(0);

/// Number of this process in the computation; 0: it has not joined yet.
pub fn member() -> u64 {
    MEMBER.load(Relaxed)
}

/// This process is `member` from now on.
pub fn join(member: u64) {
    MEMBER.store(member, Relaxed);
}

/// `slackwater_checkpoint()`.
pub fn from_program() -> c_int {
    if gate::excluded() {
        sys::complain("slackwater_checkpoint() between slackwater_no_checkpoint_begin() and its end takes none");
        return -1;
    }
    let (seen, restarts) = (FINISHED.load(Acquire), restarts());
    if slackwater_hook::thread::guarded(|| conn::with(|c| c.send(&FromProcess::RequestCheckpoint))).is_err() {
        return -1;
    }
    while FINISHED.load(Acquire) == seen && restarts == self::restarts() {
        sys::futex_wait(&FINISHED, seen, None);
    }
    if restarts == self::restarts() { LAST_RESULT.load(Acquire) } else { 1 }
}

/// What the restorer has left for this process; all zero where there was none.
pub fn note() -> &'static RestartInfo {
    // SAFETY: written before this process's threads run.
    unsafe { &*NOTE.0.get() }
}

/// How often this process has been restored.
pub fn restarts() -> u64 {
    note().restarts
}

/// The last generation that was committed with this process in it; 0: none yet.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The last generation that was committed with this process in it; 0: none yet.
pub fn generation() -> u64 {
    GENERATION.load(Relaxed)
}

/// `generation` was committed, or is the one that this process was restored from.
pub fn committed(generation: u64) {
    GENERATION.store(generation, Relaxed);
}

/// A generation has ended, with this result for `slackwater_checkpoint`: 0 committed, -1 failed, 1 this is a restart of it.
pub fn finished(result: c_int) {
    LAST_RESULT.store(result, Release);
    FINISHED.fetch_add(1, AcqRel);
    sys::futex_wake(&FINISHED);
}
