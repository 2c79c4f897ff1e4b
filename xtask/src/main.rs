//! `cargo xtask`: everything that a developer of slackwater types.
//!
//! One file a subcommand. Rules: each command is non-interactive, says what it does, can be run again, and ends with a
//! status that a script can trust. What runs inside the guest is shell (`guest/`); what runs on the host is here.
#![deny(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program for people: it talks")]

mod bench;
mod demo;
mod guest;
mod image;
mod kernel;
mod nodes;
mod run;
mod setup;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Developer's commands of slackwater.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing (Debian packages, the guest's kernel); does nothing the second time.
    Setup(setup::Options),
    /// Run a command in the guest: a kernel of our own with soft-RoCE, the host's root under a throw-away overlay.
    Guest(guest::Options),
    /// Measure: calls, launch, checkpoint, restart, beside the same natively.
    Bench(bench::Options),
    /// Show it: an MPI solver over RDMA is checkpointed, killed, and goes on after a reboot.
    Demo(demo::Options),
    /// Check, build and test everything, on the host and in the guest.
    Test(test::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup(options) => setup::run(&options).map(|()| 0),
        Command::Bench(options) => bench::run(&options).map(|()| 0),
        Command::Demo(options) => demo::run(&options),
        Command::Guest(options) => guest::run(&options),
        Command::Test(options) => test::run(&options).map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(125)
        }
    }
}
