//! The checkpoint image: what one process is made of (`meta`), and how that is laid out in a file.
//!
//! Used by the agent (which writes it inside a stopped program), by `slackwater restart` and `inspect` (which read it)
//! and by the restorer (which sees only [`plan`]). Nothing here does input or output by itself.
#![no_std]
#![deny(unsafe_code)]
extern crate alloc;

pub mod meta;
