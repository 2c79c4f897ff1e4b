//! Locks for code that is never stopped while it holds them.
//!
//! [`Lock`] is a spin lock. [`Biased`] is for the data path, where nearly every queue is used by one thread: that thread takes it
//! with plain loads and stores (a locked instruction costs some 20 cycles, twice what the whole data path may add), until
//! another one comes; then it is a spin lock for ever. Whoever comes second makes sure by membarrier(2) that the first either
//! sees that, or is seen to be inside: by the lock's own flag, or, on the shortest path, by the one word of the thread's that also
//! says that it is in a wrapper.
//!
//! Rule: every holder is inside a [`slackwater_plugin::Wrapper`], or is the checkpoint thread, or runs before there are
//! threads. So at a checkpoint no lock is held, whatever the program's threads did. (But for the `session` of a queue, which the
//! program's threads alone take.)
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, compiler_fence, fence};
use slackwater_hook::thread;

/// [`slackwater_plugin::Wrapper`] without a call: three instructions each way, for the data path.
pub(crate) struct Inside(());

impl Inside {
    #[inline(always)]
    pub(crate) fn enter() -> Self {
        thread::wrapper_enter();
        Self(())
    }
}

impl Drop for Inside {
    #[inline(always)]
    fn drop(&mut self) {
        thread::wrapper_exit();
    }
}

/// Spins, then yields the processor (there may be only one).
#[derive(Debug)]
pub(crate) struct Lock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a guard.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline(always)]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.acquire();
        Guard(self)
    }

    #[inline(always)]
    pub(crate) fn acquire(&self) {
        if self.held.swap(true, Ordering::Acquire) {
            self.wait();
        }
    }

    /// Counterpart of [`Self::acquire`]; the caller holds the lock.
    #[inline(always)]
    pub(crate) fn release(&self) {
        self.held.store(false, Ordering::Release);
    }

    #[cold]
    fn wait(&self) {
        let mut n = 0u32;
        while self.held.load(Ordering::Relaxed) || self.held.swap(true, Ordering::Acquire) {
            n = n.wrapping_add(1);
            if n.is_multiple_of(64) {
                // SAFETY: no memory is touched.
                unsafe { libc::syscall(libc::SYS_sched_yield) };
            } else {
                core::hint::spin_loop();
            }
        }
    }
}

/// See the module's head. (So aligned that its address and a wrapper's depth are told apart in one word.)
#[derive(Debug)]
#[repr(align(16))]
pub(crate) struct Biased {
    /// Thread pointer of the thread that the lock leans to; [`FREE`], [`TURNING`], or [`SPIN`].
    owner: AtomicUsize,
    /// That thread is inside, but for what its own block tells (`enter_wrapped`).
    inside: AtomicBool,
    spin: Lock<()>,
    /// Of a thread's guard block, from its thread pointer.
    guard: isize,
}

/// Nobody has used it yet.
const FREE: usize = 0;
/// A second thread waits for the first to leave.
const TURNING: usize = 1;
/// A spin lock from now on.
const SPIN: usize = 2;

/// What is read to learn whether [`peek`] is permitted.
static PROBE: u32 = 0x51ac;

/// The kernel's promise for [`Biased`]; 0: not asked for yet, 1: given, 2: refused.
static BARRIER: AtomicU32 = AtomicU32::new(0);

const MEMBARRIER_PRIVATE_EXPEDITED: i64 = 8;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: i64 = 16;

fn membarrier(command: i64) -> bool {
    // SAFETY: touches no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0i64) == 0 }
}

fn barrier_to_be_had() -> bool {
    match BARRIER.load(Ordering::Relaxed) {
        0 => {
            let given = membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED) && peek(&raw const PROBE) == Ok(PROBE);
            BARRIER.store(if given { 1 } else { 2 }, Ordering::Relaxed);
            given
        }
        known => known == 1,
    }
}

/// Every other thread of this process has a full memory barrier now. After a restart the kernel must be asked again; where the new
/// one refuses, memory that is unmapped does it, for each processor is interrupted then.
fn barrier_everywhere() {
    if membarrier(MEMBARRIER_PRIVATE_EXPEDITED)
        || (membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED) && membarrier(MEMBARRIER_PRIVATE_EXPEDITED))
    {
        return;
    }
    let page = crate::arena::reserve(4096);
    if !page.is_null() {
        // SAFETY: a fresh page of our own.
        unsafe {
            page.write_volatile(1);
            libc::syscall(libc::SYS_munmap, page, 4096usize);
        }
    }
}

