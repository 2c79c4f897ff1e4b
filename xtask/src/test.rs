//! `test`: what CI runs.
use crate::{run, setup};
use anyhow::Result;
use clap::Args;

/// `test`'s options.
#[derive(Args)]
pub struct Options {
    /// The core alone, in under three minutes.
    #[arg(long)]
    quick: bool,
    /// Everything, the long runs too.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
}

/// Setup, format, lints, build, tests.
pub fn run(_options: &Options) -> Result<()> {
    setup::ensure()?;
    run::step(&mut run::cargo(["fmt", "--all", "--check"]))?;
    // The agent has no std and the restorer not even a libc; cargo would unify their features with everybody's, so they
    // are built by themselves.
    const REST: [&str; 5] = ["--workspace", "--exclude", "slackwater-agent", "--exclude", "slackwater-restorer"];
    const APART: [&str; 2] = ["slackwater-agent", "slackwater-restorer"];
    let with = |first: &str, rest: &[&str]| run::cargo([first].iter().chain(REST.iter()).chain(rest).copied());
    run::step(&mut with("clippy", &["--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    for package in APART {
        run::step(&mut run::cargo(["clippy", "-p", package, "--quiet", "--", "-D", "warnings"]))?;
    }
    run::step(&mut with("build", &["--release"]))?;
    run::step(&mut run::cargo(["build", "--release", "-p", "slackwater-agent"]))?;
    run::step(&mut with("test", &[]))
}
