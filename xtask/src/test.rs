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
    run::step(&mut run::cargo(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    run::step(&mut run::cargo(["build", "--workspace", "--release"]))?;
    run::step(&mut run::cargo(["test", "--workspace"]))
}
