//! The listener: the checkpoint thread as the one that others wake, and that has the connection.
//!
//! Where the checkpoint thread has a descriptor table of its own, nobody else can use the connection: the program's threads
//! (births, `slackwater_checkpoint`) post a call here, which the listener runs, and wait for it.
//!
//! Rules: the checkpoint signal is blocked in the listener but inside [`wait`], so that a ring between a look at the state
//! and the wait is not lost. Who posts is never stopped meanwhile (in a birth, or inside the wrapper guard), so the listener
//! serves wherever it waits for the program's threads. It does not serve while all of them stand.
use crate::{asleep::Asleep, stop, sys};
use alloc::boxed::Box;
use core::{
    ffi::c_void,
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, Ordering::*},
};

/// Thread id; 0: none (yet).
static LISTENER: AtomicI32 = AtomicI32::new(0);
/// The signal has been sent, and the listener has not waited since.
static RUNG: AtomicBool = AtomicBool::new(false);
/// Calls that were posted, the newest first.
static CALLS: AtomicPtr<Call> = AtomicPtr::new(null_mut());
/// In place of the list: nobody listens any more.
const CLOSED: *mut Call = core::ptr::dangling_mut();

/// A call that was posted; in the arena.
struct Call {
    run: unsafe fn(*mut c_void),
    task: *mut c_void,
    next: *mut Call,
    state: AtomicU32,
}

const POSTED: u32 = 0;
const RUNNING: u32 = 1;
const DONE: u32 = 2;
/// Whoever comes second frees the call.
const ABANDONED: u32 = 3;

/// The calling thread is the listener from now on.
pub fn listen() {
    RUNG.store(false, Release);
    CALLS.store(null_mut(), Release);
    LISTENER.store(sys::gettid(), Release);
}

/// Is the caller the listener?
pub fn is_listener() -> bool {
    LISTENER.load(Acquire) == sys::gettid()
}

/// In the child of a fork: nobody listens yet.
pub fn after_fork() {
    LISTENER.store(0, Release);
    CALLS.store(CLOSED, Release);
}

/// Wakes the listener. False: there is none, or no signal can be sent.
pub fn ring() -> bool {
    let tid = LISTENER.load(Acquire);
    if tid == 0 {
        return false;
    }
    if RUNG.swap(true, SeqCst) || stop::signal_thread(tid, Asleep::UNKNOWN).is_ok() {
        return true;
    }
    RUNG.store(false, SeqCst);
    false
}

/// The listener waits: until one of `fds` is ready, somebody rings, or `timeout_ns` have passed.
pub fn wait(fds: &mut [libc::pollfd], timeout_ns: Option<u64>) {
    let others = !(1u64 << (stop::signal() - 1));
    let ts = timeout_ns.map(|n| [n / 1_000_000_000, n % 1_000_000_000]);
    let ts = ts.as_ref().map_or(core::ptr::null(), |t| t.as_ptr());
    // SAFETY: ppoll(2) with a mask of 8 bytes; on a signal no revents are written.
    let r = unsafe { sc!(ppoll, fds.as_mut_ptr(), fds.len(), ts, &raw const others, 8) };
    if r.is_err() {
        fds.iter_mut().for_each(|fd| fd.revents = 0);
    }
    // A full barrier: what was changed before a ring that found this set is seen after it.
    RUNG.swap(false, SeqCst);
}

/// Runs `f` on the listener. None: nobody listens, and `f` has not run.
pub fn call<R>(f: impl FnOnce() -> R) -> Option<R> {
    struct Task<F, R> {
        f: Option<F>,
        result: Option<R>,
    }
    unsafe fn run<F: FnOnce() -> R, R>(task: *mut c_void) {
        // SAFETY: the task below, which waits for us.
        let task = unsafe { &mut *task.cast::<Task<F, R>>() };
        task.result = task.f.take().map(|f| f());
    }
    fn runner<F: FnOnce() -> R, R>(_: &Task<F, R>) -> unsafe fn(*mut c_void) {
        run::<F, R>
    }
    /// How often a signal that cannot be sent (RLIMIT_SIGPENDING) is tried again, a hundredth of a second each time.
    const TRIES: u32 = 200;
    let mut task = Task { f: Some(f), result: None };
    let call = Box::into_raw(Box::new(Call {
        run: runner(&task),
        task: (&raw mut task).cast(),
        next: null_mut(),
        state: AtomicU32::new(POSTED),
    }));
    // SAFETY: the call is ours until it is in the list; then it is freed by whoever finds the other done with it.
    unsafe {
        let mut head = CALLS.load(Acquire);
        loop {
            if head == CLOSED {
                drop(Box::from_raw(call));
                return None;
            }
            (*call).next = head;
            match CALLS.compare_exchange_weak(head, call, AcqRel, Acquire) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        let state = &(*call).state;
        let mut tries = 0;
        loop {
            let rung = ring();
            let seen = state.load(Acquire);
            if seen == DONE {
                break;
            }
            sys::futex_wait(state, seen, (!rung).then_some(10_000_000));
            tries += u32::from(!rung);
            if tries > TRIES && state.compare_exchange(POSTED, ABANDONED, AcqRel, Acquire).is_ok() {
                return None;
            }
        }
        drop(Box::from_raw(call));
    }
    task.result
}

/// The listener, as long as it is that, runs what was posted.
pub fn serve() {
    if CALLS.load(Acquire).is_null() {
        return;
    }
    let mut call = CALLS.swap(null_mut(), AcqRel);
    while !call.is_null() {
        // SAFETY: posted, and not freed before it is done or abandoned.
        call = unsafe { finish(call, true) };
    }
}

/// Nobody listens from here on: who waits is told, and so is whoever comes.
pub fn close() {
    let mut call = CALLS.swap(CLOSED, AcqRel);
    while !call.is_null() && call != CLOSED {
        // SAFETY: as in `serve`.
        call = unsafe { finish(call, false) };
    }
    LISTENER.store(0, Release);
}

/// Runs one call, or only says that it is over; the next in the list.
///
/// # Safety
/// `call` is in no list any more, and this is the listener.
unsafe fn finish(call: *mut Call, run: bool) -> *mut Call {
    // SAFETY: the caller's; the poster waits while the state is RUNNING, and may free the call once it is DONE.
    unsafe {
        let next = (*call).next;
        if (*call).state.compare_exchange(POSTED, RUNNING, AcqRel, Acquire).is_err() {
            drop(Box::from_raw(call));
            return next;
        }
        if run {
            ((*call).run)((*call).task);
        }
        let state = &raw const (*call).state;
        (*state).store(DONE, Release);
        // Only an address to the kernel: the word may be gone by now.
        _ = sc!(futex, state, 129, 1);
        next
    }
}
