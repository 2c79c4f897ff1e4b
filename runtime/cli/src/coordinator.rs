//! `slackwater coordinator`: in the foreground, or as the daemon that `launch` and `restart` start.
#![allow(unsafe_code)] // takes over descriptors 3 and 4
use crate::args::CoordinatorOptions;
use anyhow::{Context, Result};
use slackwater_coordinator::{daemon, folder, server};
use std::path::Path;

/// Runs until the computation has ended.
pub fn run(dir: &Path, options: CoordinatorOptions, daemon: bool) -> Result<()> {
    let claim = if daemon {
        // SAFETY: nothing in this process has opened or taken over a descriptor yet; `spawn_daemon` put these two there.
        unsafe { daemon::adopt(dir) }?
    } else {
        folder::claim(dir)?
    };
    server::run(claim, &options.into_options()).context("the coordinator cannot run")
}
