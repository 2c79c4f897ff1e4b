//! Whole MPI stacks, as the users run them: `slackwater launch mpirun ...`, seen from outside.
//!
//! A [`Job`] is one program under one `mpirun` over one [`Transport`] (which is data) with so many ranks. [`scenario`] plays
//! it: it is checkpointed while messages fly, killed with SIGKILL, mpirun and daemons and all, and restarted. The programs
//! in `programs/` check every byte themselves; the solver's digits are also compared with those of a native run.
//!
//! Rules: those of the harness below it: waits are for events and are bounded.
#![deny(unsafe_code)]

pub mod demo;
pub mod ending;
pub mod guest;
pub mod job;
pub mod package;
pub mod reboot;
pub mod scenario;
pub mod shape;
pub mod source;
pub mod transport;

pub use job::Job;
pub use package::{PACKAGES, Package};
pub use shape::SHAPES;
pub use transport::{Mpi, TRANSPORTS, Transport};
