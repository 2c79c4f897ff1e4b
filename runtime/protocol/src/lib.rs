//! What coordinator, processes and the command line say to each other.
//!
//! Used inside programs that are not ours, so: no_std, no input or output, memory only through the global allocator.
//! The exception is the feature `std`: a blocking client for ordinary programs.
//!
//! - [`frame`]: how a message becomes bytes, and bytes messages
//! - [`auth`]: how both ends prove that they know the computation's secret
//! - [`message`]: what a process says and hears
//! - [`command`]: what the command line says and hears
//! - [`names`]: environment variables and file names that all parts agree on
//! - [`signal`]: the checkpoint signal
#![no_std]
#![deny(unsafe_code)]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod auth;
mod bytes;
#[cfg(feature = "std")]
pub mod client;
pub mod command;
pub mod frame;
pub mod message;
pub mod names;
pub mod signal;
