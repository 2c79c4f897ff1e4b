//! What a preloaded library needs to wrap functions of other libraries.
//!
//! * [`elf`]: the next definition of a symbol after our own, as `dlvsym(RTLD_NEXT)` would find it, but without a lock, an
//!   allocation or a call into the loader: usable from signal handlers and from inside `malloc`.
//! * [`thread`]: one small block per thread by initial-exec TLS, and the wrapper guard (two plain stores) that keeps a
//!   thread from being stopped half-way through a wrapper.
//! * [`hook!`]: defines an exported wrapper, `real::name` (the next definition) and `__wrap_name`, to which the linker's
//!   `--wrap` sends every use of the name inside the library itself, those of std included.
//! * [`versioned!`]: exports several versions of one name.
//! * `build` (feature): one list of names becomes the linker's arguments; `check` (feature): does a built library export
//!   exactly the names of that list?
//!
//! Rules: nothing here allocates, locks, panics or calls libc except `__errno_location`; every piece is usable before any
//! constructor has run. Fat LTO breaks `--wrap` (tried): libraries with hooks are built without it.
#![cfg_attr(not(any(test, feature = "build", feature = "check")), no_std)]
#![deny(unsafe_code)]

mod arch;
#[cfg(feature = "build")]
pub mod build;
#[cfg(feature = "check")]
pub mod check;
pub mod elf;
#[macro_use]
mod macros;
pub mod real;
pub mod thread;
