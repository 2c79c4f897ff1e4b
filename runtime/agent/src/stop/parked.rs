//! What parked threads do while they wait: they empty and fill their queues of signals, and lend themselves to what must be
//! done in the program's descriptor table, which the checkpoint thread is not in.
//!
//! Rules: as for all that runs in the handler (see the parent module); what is lent out runs on a stack of ours.
use super::{GO, NEXT, SLOTS, TABLE, slot::Slot};
use crate::{arch, init, pending, sys};
use alloc::{format, string::String};
use core::{
    ffi::c_void,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering::*},
};

/// Empty your queue of signals into the table.
const TAKE: u32 = 1;
/// Fill it again.
const PUT: u32 = 2;
/// Run the [`JOB`].
const RUN: u32 = 3;
/// Leave, before the others do.
const LEAVE: u32 = 4;

/// Changes whenever a parked thread shall look again: whether it may go, or is asked for something.
static LOOK: AtomicU32 = AtomicU32::new(0);
/// Parked threads that have been asked and have not done with it.
static ASKED: AtomicU32 = AtomicU32::new(0);
/// The [`Job`] that a parked thread is to run.
static JOB: AtomicPtr<Job> = AtomicPtr::new(core::ptr::null_mut());
/// The thread that runs it.
static LENT: AtomicI32 = AtomicI32::new(0);
/// The stack that it runs on; 0: not made yet.
static STACK: AtomicUsize = AtomicUsize::new(0);
const STACK_SIZE: usize = 256 << 10;

/// A function for a parked thread, and its argument.
struct Job {
    run: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
}

/// Makes the stack for jobs.
pub fn install() -> sys::Result<()> {
    if STACK.load(Acquire) == 0 {
        let base = sys::map_anonymous(STACK_SIZE, libc::MAP_NORESERVE)? as usize;
        // SAFETY: the lowest page of our own mapping: an overflow ends there.
        unsafe { sc!(mprotect, base, 4096, libc::PROT_NONE) }?;
        STACK.store(base + STACK_SIZE, Release);
    }
    Ok(())
}

/// Which waiters of [`LOOK`] are woken with this slot's: thousands of threads need not look for one.
fn bit(index: usize) -> u32 {
    1 << (index % 32)
}

/// In the handler: does what is asked until [`GO`] is no longer `before`.
pub fn attend(slot: *mut Slot, before: u32) {
    // SAFETY: the thread's own slot; `ask` is atomic and `tid` does not change.
    let (ask, tid) = unsafe { (&(*slot).ask, (*slot).tid) };
    let index = (slot as usize - TABLE.load(Acquire) as usize) / size_of::<Slot>();
    loop {
        let look = LOOK.load(Acquire);
        if GO.load(Acquire) != before {
            return;
        }
        match ask.swap(0, AcqRel) {
            0 => {
                sys::futex_wait_bits(&LOOK, look, bit(index));
                continue;
            }
            TAKE => pending::take(tid, u64::MAX),
            PUT => pending::put_back(),
            LEAVE => {
                ASKED.fetch_sub(1, AcqRel);
                sys::futex_wake(&ASKED);
                return;
            }
            // SAFETY: `as_program` has set the job, which lives until we have done with it; the stack is one thread's at a time.
            _ => unsafe {
                let job = &*JOB.load(Acquire);
                LENT.store(tid, Release);
                arch::on_stack(STACK.load(Acquire), job.run, job.argument);
                LENT.store(0, Release);
            },
        }
        ASKED.fetch_sub(1, AcqRel);
        sys::futex_wake(&ASKED);
    }
}

/// Parked threads look again.
pub fn look(bits: u32) {
    LOOK.fetch_add(1, AcqRel);
    sys::futex_wake_bits(&LOOK, bits);
}

/// Runs `f` in the program's descriptor table: on a parked thread, where the checkpoint thread has a table of its own.
///
/// # Errors
/// No thread is parked.
pub fn as_program<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    struct Task<F, R> {
        f: Option<F>,
        result: Option<R>,
    }
    unsafe extern "C" fn run<F: FnOnce() -> R, R>(task: *mut c_void) {
        // SAFETY: the task below, which waits for us.
        let task = unsafe { &mut *task.cast::<Task<F, R>>() };
        task.result = task.f.take().map(|f| f());
    }
    fn runner<F: FnOnce() -> R, R>(_: &Task<F, R>) -> unsafe extern "C" fn(*mut c_void) {
        run::<F, R>
    }
    if !init::is_bare() {
        return Ok(f());
    }
    let pid = sys::getpid();
    let tids = slots().filter(|s| s.ready.load(Acquire)).map(|s| s.tid);
    let chosen = tids.reduce(|a, b| if b == pid { b } else { a }).ok_or("the program has no thread left")?;
    let mut task = Task { f: Some(f), result: None };
    let mut job = Job { run: runner(&task), argument: (&raw mut task).cast() };
    JOB.store(&raw mut job, Release);
    ask(RUN, |slot| slot.tid == chosen);
    task.result.ok_or_else(|| "a parked thread did not do as asked".into())
}

