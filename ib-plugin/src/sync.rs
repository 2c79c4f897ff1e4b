//! A lock for code that is never stopped while it holds it.
//!
//! Rule: every holder is inside a [`slackwater_plugin::Wrapper`], or is the checkpoint thread, or runs before there are
//! threads. So at a checkpoint no lock is held, whatever the program's threads did.
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

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
