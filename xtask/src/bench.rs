//! `bench`: criterion's micro-benches, then whole programs under slackwater and natively, in turn.
use crate::{run, setup, test};
use anyhow::Result;
use clap::Args;

/// `bench`'s options.
#[derive(Args)]
pub struct Options {
    /// Few rounds: is it still of that order?
    #[arg(long)]
    quick: bool,
    /// Only the whole programs.
    #[arg(long)]
    whole: bool,
    /// Only what the launcher costs MPI jobs.
    #[arg(long)]
    mpi: bool,
    /// Of the whole programs only these: launch, checkpoints, calls, cycles, mpi or perftest (in the guest: a quarter of an hour on a quiet machine).
    #[arg(value_name = "PART", requires = "whole")]
    part: Option<String>,
}

/// Builds, measures, prints.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    test::build_release()?;
    if !options.whole && !options.mpi {
        let mut micro = run::cargo(["bench", "--quiet", "--package", "slackwater-benches", "--bench", "image", "--"]);
        micro.args(options.quick.then_some("--quick"));
        run::step(&mut micro)?;
    }
    let mut whole = run::cargo(["run", "--quiet", "--release", "--package", "slackwater-benches", "--"]);
    whole.args(options.quick.then_some("--quick")).args(options.mpi.then_some("--mpi")).args(&options.part);
    run::step(whole.env("SLACKWATER_XTASK", std::env::current_exe()?))
}
