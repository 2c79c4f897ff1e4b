//! A spin lock around what threads of the program and the checkpoint thread share.
//!
//! Rules: who holds it is never stopped meanwhile (the checkpoint thread, or a thread in a birth or inside the wrapper guard), and
//! holds it for moments; so nobody spins for long. fork(2) is surrounded by [`Spin::acquire`] and [`Spin::release`]: the
//! child has the forking thread alone, and must not find the lock held by another.
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering::*},
};

/// The lock, and what it protects.
pub struct Spin<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is touched by the holder alone. What it holds of plugins' pointers lives as long as the process.
unsafe impl<T> Sync for Spin<T> {}

impl<T> Spin<T> {
    /// Not held.
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Runs `f` on the value, with the lock held.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        self.acquire();
        // SAFETY: the lock is ours.
        let r = f(unsafe { &mut *self.value.get() });
        self.release();
        r
    }

    /// Takes the lock.
    pub fn acquire(&self) {
        while self.held.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            core::hint::spin_loop();
        }
    }

    /// Gives it up: after [`Spin::acquire`], in parent and child, or in a process that has one thread alone.
    pub fn release(&self) {
        self.held.store(false, Release);
    }

    /// The value, lock or no lock.
    pub fn value(&self) -> *mut T {
        self.value.get()
    }
}
