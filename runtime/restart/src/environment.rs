//! `restart --env`: what it adds waits in the checkpoint folder for the agents, which read it when their memory is back.
use crate::Options;
use anyhow::{Context, Result};
use slackwater_protocol::names::FILE_ENVIRONMENT;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Leaves what the user asked for to the agents; an earlier restart's is gone.
///
/// # Errors
/// The folder cannot be written to.
pub fn leave(options: &Options) -> Result<()> {
    withdraw(options);
    if options.env.is_empty() {
        return Ok(());
    }
    let path = options.dir.join(FILE_ENVIRONMENT);
    let text: Vec<u8> = options.env.iter().flat_map(|v| v.bytes().chain([0])).collect();
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(&text))
        .with_context(|| format!("{}: what --env adds cannot be left there for the processes", path.display()))
}

/// All have read it, or nobody will.
pub fn withdraw(options: &Options) {
    // Mostly there is none.
    let _ = fs::remove_file(options.dir.join(FILE_ENVIRONMENT));
}
