//! Births and the stopping of threads exclude each other.
//!
//! A fork runs the program's atfork handlers, which take its locks; a stopped thread may hold them. So the checkpoint thread
//! first waits until no birth goes on (nobody is stopped then, so each comes to its end), keeps new ones waiting, and then
//! stops threads. Those that wait here can be stopped: they hold nothing.
use crate::{relay, sys};
use core::sync::atomic::{AtomicU32, Ordering::*};
use slackwater_hook::thread::per_thread;

/// Number of births that go on, and [`HELD`].
static STATE: AtomicU32 = AtomicU32::new(0);
/// No new ones.
const HELD: u32 = 1 << 31;
/// In `PerThread::agent`: in how many `slackwater_no_checkpoint_begin` this thread is.
const EXCLUSIONS: usize = 0;
/// In `PerThread::flags`: the thread is in a birth (a signal handler of the program may begin another inside).
const IN_BIRTH: u32 = 1;

/// A birth that goes on. All signals are blocked, except inside [`Birth::as_program`].
pub struct Birth {
    mask: u64,
    nested: bool,
}

fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: masks are 8 bytes.
    _ = unsafe { sc!(rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, 8) };
    old
}

fn flags() -> *mut u32 {
    // SAFETY: a field of this thread's own block.
    unsafe { &raw mut (*per_thread()).flags }
}

impl Birth {
    /// Begins one; waits while a checkpoint is being taken.
    pub fn enter() -> Self {
        let mask = set_mask(u64::MAX);
        // SAFETY: this thread's own block.
        let nested = unsafe { *flags() } & IN_BIRTH != 0;
        if !nested {
            // A thread that keeps checkpoints away already may go on: the one that waits for it must.
            let inside = excluded();
            let mut now = STATE.load(Acquire);
            loop {
                if now & HELD != 0 && !inside {
                    // Signals come through while we wait, the checkpoint signal among them.
                    set_mask(mask);
                    sys::futex_wait(&STATE, now, None);
                    set_mask(u64::MAX);
                    now = STATE.load(Acquire);
                } else if let Err(seen) = STATE.compare_exchange_weak(now, now + 1, AcqRel, Acquire).map(drop) {
                    now = seen;
                } else {
                    break;
                }
            }
            // SAFETY: this thread's own block.
            unsafe { *flags() |= IN_BIRTH };
        }
        Self { mask, nested }
    }

    /// Runs the C library's function with the program's signal mask: children inherit it.
    pub fn as_program<R>(&self, f: impl FnOnce() -> R) -> R {
        set_mask(self.mask);
        let r = f();
        set_mask(u64::MAX);
        r
    }

    /// In the child of a fork: no other thread is here, and no checkpoint goes on.
    pub fn alone(&mut self) {
        self.nested = false;
        STATE.store(1 + u32::from(excluded()), Release);
    }
}

fn end() {
    if STATE.fetch_sub(1, AcqRel) - 1 == HELD {
        relay::ring();
    }
}

fn exclusions() -> *mut usize {
    // SAFETY: a field of this thread's own block.
    unsafe { &raw mut (*per_thread()).agent[EXCLUSIONS] }
}

/// Does the calling thread keep checkpoints away ([`exclude`])?
pub fn excluded() -> bool {
    // SAFETY: this thread's own block.
    unsafe { *exclusions() != 0 }
}

/// No checkpoint begins from here on to [`include`]. Waits while one is being taken. Nests.
pub fn exclude() {
    // SAFETY: this thread's own block, of which no handler of ours takes notice.
    unsafe {
        if *exclusions() == 0 {
            // A birth that goes on holds checkpoints off, and outlives itself in this count.
            let birth = Birth::enter();
            STATE.fetch_add(1, AcqRel);
            *exclusions() = 1;
            drop(birth);
        } else {
            *exclusions() += 1;
        }
    }
}

/// The end of it; without a beginning nothing happens.
pub fn include() {
    // SAFETY: as above.
    unsafe {
        match *exclusions() {
            0 => {}
            1 => {
                *exclusions() = 0;
                end();
            }
            n => *exclusions() = n - 1,
        }
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        if !self.nested {
            // SAFETY: this thread's own block.
            unsafe { *flags() &= !IN_BIRTH };
            end();
        }
        set_mask(self.mask);
    }
}

/// On the checkpoint thread: waits for births to end, and lets none begin until [`release`].
///
/// # Errors
/// One did not end in time: none is kept waiting then.
pub fn hold(deadline_ns: u64) -> Result<(), alloc::string::String> {
    STATE.fetch_or(HELD, AcqRel);
    let end = sys::now_ns() + deadline_ns;
    loop {
        // A birth ends with what it tells the coordinator.
        relay::serve();
        let now = STATE.load(Acquire);
        if now == HELD {
            return Ok(());
        }
        let left = end.saturating_sub(sys::now_ns());
        if left == 0 {
            release();
            return Err(alloc::format!(
                "{} threads did not come to the end of a fork, spawn or exec (or slackwater_no_checkpoint_begin) in time",
                now & !HELD
            ));
        }
        relay::wait(&mut [], Some(left));
    }
}

/// Births may begin again.
pub fn release() {
    STATE.fetch_and(!HELD, AcqRel);
    sys::futex_wake(&STATE);
}
