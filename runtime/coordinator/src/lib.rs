//! The coordinator of one computation: membership, phases, barriers, key-value exchange, generations.
//!
//! - [`machine`]: what is decided (no I/O; model-tested)
//! - [`server`]: carries it out, with tokio on one thread: connections, pidfds, timers, files
//! - `generation`: what lies on disk, and the two-phase commit
//! - `files`: copies the files that images rely on, after a commit
//! - `lend`: opens images for processes that have given up the right to
//! - [`folder`]: the computation's folder: lock, secret, address; [`daemon`]: starting a coordinator in the background
#![deny(unsafe_code)]

mod connection;
pub mod daemon;
mod files;
pub mod folder;
mod generation;
mod lend;
pub mod machine;
pub mod options;
mod prepare;
mod process;
pub mod server;
mod shared;

pub use daemon::{Daemon, spawn_daemon};
pub use options::{Codec, Options};
