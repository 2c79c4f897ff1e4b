//! A second thread for a moment, while the program stands: what is asked of each of thousands of sockets takes half as long.
//!
//! Rules: it shares all with the thread that makes it (the program's descriptor table above all), takes no signal, calls
//! nothing of libc, and is gone, with its stack, before [`both`] returns.
use crate::{arch, init, sys};
use core::{
    ffi::c_void,
    sync::atomic::{AtomicI32, AtomicPtr, Ordering::*},
};

const STACK: usize = 128 << 10;
/// What it is to do: a `&mut (dyn FnMut() + Send)`.
static WORK: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
/// Its id.
static SECOND: AtomicI32 = AtomicI32::new(0);

/// Runs both, at the same time where a thread can be had, else one after the other.
pub fn both(first: &mut (dyn FnMut() + Send), second: &mut (dyn FnMut() + Send)) {
    let Some(area) = Area::map() else {
        first();
        return second();
    };
    let mut second = second;
    WORK.store((&raw mut second).cast(), Release);
    let tls = area.0 + STACK + init::TLS - init::TLS_ABOVE;
    let (all, mut before) = (u64::MAX, 0u64);
    // SAFETY: memory of its own, which stays until it is gone; it inherits the mask.
    let tid = unsafe {
        _ = sc!(rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, 8);
        arch::make_tls(tls);
        let tid = arch::bare_thread(area.0 + STACK, tls, run);
        _ = sc!(rt_sigprocmask, libc::SIG_SETMASK, &raw const before, 0, 8);
        tid
    };
    elsewhere(tid);
    first();
    if tid < 0 {
        return second();
    }
    // The kernel knows it until it has left the stack.
    // SAFETY: no signal is sent.
    while unsafe { sc!(tgkill, sys::getpid(), tid, 0) }.is_ok() {
        // SAFETY: no memory is touched.
        _ = unsafe { sc!(sched_yield) };
    }
}

/// Has it run on another CPU than this one, on which the scheduler leaves it for milliseconds where it sees no work for two.
fn elsewhere(tid: isize) {
    let Some(cpu) = crate::asleep::current_cpu() else { return };
    let mut mask = [0u8; 1024];
    // SAFETY: a mask of the length given. Of a thread that could not be made, or where there is no other CPU, nothing is changed.
    unsafe {
        let Ok(len) = sc!(sched_getaffinity, 0, mask.len(), mask.as_mut_ptr()) else { return };
        mask[usize::from(cpu / 8) % 1024] &= !(1 << (cpu % 8));
        if tid > 0 {
            _ = sc!(sched_setaffinity, tid, len, mask.as_ptr());
        }
    }
}

extern "C" fn run() {
    SECOND.store(sys::gettid(), Release);
    // SAFETY: `both` waits for us.
    let work = unsafe { &mut *WORK.load(Acquire).cast::<&mut (dyn FnMut() + Send)>() };
    work();
    SECOND.store(0, Release);
}

/// On the second thread: ends it, its work undone. Else returns.
pub fn leave_second() {
    if SECOND.load(Acquire) == sys::gettid() {
        // SAFETY: ends this thread alone.
        _ = unsafe { sc!(exit, 0) };
    }
}

/// Stack and TLS block.
struct Area(usize);

impl Area {
    const SIZE: usize = STACK + init::TLS;

    fn map() -> Option<Self> {
        let area = Self(sys::map_anonymous(Self::SIZE, 0).ok()? as usize);
        // SAFETY: the lowest page of our own mapping: an overflow ends there.
        unsafe { sc!(mprotect, area.0, 4096, libc::PROT_NONE) }.ok()?;
        Some(area)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        _ = unsafe { sc!(munmap, self.0, Self::SIZE) };
    }
}
