//! Stopping and resuming the program's threads.
//!
//! The checkpoint thread signals each thread; each parks in its handler, with its registers in the kernel's signal frame in
//! user memory, so that `rt_sigreturn` restores them all, AVX-512 included, in this process or in a restored one ([`Beyond`] has what a frame lacks).
//!
//! The signal is 33 (SIGSETXID), which glibc reserves: no mask, set, `sigaction`, `sigwait` or `signalfd` of the program
//! can name it, so there is nothing to hide. glibc uses it for `setuid` and its like in threads; those deliveries have
//! another `si_code` and go on to glibc's handler. `launch --signal 32` takes the other one of this kind (SIGCANCEL, for
//! `pthread_cancel`).
//!
//! Linux gives a signal to the process to its first thread, unless that blocks it, as all do in our handler, or is about to
//! take another one (complete_signal() in kernel/signal.c). So the first thread stops when the others stand, and the others go
//! on when it has left: what comes meanwhile is the first thread's, as without us.
//!
//! Rules for what runs in the handler: no allocation, no lock, no libc; the program's errno is not touched (raw system
//! calls only); the stack may be a small alternate stack, so frames stay below 1 KiB.
mod parked;
mod second;
mod slot;

use crate::{
    arch::{self, Beyond, Context, Frame},
    asleep::Asleep,
    pending, relay,
    sys::{self, Errno},
};
use alloc::{format, string::String, vec::Vec};
use core::{
    ffi::{c_int, c_void},
    mem::zeroed,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering::*},
};
pub use parked::{as_program, leave_job, take_pending};
pub use second::{both, leave_second};
use slackwater_image::meta;
use slackwater_protocol::signal::{self, HOLD, PARK};
pub use slot::{Slot, restore as restore_self};

/// For how long a thread that is held waits for the checkpoint thread, in nanoseconds: the coordinator may be gone.
const HOLD_NS: u64 = 2_000_000_000;
/// The checkpoint signal, and who else has it: see the module's head.
static SIGNAL: AtomicI32 = AtomicI32::new(signal::SIGNAL);
/// The checkpoint signal.
pub fn signal() -> c_int {
    SIGNAL.load(Relaxed)
}

/// In the constructor, from the environment: the other one that glibc reserves, or nonsense, which changes nothing.
pub fn choose_signal(number: Option<&str>) {
    if number == Some("32") {
        SIGNAL.store(signal::OTHER, Relaxed);
    }
}

/// Room for threads: address space, not memory, but RLIMIT_AS counts that.
const SLOTS: usize = 1 << 15;

/// 1 while threads are to park.
static STOP: AtomicU32 = AtomicU32::new(0);
/// Counts resumes; parked threads wait for it to change.
static GO: AtomicU32 = AtomicU32::new(0);
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

unsafe extern "C" fn park(slot: *mut c_void) -> usize {
    let before = GO.load(Acquire);
    // A stop that was given up has resumed already those that it could see.
    if STOP.load(Acquire) == 0 {
        return 0;
    }
    if PARKED.fetch_add(1, AcqRel) + 1 >= WANTED.load(Acquire) {
        relay::ring();
    }
    parked::attend(slot.cast(), before);
    0
}

unsafe extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: the kernel's arguments.
    let value = unsafe { (*info).si_value().sival_ptr as usize };
    // SAFETY: as above.
    let ours = unsafe { (*info).si_code } == libc::SI_QUEUE;
    if !(ours && matches!(value, PARK | HOLD)) {
        let next = CHAINED.load(Acquire);
        if next > 1 {
            type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: it was installed with SA_SIGINFO for this very signal.
            unsafe { core::mem::transmute::<usize, Handler>(next)(signal, info, ucontext) };
        }
        return;
    }
    if value == HOLD {
        hold();
    }
    if STOP.load(Acquire) == 0 || relay::is_listener() || crate::guard::defer_stop() {
        return;
    }
    let index = NEXT.fetch_add(1, AcqRel) as usize;
    if index >= SLOTS {
        return;
    }
    // SAFETY: the kernel's argument.
    let beyond = unsafe { Beyond::keep(ucontext.cast()) };
    let interrupted_ns = sys::now_ns();
    // SAFETY: the frame is this handler's, and the siginfo our own.
    let (mut frame, asleep) = unsafe { (Frame::new(ucontext), Asleep::take(info.cast())) };
    let asleep = if value == HOLD { Asleep::UNKNOWN } else { asleep };
    arch::note_time_left(&mut frame);
    let interrupted = frame.interrupted(&asleep);
    let slept_ns = interrupted.map_or(0, |_| asleep.slept());
    // SAFETY: the slot is this thread's until the next stop; the table is mapped as long as the process lives.
    let slot = unsafe { &mut *TABLE.load(Acquire).add(index) };
    slot::capture(slot);
    slot.ready.store(true, Release);
    // SAFETY: `slot.context` outlives the call; `park` returns 0.
    let restarted = unsafe { arch::with_context(&raw mut slot.context, park, (&raw mut *slot).cast()) };
    if restarted == 1 {
        slot::restore(slot);
        let before = GO.load(Acquire);
        ARRIVED.fetch_add(1, AcqRel);
        sys::futex_wake(&ARRIVED);
        parked::attend(slot, before);
    }
    let mut pending = 0u64;
    // SAFETY: 8 bytes, as told.
    _ = unsafe { sc!(rt_sigpending, &raw mut pending, 8) };
    // A signal of the program that came meanwhile interrupts the call as it would have without us.
    if pending & !frame.mask() == 0 {
        frame.restart_syscall(interrupted, interrupted_ns, slept_ns, restarted == 1);
    }
    beyond.put_back();
}

