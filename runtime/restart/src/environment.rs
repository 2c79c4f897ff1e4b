//! What waits in the checkpoint folder for the agents, which read it when their memory is back: what `restart --env` adds, and
//! the addresses that programs know their sockets by (`slackwater_socket::known`).
use crate::Options;
use anyhow::{Context, Result};
use slackwater_protocol::names::{FILE_ENVIRONMENT, FILE_NAMES};
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
    let text: Vec<u8> = options.env.iter().flat_map(|v| v.bytes().chain([0])).collect();
    write(options, FILE_ENVIRONMENT, &text, "what --env adds")
}

fn write(options: &Options, name: &str, bytes: &[u8], what: &str) -> Result<()> {
    let path = options.dir.join(name);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("{}: {what} cannot be left there for the processes", path.display()))
}

/// Leaves what the programs know their sockets' addresses as, for as long as the computation runs: programs that it becomes later
/// read it, too.
///
/// # Errors
/// The folder cannot be written to.
pub fn leave_names(options: &Options, names: &[u8]) -> Result<()> {
    let _ = fs::remove_file(options.dir.join(FILE_NAMES));
    if names.is_empty() || options.new_addresses {
        return Ok(());
    }
    write(options, FILE_NAMES, names, "what the programs know their addresses as")
}

/// All have read it, or nobody will.
pub fn withdraw(options: &Options) {
    // Mostly there is none.
    let _ = fs::remove_file(options.dir.join(FILE_ENVIRONMENT));
}
