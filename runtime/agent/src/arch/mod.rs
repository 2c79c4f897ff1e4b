//! All assembly of the agent, and what it knows of signal frames; files named by the architecture.
#[cfg(target_arch = "x86_64")]
#[path = "x86_64_again.rs"]
mod again;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64_beyond.rs"]
mod beyond;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use again::{has_timeout, note as note_time_left};
#[cfg(target_arch = "x86_64")]
pub use beyond::Beyond;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
