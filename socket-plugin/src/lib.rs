//! Sockets: captured by asking the kernel and by peeking, rebuilt from that.
//!
//! Two halves. *Capture* runs inside the stopped program (`no_std`, raw system calls, [`sys`]); it never takes a byte out
//! of a queue. *Rebuild* (feature `rebuild`) is ordinary Rust in `slackwater restart`.
#![cfg_attr(not(feature = "rebuild"), no_std)]
#![deny(unsafe_code)]
extern crate alloc;

mod arch;
pub mod sys;
