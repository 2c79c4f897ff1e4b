//! The entry point of `slackwater`.
//!
//! There is no Rust `main`: the standard library's start-up code sets SIGPIPE to be ignored, which the launched program
//! would inherit, and would open descriptors 0 to 2 where they are closed. A launched program is to see what it would
//! see without us.
#![no_main]

/// Called by the C library's start-up code.
// SAFETY: no other `main` is linked (no_main); the signature is C's.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    slackwater_cli::run()
}
