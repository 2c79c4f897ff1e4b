//! Signals that wait: for a thread alone, and for the process.
//!
//! The kernel shows what waits only by handing it out, so with all threads parked each queue is emptied into a table of ours
//! and filled again at once, in order. In a restored process it is filled from that same table.
//!
//! Rules: a queue is emptied and filled by its own thread, for a siginfo that kill(2) or the kernel made may be sent by
//! nobody but the receiving thread itself (rt_sigqueueinfo(2)). The process's queue is emptied first, by the checkpoint
//! thread, so that what the threads find then is theirs alone; it is filled by the leader, whose thread id is the process's.
//! What runs in the parked threads allocates nothing: siginfos are written where they stay.
use crate::sys;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};

/// sizeof(siginfo_t)
const SIGINFO: usize = 128;
/// Room (address space, not memory); RLIMIT_SIGPENDING is some tens of thousands at most.
const ROOM: usize = 1 << 16;

/// One signal that waits.
#[repr(C)]
struct Entry {
    /// The thread for which it waits; [`PROCESS`]: for whichever takes it.
    owner: i32,
    info: [u8; SIGINFO],
}

/// Owner of the process's queue.
pub const PROCESS: i32 = 0;

static TABLE: AtomicPtr<Entry> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// The leader had ended when the table was filled.
static LEADERLESS: AtomicBool = AtomicBool::new(false);

/// Reserves the table.
pub fn install() -> sys::Result<()> {
    if TABLE.load(Acquire).is_null() {
        let table = sys::map_anonymous(ROOM * size_of::<Entry>(), libc::MAP_NORESERVE)?;
        TABLE.store(table.cast(), Release);
    }
    Ok(())
}

/// Forgets what an earlier stop found.
pub fn clear(leaderless: bool) {
    COUNT.store(0, Release);
    LEADERLESS.store(leaderless, Release);
}

/// Empties what the calling thread can take of `set` into the table, as `owner`'s.
pub fn take(owner: i32, set: u64) {
    let now = [0u64; 2];
    while COUNT.load(Acquire) < ROOM {
        let at = COUNT.fetch_add(1, AcqRel);
        if at >= ROOM {
            return;
        }
        // SAFETY: the entry is the caller's alone, by the counter; rt_sigtimedwait fills in a siginfo.
        unsafe {
            let entry = &mut *TABLE.load(Acquire).add(at);
            entry.owner = owner;
            if sc!(rt_sigtimedwait, &raw const set, entry.info.as_mut_ptr(), now.as_ptr(), 8).is_err() {
                // Nobody's: an entry of no signal.
                entry.info[..4].fill(0);
                return;
            }
            if is_ours(&entry.info) {
                entry.info[..4].fill(0);
            }
        }
    }
}

/// The checkpoint signal, sent to a thread that had parked by an earlier one.
fn is_ours(info: &[u8; SIGINFO]) -> bool {
    let int = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    (int(0), int(8)) == (crate::stop::signal(), libc::SI_QUEUE)
}

/// The process's signals that wait, taken by the (checkpoint) thread that has none of its own.
pub fn take_process() {
    // The checkpoint signal is how others ring for this thread.
    let set = waiting() & !(1 << (crate::stop::signal() - 1));
    if set != 0 {
        take(PROCESS, set);
    }
}

/// What waits for the calling thread or the process, and is blocked.
pub fn waiting() -> u64 {
    let mut set = 0u64;
    // SAFETY: 8 bytes.
    _ = unsafe { sc!(rt_sigpending, &raw mut set, 8) };
    set
}

fn each(owner: i32, mut f: impl FnMut(i32, &[u8; SIGINFO])) {
    let table = TABLE.load(Acquire);
    for at in 0..COUNT.load(Acquire).min(ROOM) {
        // SAFETY: below COUNT, and filled: its owner is this thread, or all others stand still.
        let entry = unsafe { &*table.add(at) };
        let signal = i32::from_ne_bytes([entry.info[0], entry.info[1], entry.info[2], entry.info[3]]);
        if entry.owner == owner && signal != 0 {
            f(signal, &entry.info);
        }
    }
}

/// Fills the calling thread's queue again, and the process's if this is the leader.
pub fn put_back() {
    let (pid, tid) = (sys::getpid(), sys::gettid());
    each(tid, |signal, info| {
        // SAFETY: info is a siginfo.
        _ = unsafe { sc!(rt_tgsigqueueinfo, pid, tid, signal, info.as_ptr()) };
    });
    if pid == tid {
        put_back_process();
    }
}

/// Without a leader the checkpoint thread fills the process's queue; what kill(2) sent is sent by kill(2) again then.
pub fn put_back_if_leaderless() {
    if LEADERLESS.load(Acquire) {
        put_back_process();
    }
}

fn put_back_process() {
    let pid = sys::getpid();
    each(PROCESS, |signal, info| {
        // SAFETY: info is a siginfo.
        unsafe {
            if sc!(rt_sigqueueinfo, pid, signal, info.as_ptr()).is_err() {
                _ = sc!(kill, pid, signal);
            }
        }
    });
}

/// The siginfos of `owner`, for the image's reader.
pub fn of(owner: i32) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    each(owner, |_, info| out.push(info.to_vec()));
    out
}