#[inline(always)]
fn this_thread() -> usize {
    let pointer: usize;
    // SAFETY: reads the thread pointer, which the ABI keeps at its own address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, pure, readonly));
    }
    // SAFETY: as above, in its register.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, preserves_flags, pure, nomem));
    }
    pointer
}

impl Biased {
    pub(crate) fn new() -> Self {
        let guard = thread::guard_offset();
        Self { owner: AtomicUsize::new(FREE), inside: AtomicBool::new(false), spin: Lock::new(()), guard }
    }

    /// The guard block of the calling thread, whose pointer is `me`.
    #[inline(always)]
    fn block(&self, me: usize) -> *mut thread::PerThread {
        me.wrapping_add_signed(self.guard) as *mut thread::PerThread
    }

    #[inline(always)]
    pub(crate) fn acquire(&self) {
        let me = this_thread();
        if self.owner.load(Ordering::Relaxed) != me || !self.enter(me) {
            self.acquire_slowly(me);
        }
    }

    /// By the owner: inside, unless somebody has turned the lock meanwhile.
    #[inline(always)]
    fn enter(&self, me: usize) -> bool {
        self.inside.store(true, Ordering::Relaxed);
        // The barrier of whoever turns it orders these two for the processor.
        compiler_fence(Ordering::SeqCst);
        if self.owner.load(Ordering::Acquire) == me {
            return true;
        }
        self.inside.store(false, Ordering::Release);
        false
    }

    #[cold]
    fn acquire_slowly(&self, me: usize) {
        loop {
            match self.owner.load(Ordering::Acquire) {
                SPIN => return self.spin.acquire(),
                // SAFETY: no memory is touched.
                TURNING => drop(unsafe { libc::syscall(libc::SYS_sched_yield) }),
                owner if owner == me => {
                    if self.enter(me) {
                        return;
                    }
                }
                FREE => {
                    let to = if barrier_to_be_had() { me } else { SPIN };
                    let _ = self.owner.compare_exchange(FREE, to, Ordering::AcqRel, Ordering::Relaxed);
                }
                owner => {
                    if self.owner.compare_exchange(owner, TURNING, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                        barrier_everywhere();
                        while self.occupied(owner) {
                            // SAFETY: no memory is touched.
                            unsafe { libc::syscall(libc::SYS_sched_yield) };
                        }
                        self.owner.store(SPIN, Ordering::Release);
                    }
                }
            }
        }
    }

    /// Counterpart of [`Self::acquire`]; the caller holds the lock.
    #[inline(always)]
    pub(crate) fn release(&self) {
        // Only its owner is ever inside, and never while the spin lock is held.
        if self.inside.load(Ordering::Relaxed) {
            self.inside.store(false, Ordering::Release);
        } else {
            self.spin.release();
        }
    }

    /// Until the guard is dropped.
    pub(crate) fn lock(&self) -> BiasedGuard<'_> {
        self.acquire();
        BiasedGuard(self)
    }
}

impl Biased {
    /// What a thread's wrapper depth is while it is inside this lock by [`Self::enter_wrapped`] (and a little more in wrappers within).
    #[inline(always)]
    fn mark(&self) -> u32 {
        (core::ptr::from_ref(self) as usize + 1) as u32
    }

    /// Inside a wrapper with a lock that leans to this thread: the usual case of the data path, in as few instructions as may be, and
    /// as few stores: one word of the thread's says both that it is in a wrapper and in which lock, and is stored, not
    /// counted up and down, so that no call waits for the last one's stores. False: in another wrapper already, or the lock does not
    /// lean to this thread; nothing has been taken then, and the caller must enter a wrapper.
    #[inline(always)]
    pub(crate) fn enter_wrapped(&self) -> bool {
        let me = this_thread();
        // SAFETY: the block is this thread's; a handler on it may ask for a stop at any instant.
        let depth = unsafe { AtomicU32::from_ptr(&raw mut (*self.block(me)).wrapper_depth) };
        if depth.load(Ordering::Relaxed) != 0 {
            return false;
        }
        depth.store(self.mark(), Ordering::Relaxed);
        // As in `Biased::enter`.
        compiler_fence(Ordering::SeqCst);
        if self.owner.load(Ordering::Acquire) == me {
            return true;
        }
        // A stop that was asked for meanwhile happens as the caller leaves the wrapper that it enters now: to park here would cost
        // each call the registers that are kept over that.
        depth.store(0, Ordering::Release);
        false
    }

