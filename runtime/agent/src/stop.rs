//! Stopping and resuming the program's threads.
//!
//! The checkpoint thread signals each thread; each parks in its handler, with its registers in the kernel's signal frame in
//! user memory, so that `rt_sigreturn` restores them all, AVX-512 included, in this process or in a restored one.
//!
//! The signal is 33 (SIGSETXID), which glibc reserves: no mask, set, `sigaction`, `sigwait` or `signalfd` of the program
//! can name it, so there is nothing to hide. glibc uses it for `setuid` and its like in threads; those deliveries have
//! another `si_code` and go on to glibc's handler.
//!
//! Rules for what runs in the handler: no allocation, no lock, no libc; the program's errno is not touched (raw system
//! calls only); the stack may be a small alternate stack, so frames stay below 1 KiB.
use crate::{
    arch::{self, Context, Frame},
    pending,
    sys::{self, Errno},
};
use alloc::{format, string::String, vec::Vec};
use core::{
    ffi::{c_int, c_void},
    mem::zeroed,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering::*},
};
use slackwater_image::meta;

/// The checkpoint signal, and who else has it: see the module's head.
pub const SIGNAL: c_int = 33;
const SI_QUEUE: c_int = -1;
/// Tells our deliveries from others'.
const MAGIC: usize = 0x51ac_cafe;
/// Room for threads (address space, not memory).
const SLOTS: usize = 1 << 17;

/// 1 while threads are to park.
static STOP: AtomicU32 = AtomicU32::new(0);
/// Counts resumes; parked threads wait for it to change.
static GO: AtomicU32 = AtomicU32::new(0);
/// Changes whenever a parked thread shall look again: whether it may go, or is asked for its signals.
static LOOK: AtomicU32 = AtomicU32::new(0);
/// Parked threads that have been asked for their signals and have not done with it.
static ASKED: AtomicU32 = AtomicU32::new(0);
/// How many threads are parked.
static PARKED: AtomicU32 = AtomicU32::new(0);
/// At how many the checkpoint thread is to be woken; it looks at each thread then, which is dear when there are thousands.
static WANTED: AtomicU32 = AtomicU32::new(0);
/// How many restored threads have left the restorer and have their attributes back.
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// Next free slot.
static NEXT: AtomicU32 = AtomicU32::new(0);
static TABLE: AtomicPtr<Slot> = AtomicPtr::new(core::ptr::null_mut());
/// glibc's own handler of the signal; 0: none.
static CHAINED: AtomicUsize = AtomicUsize::new(0);

/// What the kernel keeps for a thread, taken by the thread itself as it parks.
#[repr(C)]
pub struct Slot {
    context: Context,
    ready: AtomicBool,
    tid: i32,
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
    /// Signals wait for this thread alone.
    owns_pending: bool,
    /// [`ASK_TAKE`] or [`ASK_PUT`]: what the checkpoint thread asks of the parked thread; 0: nothing.
    ask: AtomicU32,
    policy: i32,
    priority: i32,
    nice: i32,
    rseq: u64,
    name: [u8; 16],
    affinity_len: usize,
    affinity: [u8; 128],
}

/// Empty your queue of signals into the table.
const ASK_TAKE: u32 = 1;
/// Fill it again.
const ASK_PUT: u32 = 2;

const ARCH_SET_GS: usize = 0x1001;
const ARCH_GET_FS: usize = 0x1003;
const ARCH_GET_GS: usize = 0x1004;
/// Signature that glibc registers its rseq areas with on x86.
pub const RSEQ_SIGNATURE: u32 = 0x5305_3053;
/// Length that glibc up to 2.39 registers, and the least that the kernel takes.
pub const RSEQ_LEN: u32 = 32;

