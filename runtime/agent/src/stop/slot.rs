//! What the kernel keeps for a thread: taken by the thread itself as it parks, given back by it after a restart.
//!
//! Rules: as for all that runs in the handler (see the parent module).
use crate::{arch::Context, pending, sys};
use core::{
    mem::zeroed,
    sync::atomic::{AtomicBool, AtomicU32},
};
use slackwater_image::meta;

/// What the kernel keeps for a thread, taken by the thread itself as it parks.
#[repr(C)]
pub struct Slot {
    /// Where the thread goes on.
    pub context: Context,
    /// Filled in: the thread parks, or is about to.
    pub ready: AtomicBool,
    /// Whose it is.
    pub tid: i32,
    fs: u64,
    gs: u64,
    clear_tid: u64,
    robust: u64,
    robust_len: u64,
    altstack: [u64; 3],
    timerslack: u64,
    /// Like the others here, it is a thread's own: the checkpoint thread has that of the process's first moment.
    personality: i32,
    /// As `personality`.
    deathsig: i32,
    /// As `personality`.
    securebits: i32,
    /// Signals wait for this thread alone.
    pub owns_pending: AtomicBool,
    /// What the checkpoint thread asks of the parked thread, of those in [`super::parked`]; 0: nothing.
    pub ask: AtomicU32,
    policy: i32,
    priority: i32,
    nice: i32,
    rseq: u64,
    name: [u8; 16],
    affinity_len: usize,
    affinity: [u8; 128],
}

const ARCH_SET_GS: usize = 0x1001;
const ARCH_GET_FS: usize = 0x1003;
const ARCH_GET_GS: usize = 0x1004;
/// Signature that glibc registers its rseq areas with on x86.
const RSEQ_SIGNATURE: u32 = 0x5305_3053;
/// Length that glibc up to 2.39 registers, and the least that the kernel takes.
const RSEQ_LEN: u32 = 32;

/// Asks the kernel what it keeps for the calling thread.
pub fn capture(slot: &mut Slot) {
    // SAFETY: each call fills a field of the slot, whose size it is told or knows.
    unsafe {
        slot.tid = sys::gettid();
        _ = sc!(arch_prctl, ARCH_GET_FS, &raw mut slot.fs);
        _ = sc!(arch_prctl, ARCH_GET_GS, &raw mut slot.gs);
        _ = sc!(get_robust_list, 0, &raw mut slot.robust, &raw mut slot.robust_len);
        _ = sc!(prctl, libc::PR_GET_TID_ADDRESS, &raw mut slot.clear_tid, 0, 0, 0);
        _ = sc!(sigaltstack, 0, slot.altstack.as_mut_ptr());
        _ = sc!(prctl, libc::PR_GET_NAME, slot.name.as_mut_ptr(), 0, 0, 0);
        slot.timerslack = sc!(prctl, libc::PR_GET_TIMERSLACK, 0, 0, 0, 0).unwrap_or(0) as u64;
        slot.personality = sc!(personality, 0xffff_ffffu32).unwrap_or(0) as i32;
        _ = sc!(prctl, libc::PR_GET_PDEATHSIG, &raw mut slot.deathsig, 0, 0, 0);
        slot.securebits = sc!(prctl, libc::PR_GET_SECUREBITS, 0, 0, 0, 0).unwrap_or(0) as i32;
        slot.policy = sc!(sched_getscheduler, 0).unwrap_or(0) as i32;
        slot.priority = 0;
        _ = sc!(sched_getparam, 0, &raw mut slot.priority);
        slot.nice = 20 - sc!(getpriority, 0, 0).unwrap_or(20) as i32;
        slot.affinity_len = sc!(sched_getaffinity, 0, slot.affinity.len(), slot.affinity.as_mut_ptr()).unwrap_or(0);
        slot.rseq = crate::libc_facts::rseq_area(slot.fs);
    }
}

/// Gives the calling (restored) thread what the kernel kept for it. A refusal (a CPU that is not here, a priority that
/// this user may not have) leaves the kernel's default: the program runs, as it would after a move by the administrator.
pub fn restore(slot: &Slot) {
    // SAFETY: as `capture`, the other way round.
    unsafe {
        if slot.gs != 0 {
            _ = sc!(arch_prctl, ARCH_SET_GS, slot.gs);
        }
        _ = sc!(set_tid_address, slot.clear_tid);
        if slot.robust != 0 {
            _ = sc!(set_robust_list, slot.robust, slot.robust_len);
        }
        // Not while running on it: the kernel refuses, but a new thread has none, so it does not.
        _ = sc!(sigaltstack, slot.altstack.as_ptr(), 0);
        if slot.rseq != 0 {
            _ = sc!(rseq, slot.rseq, RSEQ_LEN, 0, RSEQ_SIGNATURE);
        }
        _ = sc!(prctl, libc::PR_SET_NAME, slot.name.as_ptr(), 0, 0, 0);
        _ = sc!(prctl, libc::PR_SET_TIMERSLACK, slot.timerslack, 0, 0, 0);
        _ = sc!(personality, slot.personality);
        _ = sc!(prctl, libc::PR_SET_PDEATHSIG, slot.deathsig, 0, 0, 0);
        if slot.securebits != 0 {
            _ = sc!(prctl, libc::PR_SET_SECUREBITS, slot.securebits, 0, 0, 0);
        }
        _ = sc!(sched_setaffinity, 0, slot.affinity_len, slot.affinity.as_ptr());
        if slot.policy != 0 || slot.priority != 0 {
            _ = sc!(sched_setscheduler, 0, slot.policy, &raw const slot.priority);
        }
        if slot.nice != 0 {
            _ = sc!(setpriority, 0, 0, slot.nice);
        }
    }
    pending::put_back();
}

/// The calling (checkpoint) thread's own slot, filled.
pub fn own() -> Slot {
    // SAFETY: all zeros is a slot.
    let mut slot: Slot = unsafe { zeroed() };
    capture(&mut slot);
    if crate::init::is_bare() {
        slot.rseq = 0;
    }
    slot
}

/// As the image has it.
pub fn to_meta(s: &Slot) -> meta::Thread {
    meta::Thread {
        tid: s.tid,
        sp: s.context.sp,
        resume: s.context.resume,
        fs: s.fs,
        gs: s.gs,
        clear_tid: s.clear_tid,
        robust: s.robust,
        robust_len: s.robust_len,
        rseq: s.rseq,
        rseq_len: if s.rseq != 0 { RSEQ_LEN } else { 0 },
        rseq_sig: RSEQ_SIGNATURE,
        altstack: s.altstack,
        sigmask: u64::MAX,
        name: s.name,
        policy: s.policy,
        priority: s.priority,
        nice: s.nice,
        affinity: s.affinity[..s.affinity_len.min(128)].to_vec(),
        timerslack: s.timerslack,
        pending: pending::of(s.tid),
    }
}
