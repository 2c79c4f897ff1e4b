//! Rebuilds an address space from a plan, then becomes the restored process.
//!
//! It runs when nothing else is mapped: no libc, no vdso, no heap, and only its own stack. Rules: no decision is taken here
//! (they are in the plan); no panic path that formats; every failure is one line on stderr with the number of the step, and
//! exit status 99.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod arch;
#[allow(unsafe_code)]
mod execute;

pub use execute::run;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    execute::die(b"internal error", 0, 0)
}
