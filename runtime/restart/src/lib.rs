//! What `slackwater restart` does.
#![deny(unsafe_code)]

pub mod enter;
