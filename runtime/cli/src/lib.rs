//! All of `slackwater` but its entry point, see `main.rs`.
//!
//! Exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage. `launch` becomes the program it launches, and
//! so ends with that program's status. `--json` prints one object and nothing else.
#![deny(unsafe_code)]

mod args;
mod check;
mod command;
mod coordinator;
mod doctor;
mod inspect;
mod launch;
mod plugin;
mod restart;

use clap::Parser;
use std::io::Write;

/// Reads the command line and does what it says; the exit status.
#[must_use]
pub fn run() -> i32 {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are no errors; all else is wrong usage: clap's exit codes are ours.
            let _ = error.print();
            let _ = std::io::stdout().flush();
            return error.exit_code();
        }
    };
    let result = match args.command {
        args::Command::Launch(launch) => launch::launch(launch),
        args::Command::Restart(restart) => restart::restart(restart),
        args::Command::Checkpoint { dir, kill, json } => command::checkpoint(&dir.dir, kill, json),
        args::Command::Status { dir, json } => command::status(&dir.dir, json),
        args::Command::Kill { dir } => command::kill(&dir.dir),
        args::Command::Coordinator { dir, options, daemon } => coordinator::run(&dir.dir, options, daemon),
        args::Command::Doctor { dir, json, program } => doctor::doctor(&dir.dir, json, program.as_ref()),
        args::Command::TryPlugins => plugin::tried(),
        args::Command::Inspect { image, json, no_verify } => inspect::inspect(&image, json, !no_verify),
    };
    // Nobody else does: the standard library flushes at the end of its own main only.
    let flushed = std::io::stdout().flush();
    match result.and(flushed.map_err(Into::into)) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "slackwater: {error:#}");
            1
        }
    }
}
