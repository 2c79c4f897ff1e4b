//! The checkpoint image: what one process is made of ([`meta`]), how that is laid out in a file ([`layout`]), the
//! [`writer`] for a stopped program, and, with the feature `std`, the [`reader`].
//!
//! Used by the agent (which writes it inside a stopped program), by `slackwater restart` and `inspect` (which read it)
//! and by the restorer (which sees only the plan). The core is `no_std + alloc` and makes no system call by itself.
#![no_std]
#![deny(unsafe_code)]
extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod checksum;
pub mod codec;
#[cfg(feature = "std")]
pub mod error;
#[cfg(feature = "std")]
pub mod generations;
#[cfg(feature = "std")]
pub mod inspect;
pub mod layout;
pub mod manifest;
pub mod meta;
#[cfg(feature = "std")]
pub mod reader;
pub mod sink;
#[cfg(feature = "std")]
pub mod store;
#[cfg(feature = "std")]
pub mod verify;
pub mod writer;
#[cfg(feature = "zstd")]
mod zstd;
