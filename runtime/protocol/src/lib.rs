//! What coordinator, processes and the command line say to each other.
//!
//! Used inside programs that are not ours, so: no_std, no input or output, memory only through the global allocator.
#![no_std]
#![deny(unsafe_code)]
extern crate alloc;

pub mod message;
