//! pthread_create(3), for plugins that want to hear of threads: without one it is handed on as it is.
//!
//! The new thread begins in a stub which tells the plugins, and then *jumps* to the program's function: no frame of ours is on
//! its stack, so exceptions and pthread_exit(3) unwind as they would without us. Its end is told by the destructor of a
//! pthread key, which comes whether the thread returns, exits or is cancelled.
use crate::{plugins, plugins::Event};
use alloc::boxed::Box;
use core::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicU32, Ordering::*},
};
use slackwater_hook::{hook, thread};

unsafe extern "C" {
    fn pthread_key_create(key: *mut u32, destructor: extern "C" fn(*mut c_void)) -> c_int;
    fn pthread_setspecific(key: u32, value: *const c_void) -> c_int;
}

/// The key, and one more; 0: there is none.
static KEY: AtomicU32 = AtomicU32::new(0);

/// What the program gave, in the registers in which the stub wants it.
#[repr(C)]
struct Start {
    function: *const c_void,
    argument: *mut c_void,
}

/// In the constructor, after plugins have registered.
pub fn prepare() {
    let mut key = 0;
    // SAFETY: writable; the destructor has the type.
    if plugins::wanted(Event::ThreadExit) && unsafe { pthread_key_create(&raw mut key, ended) } == 0 {
        KEY.store(key + 1, Relaxed);
    }
}

extern "C" fn ended(_: *mut c_void) {
    plugins::tell(Event::ThreadExit);
}

extern "C" fn begin(start: *mut Start) -> Start {
    // SAFETY: made below for this thread alone.
    let start = thread::guarded(|| unsafe { *Box::from_raw(start) });
    if let Some(key) = KEY.load(Relaxed).checked_sub(1) {
        // SAFETY: our key; the value only has to be something.
        unsafe { pthread_setspecific(key, (&raw const KEY).cast()) };
    }
    plugins::tell(Event::ThreadStart);
    start
}

#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn stub() {
    core::arch::naked_asm!(
        "sub rsp, 8",
        "call {begin}",
        "add rsp, 8",
        "mov rdi, rdx",
        "jmp rax",
        begin = sym begin)
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn stub() {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "bl {begin}",
        "ldp x29, x30, [sp], #16",
        "mov x16, x0",
        "mov x0, x1",
        "br x16",
        begin = sym begin)
}

hook! {
    unsafe fn pthread_create(id: *mut libc::pthread_t, attributes: *const c_void, function: *const c_void, argument: *mut c_void) -> c_int {
        if !plugins::wanted(Event::ThreadStart) && KEY.load(Relaxed) == 0 {
            // SAFETY: as the program called it.
            return unsafe { real::pthread_create(id, attributes, function, argument) };
        }
        let start = thread::guarded(|| Box::into_raw(Box::new(Start { function, argument })));
        // SAFETY: as the program called it, but for the stub, which takes its own argument.
        let r = unsafe { real::pthread_create(id, attributes, stub as *const c_void, start.cast()) };
        if r != 0 {
            // SAFETY: nobody has it.
            thread::guarded(|| drop(unsafe { Box::from_raw(start) }));
        }
        r
    }
}
