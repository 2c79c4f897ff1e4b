//! Tests of MPI jobs: `PLACE::TRANSPORT::PROGRAM::SCENARIO::npN`, PLACE being `host` or `guest`.
//!
//! What takes part depends on `$SLACKWATER_LEVEL` (quick, normal, full); what does not is listed as ignored.
#![deny(unsafe_code)]

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use slackwater_harness::in_guest;
use slackwater_mpi_tests::{Job, TRANSPORTS, Transport, guest, scenario};
use std::process::ExitCode;

const LEVELS: [&str; 3] = ["quick", "normal", "full"];

/// One kind of trial, played over every transport.
struct Row {
    program: &'static str,
    args: &'static [&'static str],
    scenario: &'static str,
    ranks: u32,
    checkpoints: u32,
    /// The level from which on it takes part over the transports in [`MAIN`].
    level: &'static str,
    /// Over the others as well; else they have it in `full` runs only.
    everywhere: bool,
}

/// The transports that normal runs play everything over.
const MAIN: [&str; 4] = ["openmpi-tcp", "openmpi-verbs", "mpich-posix", "mpich-verbs"];

const ROWS: &[Row] = &[
    Row {
        program: "solver",
        args: &["0", "64"],
        scenario: "native",
        ranks: 2,
        checkpoints: 0,
        level: "normal",
        everywhere: false,
    },
    Row {
        program: "stress",
        args: &[],
        scenario: "native",
        ranks: 2,
        checkpoints: 0,
        level: "normal",
        everywhere: false,
    },
    Row {
        program: "threads",
        args: &[],
        scenario: "native",
        ranks: 2,
        checkpoints: 0,
        level: "full",
        everywhere: false,
    },
    Row {
        program: "solver",
        args: &["400", "64"],
        scenario: "digits",
        ranks: 2,
        checkpoints: 2,
        level: "normal",
        everywhere: false,
    },
    Row {
        program: "stress",
        args: &[],
        scenario: "restart",
        ranks: 2,
        checkpoints: 3,
        level: "normal",
        everywhere: true,
    },
    Row {
        program: "stress",
        args: &[],
        scenario: "go-on",
        ranks: 2,
        checkpoints: 5,
        level: "normal",
        everywhere: false,
    },
    Row {
        program: "threads",
        args: &[],
        scenario: "restart",
        ranks: 2,
        checkpoints: 3,
        level: "normal",
        everywhere: false,
    },
    Row {
        program: "stress",
        args: &[],
        scenario: "restart",
        ranks: 4,
        checkpoints: 25,
        level: "full",
        everywhere: false,
    },
    Row {
        program: "stress",
        args: &[],
        scenario: "go-on",
        ranks: 4,
        checkpoints: 100,
        level: "full",
        everywhere: false,
    },
    Row {
        program: "solver",
        args: &["0", "64"],
        scenario: "restart",
        ranks: 8,
        checkpoints: 5,
        level: "full",
        everywhere: false,
    },
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen = rank(&std::env::var("SLACKWATER_LEVEL").unwrap_or_default());
    let has_xtask = std::env::var_os("SLACKWATER_XTASK").is_some();
    let mut trials = Vec::new();
    for transport in TRANSPORTS {
        for row in ROWS {
            let name = format!("{}::{}::{}::np{}", transport.name, row.program, row.scenario, row.ranks);
            let usual = row.everywhere || MAIN.contains(&transport.name);
            let skip = rank(if usual { row.level } else { "full" }) > chosen;
            if transport.verbs && !in_guest() {
                let trial = Trial::test(format!("guest::{name}"), {
                    move || {
                        // Built outside: the guest's file system forgets it.
                        job(row, transport).and_then(|j| j.command()).map_err(fail)?;
                        guest::run(&format!("host::{name}")).map_err(fail)
                    }
                });
                trials.push(trial.with_ignored_flag(skip || !has_xtask));
            } else {
                let trial = Trial::test(format!("host::{name}"), move || run(row, transport).map_err(fail));
                trials.push(trial.with_ignored_flag(skip));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn rank(level: &str) -> usize {
    LEVELS.iter().position(|l| *l == level).unwrap_or(1)
}

fn job(row: &Row, transport: &'static Transport) -> Result<Job> {
    let mut args = row.args.to_vec();
    // MPICH's ranks wait by spinning, and the guest has one processor: a fortieth of Open MPI's speed there.
    if transport.name == "mpich-verbs" && row.scenario == "digits" {
        args[0] = "120";
    }
    Job::new(row.program, &args, transport, row.ranks)
}

fn run(row: &Row, transport: &'static Transport) -> Result<()> {
    let before = if transport.verbs { guest::packets_sent()? } else { 0 };
    scenario::play(&job(row, transport)?, row.scenario, row.checkpoints)?;
    if transport.verbs {
        let sent = guest::packets_sent()? - before;
        ensure!(sent > 100, "only {sent} packets went over the RDMA device: the job took another way");
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn fail(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}
