//! What a wrapper's `real::name` is made of: the cached address of the next definition, and what to return where there is
//! none (this libc is older than the wrapper).
//!
//! # Safety
//! The one foreign call is the C library's own accessor of errno.
#![allow(unsafe_code)]
use crate::elf;
use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The next definition of one name, found on first use.
#[derive(Debug)]
pub struct Next {
    address: AtomicUsize,
    name: &'static CStr,
    version: Option<&'static CStr>,
}

impl Next {
    /// Nothing is looked up yet.
    pub const fn new(name: &'static CStr, version: Option<&'static CStr>) -> Self {
        Self { address: AtomicUsize::new(0), name, version }
    }

    /// The address; 0 when no library behind ours defines it. No lock: two threads that are first find the same.
    #[inline(always)]
    pub fn get(&self) -> usize {
        let a = self.address.load(Relaxed);
        if a != 0 { a } else { self.look_up() }
    }

    #[cold]
    fn look_up(&self) -> usize {
        // The static itself lies in the asking library.
        let own = core::ptr::from_ref(self) as usize;
        let a = elf::next(own, self.name, self.version).unwrap_or(0);
        self.address.store(a, Relaxed);
        a
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
}

/// The value of a function that does not exist on this system: errno is ENOSYS.
pub trait Absent {
    /// -1 or NULL, as the C library's functions return.
    fn absent() -> Self;
}

fn enosys() {
    const ENOSYS: i32 = 38;
    // SAFETY: points to this thread's errno.
    unsafe { *__errno_location() = ENOSYS };
}

macro_rules! absent {
    ($($t:ty => $v:expr),*) => { $( impl Absent for $t { fn absent() -> Self { enosys(); $v } } )* };
}
absent!(i32 => -1, isize => -1, i64 => -1, u32 => u32::MAX, u64 => u64::MAX, usize => usize::MAX, () => ());

impl<T> Absent for *mut T {
    fn absent() -> Self {
        enosys();
        core::ptr::null_mut()
    }
}
impl<T> Absent for *const T {
    fn absent() -> Self {
        enosys();
        core::ptr::null()
    }
}
