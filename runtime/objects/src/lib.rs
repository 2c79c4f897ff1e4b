//! Descriptors and the kernel objects behind them.
//!
//! Two halves. *Capture* ([`capture`], or [`survey`] then [`quiet`] then [`fill`]) runs inside the stopped program: no_std,
//! raw system calls, and it *peeks*: after it, offsets, queues and counters are as they were. *Rebuild* (feature `rebuild`)
//! is ordinary Rust in `slackwater restart`: what processes share is made once in the root of the tree
//! (`rebuild::prepare`), the rest in each process (`rebuild::Prepared::install`).
#![cfg_attr(not(feature = "rebuild"), no_std)]
#![deny(unsafe_code)]
extern crate alloc;

mod capture;
pub mod ipc;
pub mod model;
#[cfg(feature = "rebuild")]
pub mod rebuild;
pub use slackwater_socket::known;
pub mod watched;

pub use capture::{
    Both, CaptureError, Mapped, Undo, backlog, capture, fill, fill_ipc, in_turn, keys, quiet, release, restarted,
    saved_once, settle, survey, survey_ipc, take_on_undos,
};
pub use model::Table;