/// In the handler: a stopped process has just been continued, and is about to be told to stop its threads.
fn hold() {
    if relay::is_listener() || crate::guard::in_wrapper() {
        return;
    }
    let end = sys::now_ns() + HOLD_NS;
    while STOP.load(Acquire) == 0 {
        let left = end.saturating_sub(sys::now_ns());
        if left == 0 {
            return;
        }
        sys::futex_wait(&STOP, 0, Some(left));
    }
}

/// Sends the checkpoint signal to a thread of this process, with what it sleeps in.
pub fn signal_thread(tid: i32, asleep: Asleep) -> sys::Result<()> {
    // SAFETY: all zeros is a siginfo; the fields set are those that SI_QUEUE reads (sigaction(2)).
    unsafe {
        let mut info: libc::siginfo_t = zeroed();
        info.si_signo = signal();
        info.si_code = libc::SI_QUEUE;
        // si_pid, si_uid, si_value follow the common fields.
        let p = (&raw mut info).cast::<u8>();
        p.add(16).cast::<i32>().write(sys::getpid());
        p.add(24).cast::<usize>().write(PARK);
        asleep.put(p);
        sc!(rt_tgsigqueueinfo, sys::getpid(), tid, signal(), &raw const info).map(drop)
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
    parked::install()?;
    // SAFETY: the kernel's struct sigaction is these four words on x86-64.
    unsafe { sc!(rt_sigaction, signal(), new.as_ptr(), old.as_mut_ptr(), 8) }?;
    let changed = old[0] != new[0];
    if changed {
        CHAINED.store(old[0], Release);
    }
    Ok(changed)
}

fn parked_tids() -> Vec<i32> {
    let mut tids: Vec<i32> = parked::slots().filter(|s| s.ready.load(Acquire)).map(|s| s.tid).collect();
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

/// For how long a thread may block the checkpoint signal, in nanoseconds.
const DEAF_NS: u64 = 2_000_000_000;

/// For how long the checkpoint thread waits for signalled threads before it looks who has ended, in nanoseconds.
const FIRST_LOOK: u64 = 2_000_000;

/// For how long the others wait for the first thread to leave the handler, in nanoseconds: it may be of a lower priority.
const FIRST_LEAVES_NS: u64 = 200_000_000;

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
    WANTED.store(u32::MAX, Release);
    let table = TABLE.load(Acquire);
    // SAFETY: no thread is in the handler beyond `restore` now; slots are ours until STOP is set.
    (0..SLOTS).map_while(|i| unsafe { (*table.add(i)).ready.swap(false, AcqRel).then_some(()) }).for_each(drop);
    STOP.store(1, Release);
    sys::futex_wake(&STOP);
    let mut signalled: Vec<i32> = Vec::new();
    // The others first: see the module's head.
    let mut first_too = false;
    let mut times = Asleep::TIMES;
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
        first_too |= tids.iter().all(|t| [me, pid].contains(t));
        for &tid in tids.iter().filter(|&&t| t != me && (t != pid || first_too)) {
            if signalled.binary_search(&tid).is_err() {
                match signal_thread(tid, Asleep::of(tid, &mut times)) {
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
            // glibc blocks all signals for moments; nobody else has a reason to, or can by glibc's functions.
            if sys::now_ns() + deadline_ns > end + DEAF_NS
                && let Some(tid) = waiting.iter().find(|&&t| parked::blocks(t, signal()))
            {
                let other = if signal() == signal::SIGNAL { signal::OTHER } else { signal::SIGNAL };
                let hint = if parked::blocks(*tid, other) { String::new() } else { format!(": try --signal {other}") };
                return Err(give_up(format!(
                    "thread {tid} blocks signal {}, which stops threads, by a raw system call{hint}",
                    signal()
                )));
            }
        }
        if !newcomers && waiting.is_empty() && !first_too {
            first_too = true;
            continue;
        }
        if !newcomers && waiting.is_empty() {
            let leader_gone = parked.binary_search(&pid).is_err() && pid != me;
            // What still rings for this thread is no signal of the program's.
            relay::wait(&mut [], Some(0));
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
            // Threads inside wrappers may have something to tell the coordinator before they park.
            relay::serve();
            let count = PARKED.load(Acquire);
            let spent = sys::now_ns() - since;
            if count as usize >= signalled.len() || spent > look_again {
                break;
            }
            relay::wait(&mut [], Some(look_again - spent));
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

/// Lets the threads go, the first one before the others.
pub fn resume() {
    // While STOP stands: who has just filled its slot still comes to be asked.
    // (After a defect of ours nobody may stand: slots are of the last stop then.)
    if STOP.load(Acquire) != 0 {
        parked::leave_first(FIRST_LEAVES_NS);
    }
    STOP.store(0, Release);
    GO.fetch_add(1, AcqRel);
    parked::look(u32::MAX);
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
    parked::slots().filter(|s| s.ready.load(Acquire)).map(slot::to_meta).collect()
}

/// The same for the calling thread (the checkpoint thread), whose context is `context`.
pub fn describe_self(context: &Context) -> meta::Thread {
    let mut slot = own_slot();
    slot.context = *context;
    slot::to_meta(&slot)
}

/// The calling (checkpoint) thread's own slot, filled.
pub fn own_slot() -> Slot {
    slot::own()
}