/// On a parked thread that runs a job: leaves it undone, and goes back to being parked. Else returns.
pub fn leave_job() {
    if LENT.load(Acquire) == sys::gettid() {
        // SAFETY: inside `on_stack` on this stack.
        unsafe { arch::leave_stack(STACK.load(Acquire)) };
    }
}

/// The slots in use. With all threads parked: their other fields than `ask` change no more.
pub fn slots() -> impl Iterator<Item = &'static Slot> {
    let n = (NEXT.load(Acquire) as usize).min(SLOTS);
    let table = TABLE.load(Acquire);
    // SAFETY: below NEXT, in a table that stays.
    (0..n).map(move |i| unsafe { &*table.add(i) })
}

/// Asks the parked threads whom `who` names for something, and waits until they have done it.
fn ask(what: u32, who: impl Fn(&Slot) -> bool) {
    let mut bits = 0;
    for (i, slot) in slots().enumerate() {
        if slot.ready.load(Acquire) && who(slot) {
            ASKED.fetch_add(1, AcqRel);
            slot.ask.store(what, Release);
            bits |= bit(i);
        }
    }
    if bits != 0 {
        look(bits);
    }
    loop {
        match ASKED.load(Acquire) {
            0 => return,
            left => sys::futex_wait(&ASKED, left, None),
        }
    }
}

/// Has the first thread leave the handler, and waits until it has, for `deadline_ns` at most.
pub fn leave_first(deadline_ns: u64) {
    let pid = sys::getpid();
    let ready = || slots().filter(|s| s.ready.load(Acquire));
    if !ready().any(|s| s.tid == pid) || ready().nth(1).is_none() {
        return;
    }
    ask(LEAVE, |slot| slot.tid == pid);
    let end = sys::now_ns() + deadline_ns;
    while is_leaving(pid) && sys::now_ns() < end {
        // SAFETY: no memory is touched.
        _ = unsafe { sc!(sched_yield) };
    }
}

/// A line of a status file of /proc, after its name.
fn status_line<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let line = text.split(|&c| c == b'\n').find_map(|l| l.strip_prefix(name))?;
    Some(core::str::from_utf8(line).ok()?.trim())
}

/// Sets of signals in the status of `tid`, by their names there; empty if it is gone. Read once: others stand meanwhile.
fn signals<const N: usize>(tid: i32, names: [&[u8]; N]) -> [u64; N] {
    let path = format!("/proc/self/task/{tid}/status\0");
    let text = core::ffi::CStr::from_bytes_with_nul(path.as_bytes()).ok().and_then(|p| sys::read_file(p).ok());
    let text = text.unwrap_or_default();
    names.map(|name| status_line(&text, name).and_then(|l| u64::from_str_radix(l, 16).ok()).unwrap_or(0))
}

/// Is `signal` in the mask of `tid`?
pub fn blocks(tid: i32, signal: i32) -> bool {
    let [mask] = signals(tid, [b"SigBlk:"]);
    mask & 1 << (signal - 1) != 0
}

/// In the handler it blocks all, afterwards never our signal; and what waits for it then it takes before anything else.
fn is_leaving(tid: i32) -> bool {
    let [mask, waiting] = signals(tid, [b"SigBlk:", b"ShdPnd:"]);
    mask & 1 << (super::signal() - 1) != 0 || waiting & !mask != 0
}

/// False only if no process of this user has a signal that waits.
fn any_queued() -> bool {
    let text = sys::read_file(c"/proc/thread-self/status").unwrap_or_default();
    !status_line(&text, b"SigQ:").is_some_and(|l| l.starts_with("0/"))
}

/// With all threads parked: what waits for them and for the process goes into [`pending`]'s table, and back.
///
/// To be done late: a thread that parked early may be sent a signal by one that parks late, and the process by others and by its
/// timers for as long as it stands.
pub fn take_pending(leader_gone: bool) {
    pending::clear(leader_gone);
    if !any_queued() {
        return;
    }
    pending::take_process();
    for slot in slots() {
        let owns = slot.ready.load(Acquire) && signals(slot.tid, [b"SigPnd:"]) != [0];
        slot.owns_pending.store(owns, Relaxed);
    }
    let pid = sys::getpid();
    ask(TAKE, |slot| slot.owns_pending.load(Relaxed));
    ask(PUT, |slot| slot.tid == pid || slot.owns_pending.load(Relaxed));
    pending::put_back_if_leaderless();
}