/// Asks the kernel what it keeps for the calling thread.
fn capture(slot: &mut Slot) {
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
fn restore(slot: &Slot) {
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

unsafe extern "C" fn park(slot: *mut c_void) -> usize {
    // SAFETY: the thread's own slot; `ask` is atomic and `tid` does not change.
    let (ask, tid) = unsafe { (&(*slot.cast::<Slot>()).ask, (*slot.cast::<Slot>()).tid) };
    let before = GO.load(Acquire);
    let parked = PARKED.fetch_add(1, AcqRel) + 1;
    if parked >= WANTED.load(Acquire) {
        sys::futex_wake(&PARKED);
    }
    loop {
        let look = LOOK.load(Acquire);
        if GO.load(Acquire) != before {
            return 0;
        }
        match ask.swap(0, AcqRel) {
            0 => sys::futex_wait(&LOOK, look, None),
            what => {
                if what == ASK_TAKE {
                    pending::take(tid, u64::MAX);
                } else {
                    pending::put_back();
                }
                ASKED.fetch_sub(1, AcqRel);
                sys::futex_wake(&ASKED);
            }
        }
    }
}

/// Asks the parked threads whom `who` names for something, and waits until they have done it.
fn ask(what: u32, who: impl Fn(&Slot) -> bool) {
    let n = (NEXT.load(Acquire) as usize).min(SLOTS);
    let table = TABLE.load(Acquire);
    for i in 0..n {
        // SAFETY: all are parked; only `ask` is written, which is atomic.
        let slot = unsafe { &*table.add(i) };
        if slot.ready.load(Acquire) && who(slot) {
            ASKED.fetch_add(1, AcqRel);
            slot.ask.store(what, Release);
        }
    }
    if ASKED.load(Acquire) != 0 {
        LOOK.fetch_add(1, AcqRel);
        sys::futex_wake(&LOOK);
    }
    loop {
        match ASKED.load(Acquire) {
            0 => return,
            left => sys::futex_wait(&ASKED, left, None),
        }
    }
}

/// A line of a status file of /proc, after its name.
fn status_line(path: &str, name: &[u8]) -> Option<String> {
    let text = sys::read_file(core::ffi::CStr::from_bytes_with_nul(path.as_bytes()).ok()?).ok()?;
    let line = text.split(|&c| c == b'\n').find_map(|l| l.strip_prefix(name))?;
    Some(core::str::from_utf8(line).ok()?.trim().into())
}

/// Signals that wait for `tid` alone.
fn own_pending(tid: i32) -> u64 {
    let line = status_line(&format!("/proc/self/task/{tid}/status\0"), b"SigPnd:");
    line.and_then(|l| u64::from_str_radix(&l, 16).ok()).unwrap_or(0)
}

/// False only if no process of this user has a signal that waits.
fn any_queued() -> bool {
    !status_line("/proc/thread-self/status\0", b"SigQ:").is_some_and(|l| l.starts_with("0/"))
}

/// With all threads parked: what waits for them and for the process goes into [`pending`]'s table, and back.
///
/// It must be looked for now: a thread that parked early may have been sent a signal by one that parked late.
fn take_pending(leader_gone: bool) {
    pending::clear(leader_gone);
    if !any_queued() {
        return;
    }
    pending::take_process();
    let n = (NEXT.load(Acquire) as usize).min(SLOTS);
    let table = TABLE.load(Acquire);
    // SAFETY: all are parked; `owns` is this thread's to write.
    for slot in (0..n).map(|i| unsafe { &mut *table.add(i) }) {
        slot.owns_pending = slot.ready.load(Acquire) && own_pending(slot.tid) != 0;
    }
    let pid = sys::getpid();
    ask(ASK_TAKE, |slot| slot.owns_pending);
    ask(ASK_PUT, |slot| slot.tid == pid || slot.owns_pending);
    pending::put_back_if_leaderless();
}

unsafe extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: the kernel's arguments.
    let ours = unsafe { (*info).si_code == SI_QUEUE && (*info).si_value().sival_ptr as usize == MAGIC };
    if !ours {
        let next = CHAINED.load(Acquire);
        if next > 1 {
            type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: it was installed with SA_SIGINFO for this very signal.
            unsafe { core::mem::transmute::<usize, Handler>(next)(signal, info, ucontext) };
        }
        return;
    }
    if STOP.load(Acquire) == 0 || crate::guard::defer_stop() {
        return;
    }
    let index = NEXT.fetch_add(1, AcqRel) as usize;
    if index >= SLOTS {
        return;
    }
    let interrupted_ns = sys::now_ns();
    // SAFETY: the frame is this handler's.
    let mut frame = unsafe { Frame::new(ucontext) };
    arch::note_time_left(&mut frame);
    // SAFETY: the slot is this thread's until the next stop; the table is mapped as long as the process lives.
    let slot = unsafe { &mut *TABLE.load(Acquire).add(index) };
    capture(slot);
    slot.ready.store(true, Release);
    // SAFETY: `slot.context` outlives the call; `park` returns 0.
    let restarted = unsafe { arch::with_context(&raw mut slot.context, park, (&raw mut *slot).cast()) };
    if restarted == 1 {
        restore(slot);
        let before = GO.load(Acquire);
        ARRIVED.fetch_add(1, AcqRel);
        sys::futex_wake(&ARRIVED);
        while GO.load(Acquire) == before {
            sys::futex_wait(&GO, before, None);
        }
    }
    let mut pending = 0u64;
    // SAFETY: 8 bytes, as told.
    _ = unsafe { sc!(rt_sigpending, &raw mut pending, 8) };
    // A signal of the program that came meanwhile interrupts the call as it would have without us.
    if pending & !frame.mask() == 0 {
        frame.restart_syscall(interrupted_ns, restarted == 1);
    }
}

/// Sends the checkpoint signal to a thread of this process.
pub fn signal_thread(tid: i32) -> sys::Result<()> {
    // SAFETY: all zeros is a siginfo; the fields set are those that SI_QUEUE reads (sigaction(2)).
    unsafe {
        let mut info: libc::siginfo_t = zeroed();
        info.si_signo = SIGNAL;
        info.si_code = SI_QUEUE;
        // si_pid, si_uid, si_value follow the common fields.
        let p = (&raw mut info).cast::<u8>();
        p.add(16).cast::<i32>().write(sys::getpid());
        p.add(24).cast::<usize>().write(MAGIC);
        sc!(rt_tgsigqueueinfo, sys::getpid(), tid, SIGNAL, &raw const info).map(drop)
    }
}

/// Installs the handler, before glibc's own if that has come since the last call: glibc installs it at the program's first
/// `pthread_create`.
///
/// True: it was not in place.
pub fn install() -> sys::Result<bool> {
    const SA_RESTORER: usize = 0x0400_0000;
    let flags = libc::SA_SIGINFO as usize | libc::SA_RESTART as usize | libc::SA_ONSTACK as usize | SA_RESTORER;
    let new = [on_signal as *const () as usize, flags, arch::sigreturn as *const () as usize, usize::MAX];
    let mut old = [0usize; 4];
    if TABLE.load(Acquire).is_null() {
        let table = sys::map_anonymous(SLOTS * size_of::<Slot>(), libc::MAP_NORESERVE)?;
        TABLE.store(table.cast(), Release);
    }
    pending::install()?;
    // SAFETY: the kernel's struct sigaction is these four words on x86-64.
    unsafe { sc!(rt_sigaction, SIGNAL, new.as_ptr(), old.as_mut_ptr(), 8) }?;
    let changed = old[0] != new[0];
    if changed {
        CHAINED.store(old[0], Release);
    }
    Ok(changed)
}

/// The checkpoint thread's mask: it takes none of the program's signals, but glibc's use of ours (setuid in threads) must
/// reach it, or the caller of setuid waits for ever.
pub fn unblock_signal() {
    let mask = !(1u64 << (SIGNAL - 1));
    // SAFETY: 8 bytes.
    _ = unsafe { sc!(rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, 8) };
}

fn parked_tids() -> Vec<i32> {
    let n = (NEXT.load(Acquire) as usize).min(SLOTS);
    let table = TABLE.load(Acquire);
    // SAFETY: slots below NEXT are being filled by their threads; `ready` says when.
    let mut tids: Vec<i32> =
        (0..n).filter_map(|i| unsafe { (*table.add(i)).ready.load(Acquire).then(|| (*table.add(i)).tid) }).collect();
    tids.sort_unstable();
    tids
}

/// The state letter of a thread in /proc; 'X' if it is gone.
fn state(tid: i32) -> u8 {
    let path = format!("/proc/self/task/{tid}/stat\0");
    let text = core::ffi::CStr::from_bytes_with_nul(path.as_bytes()).ok().and_then(|p| sys::read_file(p).ok());
    let Some(text) = text else { return b'X' };
    text.iter().rposition(|&c| c == b')').and_then(|i| text.get(i + 2).copied()).unwrap_or(b'X')
}

/// For how long the checkpoint thread waits for signalled threads before it looks who has ended, in nanoseconds.
const FIRST_LOOK: u64 = 2_000_000;

/// The program's stopped threads.
pub struct Stopped {
    /// Thread ids, parked.
    pub tids: Vec<i32>,
    /// The leader has ended (`pthread_exit` in main) and only its id lives.
    pub leader_gone: bool,
}

/// Stops every thread but the caller's. On return none of them runs, and none can be made.
///
/// A thread which ends meanwhile is not waited for. The only wait is for threads that have been signalled to park; how
/// long that takes is theirs (a thread inside a wrapper parks as it leaves), so `deadline_ns` turns it into an error.
pub fn stop(deadline_ns: u64) -> Result<Stopped, String> {
    let (me, pid) = (sys::gettid(), sys::getpid());
    NEXT.store(0, Release);
    PARKED.store(0, Release);
    ARRIVED.store(0, Release);
    let table = TABLE.load(Acquire);
    // SAFETY: no thread is in the handler beyond `restore` now; slots are ours until STOP is set.
    (0..SLOTS).map_while(|i| unsafe { (*table.add(i)).ready.swap(false, AcqRel).then_some(()) }).for_each(drop);
    STOP.store(1, Release);
    let mut signalled: Vec<i32> = Vec::new();
    let end = sys::now_ns() + deadline_ns;
    let mut look_again = FIRST_LOOK;
    loop {
        // Who was parked before the list was read: only then does a list without newcomers prove that nobody is left.
        let parked = parked_tids();
        match install() {
            Ok(false) => {}
            // glibc's handler was there, and has ignored what was sent to those that are not parked.
            Ok(true) => signalled.retain(|t| parked.binary_search(t).is_ok()),
            Err(e) => return Err(give_up(format!("rt_sigaction: {e}"))),
        }
        let tids = match sys::numbers_in(c"/proc/self/task") {
            Ok(t) => t,
            Err(e) => return Err(give_up(format!("/proc/self/task: {e}"))),
        };
        let mut newcomers = false;
        let mut waiting = Vec::new();
        for &tid in tids.iter().filter(|&&t| t != me) {
            if signalled.binary_search(&tid).is_err() {
                match signal_thread(tid) {
                    Ok(()) => newcomers = true,
                    Err(Errno::ESRCH) => continue,
                    Err(e) => {
                        return Err(give_up(format!(
                            "thread {tid} cannot be signalled: {e} (is RLIMIT_SIGPENDING very small?)"
                        )));
                    }
                }
                let at = signalled.partition_point(|&t| t < tid);
                signalled.insert(at, tid);
            }
            if parked.binary_search(&tid).is_err() {
                waiting.push(tid);
            }
        }
        if !newcomers && !waiting.is_empty() {
            // Those that have ended will never park.
            waiting.retain(|&t| !matches!(state(t), b'Z' | b'X' | b'x'));
        }
        if !newcomers && waiting.is_empty() {
            let leader_gone = parked.binary_search(&pid).is_err() && pid != me;
            take_pending(leader_gone);
            return Ok(Stopped { tids: parked, leader_gone });
        }
        if sys::now_ns() > end {
            return Err(give_up(format!("threads {waiting:?} did not stop in time")));
        }
        // All that were signalled, or, since some of them may be ending instead, whoever is there after a while: each round
        // that brings no one doubles it.
        WANTED.store(signalled.len() as u32, Release);
        let (since, before) = (sys::now_ns(), PARKED.load(Acquire));
        loop {
            let count = PARKED.load(Acquire);
            let spent = sys::now_ns() - since;
            if count as usize >= signalled.len() || spent > look_again {
                break;
            }
            sys::futex_wait(&PARKED, count, Some(look_again - spent));
        }
        look_again = if PARKED.load(Acquire) > before { FIRST_LOOK } else { (look_again * 2).min(16 * FIRST_LOOK) };
    }
}

fn give_up(reason: String) -> String {
    resume();
    reason
}

/// In the child of a fork: this thread is the only one, and nobody stops it.
pub fn after_fork() {
    STOP.store(0, Release);
}

/// Lets the threads go.
pub fn resume() {
    STOP.store(0, Release);
    GO.fetch_add(1, AcqRel);
    sys::futex_wake(&GO);
    LOOK.fetch_add(1, AcqRel);
    sys::futex_wake(&LOOK);
}

/// In a restored process: waits until `n` threads have arrived.
pub fn wait_arrived(n: usize) {
    loop {
        let seen = ARRIVED.load(Acquire);
        if seen as usize >= n {
            return;
        }
        sys::futex_wait(&ARRIVED, seen, None);
    }
}

/// What the image says of the parked threads, and of signals that wait for one of them alone.
pub fn describe() -> Vec<meta::Thread> {
    let n = (NEXT.load(Acquire) as usize).min(SLOTS);
    let table = TABLE.load(Acquire);
    // SAFETY: all are parked.
    (0..n).map(|i| unsafe { &*table.add(i) }).filter(|s| s.ready.load(Acquire)).map(to_meta).collect()
}

/// The same for the calling thread (the checkpoint thread), whose context is `context`.
pub fn describe_self(context: &Context) -> meta::Thread {
    let mut slot = own_slot();
    slot.context = *context;
    to_meta(&slot)
}

/// The calling (checkpoint) thread's own slot, filled.
pub fn own_slot() -> Slot {
    // SAFETY: all zeros is a slot.
    let mut slot: Slot = unsafe { zeroed() };
    capture(&mut slot);
    if crate::init::is_bare() {
        slot.rseq = 0;
    }
    slot
}

/// In a restored process: gives the calling checkpoint thread what the kernel kept for it.
pub fn restore_self(slot: &Slot) {
    restore(slot);
}

fn to_meta(s: &Slot) -> meta::Thread {
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
