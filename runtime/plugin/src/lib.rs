//! Rust SDK of the plugin interface that `include/slackwater.h` defines for C.
//!
//! A plugin is a preloaded library. The functions of the runtime are found by the dynamic linker through *weak*
//! references (see [`abi`]), so a plugin also loads and runs where no runtime is present: then [`present`] is false,
//! nothing is ever called back, and the wrapper marks are no-ops.
//!
//! Rules for code inside hooks are those of the header: no malloc of the program, no stdio, no loader, and no lock that a
//! wrapper holds outside of a [`Wrapper`].
#![no_std]
#![deny(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

#[allow(unsafe_code)]
pub mod abi;
#[allow(unsafe_code)]
mod api;

pub use abi::{Event, Info, Plugin, Query, Status, Verdict};
pub use api::{
    Checkpoint, Hook, IdTable, NoCheckpoint, NotRegistered, Wrapper, call, checkpoint, cutout, next, option, present,
    protect_fd, publish, put_section, query, register, report, section, status, unprotect_fd,
};
