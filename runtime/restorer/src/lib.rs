//! The restorer's plan: the seam between `slackwater restart`, which makes it, the freestanding program beside this file,
//! which executes it, and the agent, which finds [`plan::RestartInfo`] afterwards.
#![no_std]
#![forbid(unsafe_code)]

pub mod plan;
