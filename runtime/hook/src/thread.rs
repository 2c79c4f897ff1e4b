//! The per-thread block and the wrapper guard.
//!
//! A thread between [`wrapper_enter`] and [`wrapper_exit`] is not to be stopped: the stop handler sees `wrapper_depth`,
//! sets `stop_requested` and returns; the thread parks as it leaves its outermost wrapper. Both are plain stores to memory
//! of the thread itself, so no barrier is needed: the handler runs on the same thread.
//!
//! Each library that links this crate has a block of its own in its TLS, but the guard of all must be the agent's. The
//! agent therefore exports two functions ([`export_thread_block!`](crate::export_thread_block)); a plugin finds them in
//! the link map the first time its guard is used, and remembers the block's offset from the thread pointer, which is the
//! same in each thread. Without an agent (the plugin's own tests) its own block serves.
//!
//! # Safety
//! Blocks are only touched by their own thread, and by the agent's handler on that thread.
#![allow(unsafe_code)]
use crate::{arch, elf};
use core::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

/// The block. Zeroed when a thread begins; fork copies it.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct PerThread {
    /// How many wrappers this thread is in.
    pub wrapper_depth: u32,
    /// The stop signal came while it was in one: park on leaving.
    pub stop_requested: u32,
    /// Thread id, 0 as long as nobody filled it in. After fork it is the parent's: the agent's POSTFORK resets it.
    pub tid: i32,
    /// The agent's flags.
    pub flags: u32,
    /// The agent's own words.
    pub agent: [usize; 14],
}
const _: () = assert!(size_of::<PerThread>() == 128);

/// This library's own block of the calling thread (the agent's is the one that counts; see the module's head). Two
/// instructions on x86-64; async-signal-safe; works before any constructor.
#[inline(always)]
pub fn per_thread() -> *mut PerThread {
    arch::own_block()
}

/// Offset of the guarding block from the thread pointer; 0: not looked up yet (an offset of 0 is the TCB: never a block).
static OFFSET: AtomicIsize = AtomicIsize::new(0);
static PARK: AtomicUsize = AtomicUsize::new(0);

#[inline(always)]
fn offset() -> isize {
    let o = OFFSET.load(Relaxed);
    if o != 0 { o } else { look_up() }
}

#[cold]
fn look_up() -> isize {
    let block = match elf::first(c"slackwater_thread_block", None) {
        // SAFETY: the agent's export has this type.
        Some(f) => unsafe { core::mem::transmute::<usize, extern "C" fn() -> *mut PerThread>(f)() },
        None => arch::own_block(),
    };
    let o = (block as usize).wrapping_sub(arch::thread_pointer()) as isize;
    OFFSET.store(o, Relaxed);
    o
}

/// The block that guards the calling thread: the agent's, or our own where there is no agent.
#[inline(always)]
pub fn guard_block() -> *mut PerThread {
    arch::thread_pointer().wrapping_add_signed(offset()) as *mut PerThread
}

/// Where that block lies from the thread pointer: the same in each thread, for the process's life.
#[inline]
pub fn guard_offset() -> isize {
    offset()
}

/// From here on this thread is not stopped. Nests. Async-signal-safe.
#[inline(always)]
pub fn wrapper_enter() {
    // SAFETY: the offset leads to `wrapper_depth`, the block's first field, of this thread.
    unsafe { arch::increment(offset()) };
}

/// The end of what [`wrapper_enter`] began; parks if a stop was asked for meanwhile.
#[inline(always)]
pub fn wrapper_exit() {
    let o = offset();
    // SAFETY: as above; `stop_requested` may be set by a handler at any instant, hence volatile.
    unsafe {
        arch::decrement(o);
        let block = arch::thread_pointer().wrapping_add_signed(o) as *mut PerThread;
        if (&raw const (*block).stop_requested).read_volatile() != 0
            && (&raw const (*block).wrapper_depth).read_volatile() == 0
        {
            park();
        }
    }
}

/// Runs `f` between [`wrapper_enter`] and [`wrapper_exit`].
#[inline(always)]
pub fn guarded<R>(f: impl FnOnce() -> R) -> R {
    wrapper_enter();
    let r = f();
    wrapper_exit();
    r
}

/// Registers the function that parks the calling thread until it may go on (the agent's constructor does this; a plugin
/// finds it by the agent's export `slackwater_park`). It must clear `stop_requested`, and keep errno.
pub fn set_park(park: extern "C" fn()) {
    PARK.store(park as usize, Relaxed);
}

/// Parks, as [`wrapper_exit`] does; does nothing when nobody registered a function.
#[cold]
pub fn park() {
    let mut p = PARK.load(Relaxed);
    if p == 0 {
        p = elf::first(c"slackwater_park", None).unwrap_or(0);
    }
    if p != 0 {
        // SAFETY: registered by `set_park`, or the agent's export, of this type.
        unsafe { core::mem::transmute::<usize, extern "C" fn()>(p)() };
    }
}

/// In the agent: exports its block and its park function to plugins that link this crate.
/// `park` is an `extern "C" fn()`; it is registered by [`set_park`] separately.
#[macro_export]
macro_rules! export_thread_block {
    ($park:path) => {
        /// The calling thread's block, for plugins.
        #[unsafe(no_mangle)]
        pub extern "C" fn slackwater_thread_block() -> *mut $crate::thread::PerThread {
            $crate::thread::per_thread()
        }
        /// Parks the calling thread, for plugins' guards.
        #[unsafe(no_mangle)]
        pub extern "C" fn slackwater_park() {
            $park()
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_per_thread_and_zeroed() {
        let here = per_thread() as usize;
        assert_eq!(here % 16, 0);
        let there = std::thread::spawn(|| {
            let p = per_thread();
            // SAFETY: this thread's own block.
            let (tid, depth) = unsafe { ((*p).tid, (*p).wrapper_depth) };
            (p as usize, tid, depth)
        });
        let (there, tid, depth) = there.join().unwrap();
        assert_ne!(here, there);
        assert_eq!((tid, depth), (0, 0));
    }

    static PARKED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn note() {
        PARKED.fetch_add(1, Relaxed);
        // SAFETY: this thread's own block.
        unsafe { (*guard_block()).stop_requested = 0 };
    }

    #[test]
    fn parks_when_the_outermost_wrapper_is_left() {
        set_park(note);
        wrapper_enter();
        wrapper_enter();
        // SAFETY: this thread's own block; this is what the stop handler does.
        unsafe {
            assert_eq!((*guard_block()).wrapper_depth, 2);
            (*guard_block()).stop_requested = 1;
        }
        wrapper_exit();
        assert_eq!(PARKED.load(Relaxed), 0);
        wrapper_exit();
        assert_eq!(PARKED.load(Relaxed), 1);
        guarded(|| ());
        assert_eq!(PARKED.load(Relaxed), 1);
        // SAFETY: as above.
        assert_eq!(unsafe { (*guard_block()).wrapper_depth }, 0);
    }
}
