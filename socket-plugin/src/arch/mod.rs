//! One file an architecture; all assembly of this crate is here.
#![allow(unsafe_code)] // Reason: the system call instruction.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::syscall6;
#[cfg(target_arch = "x86_64")]
pub use x86_64::syscall6;