    /// Counterpart of [`Self::enter_wrapped`]. The block is looked up again: to keep it would save a register around the driver's
    /// call, and restore it.
    #[inline(always)]
    pub(crate) fn leave_wrapped(&self) {
        let block = self.block(this_thread());
        // SAFETY: as above.
        unsafe {
            AtomicU32::from_ptr(&raw mut (*block).wrapper_depth).store(0, Ordering::Release);
            if (&raw const (*block).stop_requested).read_volatile() != 0 {
                thread::park();
            }
        }
    }

    /// Whether the thread that this lock leaned to is inside, in either way.
    fn occupied(&self, owner: usize) -> bool {
        if self.inside.load(Ordering::Acquire) {
            return true;
        }
        let block = self.block(owner);
        let depth = match peek(block.cast()) {
            Ok(depth) => depth,
            Err(libc::EFAULT) => return false,
            // Only after a restart where the kernel permits less than it did: the threads are those of the checkpoint.
            // SAFETY: such a thread's block.
            Err(_) => unsafe { (&raw const (*block).wrapper_depth).read_volatile() },
        };
        fence(Ordering::Acquire);
        let low = align_of::<Self>() as u32 - 1;
        depth & low != 0 && depth & !low == self.mark() & !low
    }
}

/// A word of this process, by the kernel, which does not mind if it is there no more: a thread's block goes when the thread ends.
fn peek(at: *const u32) -> Result<u32, c_int> {
    let mut word = 0u32;
    let to = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 4 };
    let from = libc::iovec { iov_base: at.cast_mut().cast(), iov_len: 4 };
    // SAFETY: writes to `word` alone.
    unsafe {
        match libc::syscall(libc::SYS_process_vm_readv, libc::getpid(), &to, 1usize, &from, 1usize, 0usize) {
            4 => Ok(word),
            _ => Err(*libc::__errno_location()),
        }
    }
}

/// [`Biased::enter_wrapped`] until it is dropped.
pub(crate) struct Held(*const Biased);

impl Held {
    /// None: nothing has been taken.
    ///
    /// # Safety
    /// The lock outlives what is returned.
    #[inline(always)]
    pub(crate) unsafe fn take(lock: *const Biased) -> Option<Self> {
        // SAFETY: by contract. (Not `then_some`: what is not taken must not be dropped, for that would let go of another's.)
        if unsafe { (*lock).enter_wrapped() } { Some(Self(lock)) } else { None }
    }
}

impl Drop for Held {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: as `take` demands.
        unsafe { (*self.0).leave_wrapped() };
    }
}

pub(crate) struct BiasedGuard<'a>(&'a Biased);

impl Drop for BiasedGuard<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

pub(crate) struct Guard<'a, T>(&'a Lock<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    /// As the data path takes it.
    fn take(lock: &Biased) -> Option<Held> {
        // SAFETY: the guard is dropped before the lock.
        unsafe { Held::take(lock) }
    }

    /// Increments that are lost if two threads are ever inside at once, whether the first leans on the lock or not.
    #[test]
    fn a_biased_lock_excludes() {
        for _ in 0..200 {
            let (lock, value) = (Biased::new(), AtomicU64::new(0));
            // All are there at once: who comes after another has ended may get its thread pointer, and is the owner then.
            let begin = std::sync::Barrier::new(3);
            let add = |n: u64| {
                begin.wait();
                for i in 0..n {
                    let held = if i & 1 == 0 { take(&lock) } else { None };
                    let guard = if held.is_none() { Some(lock.lock()) } else { None };
                    value.store(value.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    drop((held, guard));
                }
            };
            thread::scope(|s| {
                s.spawn(|| add(20_000));
                s.spawn(|| add(300));
                s.spawn(|| add(300));
            });
            assert_eq!(value.load(Ordering::Relaxed), 20_600);
            assert_eq!(lock.owner.load(Ordering::Relaxed), SPIN, "three threads have used it");
        }
        let lock = Biased::new();
        assert!(take(&lock).is_none(), "it leans to nobody yet");
        drop(lock.lock());
        let (other, me) = (Biased::new(), this_thread());
        let held = take(&lock).expect("it leans to this thread");
        assert!(take(&lock).is_none(), "this thread is in a wrapper");
        assert!(lock.occupied(me) && !other.occupied(me), "which lock it is in can be told");
        let within = Inside::enter();
        assert!(lock.occupied(me) && !other.occupied(me), "in a wrapper within, too");
        drop((within, held));
        assert!(!lock.occupied(me) && !lock.occupied(1 << 12), "nobody; a thread whose memory is gone");
        assert_eq!(lock.owner.load(Ordering::Relaxed), this_thread(), "one thread keeps it for itself");
        drop(Inside::enter());
        assert!(!lock.occupied(me));
    }
}
