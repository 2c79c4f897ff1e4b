//! A defect of ours must not end the program: the checkpoint thread lets the program's threads go, says what happened, and
//! ends. A parked thread of the program that has been lent to us goes back to being parked. On another thread of the program
//! (inside a wrapper) there is no way back, and the process aborts as it would by its own defect.
use crate::{relay, stop, sys};
use alloc::format;

// The precompiled `core` has landing pads; nothing here unwinds.
core::arch::global_asm!(
    ".globl rust_eh_personality, _Unwind_Resume",
    ".hidden rust_eh_personality, _Unwind_Resume",
    "rust_eh_personality:",
    "_Unwind_Resume:",
    "ud2"
);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    sys::complain(&format!("internal error, please report it: {info}"));
    stop::leave_job();
    stop::leave_second();
    if relay::is_listener() {
        stop::resume();
        relay::close();
        loop {
            // SAFETY: ends this thread alone.
            _ = unsafe { sc!(exit, 0) };
        }
    }
    loop {
        // SAFETY: SIGABRT, as abort(3); where that is blocked (in the child that writes an image) the end by exit.
        unsafe {
            _ = sc!(tgkill, sys::getpid(), sys::gettid(), libc::SIGABRT);
            _ = sc!(exit_group, 134);
        }
    }
}
