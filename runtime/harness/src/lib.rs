//! Test harness: real programs under the real `slackwater`, seen from outside.
//!
//! A [`Computation`] is one folder with what runs in it: it can be launched, checkpointed, killed with SIGKILL and
//! restarted, with its standard streams on pipes or on a terminal, as the caller or as an unprivileged user. A
//! [`Program`] is a small self-checking program with its scenario in its head; [`scenario`] plays it.
//!
//! Rules: waits are for events (a line of output, the end of a process) and are bounded, and a bound that is reached is
//! an error which says what was waited for and what was seen. Only processes that descend from our own are ended, by pid.
#![deny(unsafe_code)]

mod computation;
mod kit;
mod output;
mod process;
mod program;
pub mod scenario;
mod status;

pub use computation::{Computation, Mode};
pub use kit::Kit;
pub use output::Output;
pub use process::{kill_tree, tree};
pub use program::Program;
pub use status::{Checkpoint, Status};

use std::time::Duration;

/// How long any single event may take to come before the test fails. The guest's one CPU is slower, so it has longer.
#[must_use]
pub fn patience() -> Duration {
    Duration::from_secs(if in_guest() { 120 } else { 60 })
}

/// Do we run inside the guest? (Whoever boots it says so by this variable.)
#[must_use]
pub fn in_guest() -> bool {
    std::env::var_os("SLACKWATER_IN_GUEST").is_some()
}
