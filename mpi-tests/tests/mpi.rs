//! Tests of MPI jobs: `PLACE::TRANSPORT::PROGRAM::SCENARIO::npN`, PLACE being `host` or `guest`.
//!
//! What takes part depends on `$SLACKWATER_LEVEL` (quick, normal, full); what does not is listed as ignored.
#![deny(unsafe_code)]

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use slackwater_harness::in_guest;
use slackwater_mpi_tests::package::Packaged;
use slackwater_mpi_tests::reboot::{self, Tour, Traveller};
use slackwater_mpi_tests::{Job, PACKAGES, SHAPES, TRANSPORTS, Transport, guest, scenario, shape};
use std::process::ExitCode;

const LEVELS: [&str; 3] = ["quick", "normal", "full"];

/// One kind of trial, played over every transport.
struct Row {
    program: &'static str,
    args: &'static [&'static str],
    scenario: &'static str,
    ranks: u32,
    checkpoints: u32,
    /// The level from which on it takes part over the transports in `over`; over the others it does in `full` runs.
    level: &'static str,
    over: Over,
}

/// Over which transports a row takes part at its own level.
#[derive(Clone, Copy, PartialEq)]
enum Over {
    /// All but the rarer ways over verbs.
    All,
    /// Those in [`MAIN`].
    Main,
    /// Those on this machine: sockets and shared memory.
    Host,
    /// Those over verbs; others than those in [`MAIN`] in `full` runs.
    Verbs,
    /// These; over the others never.
    Only(&'static [&'static str]),
}

impl Over {
    /// The level over this transport; None: not at all.
    fn level(self, level: &'static str, transport: &Transport) -> Option<&'static str> {
        match self {
            Self::All if !transport.verbs => Some(level),
            Self::All | Self::Main => Some(if MAIN.contains(&transport.name) { level } else { "full" }),
            Self::Host => (!transport.verbs).then_some(level),
            Self::Verbs => transport.verbs.then_some(if MAIN.contains(&transport.name) { level } else { "full" }),
            Self::Only(names) => names.contains(&transport.name).then_some(level),
        }
    }
}

/// The transports that normal runs play everything over.
const MAIN: [&str; 4] = ["openmpi-tcp", "openmpi-verbs", "mpich-posix", "mpich-verbs"];
/// The quick one. MPICH over TCP plays these in full runs: natively too, one of its ranks now and then does not come
/// out of MPI_Finalize (docs/operations.md has what was found).
const HOST: Over = Over::Only(&["openmpi-vader"]);

const fn row(
    program: &'static str,
    args: &'static [&'static str],
    scenario: &'static str,
    ranks: u32,
    checkpoints: u32,
    level: &'static str,
    over: Over,
) -> Row {
    Row { program, args, scenario, ranks, checkpoints, level, over }
}

const ROWS: &[Row] = &[
    row("solver", &["0", "64"], "native", 2, 0, "normal", Over::Main),
    row("stress", &[], "native", 2, 0, "normal", Over::Main),
    row("threads", &[], "native", 2, 0, "full", Over::Main),
    row("features", &[], "native", 2, 0, "full", Over::Main),
    row("solver", &["400", "64"], "digits", 2, 2, "normal", Over::Main),
    row("stress", &[], "restart", 2, 3, "normal", Over::All),
    row("stress", &[], "go-on", 2, 5, "normal", Over::Main),
    row("threads", &[], "restart", 2, 3, "normal", Over::Main),
    row("features", &[], "restart", 2, 3, "normal", Over::Main),
    row("files", &[], "restart", 2, 3, "normal", HOST),
    row("files", &["0", "shared"], "go-on", 2, 5, "normal", HOST),
    row("fortran", &[], "restart", 2, 3, "normal", HOST),
    row("files", &[], "restart", 2, 3, "full", Over::Only(&["mpich-tcp"])),
    row("files", &["0", "shared"], "go-on", 2, 5, "full", Over::Only(&["mpich-tcp"])),
    row("fortran", &[], "restart", 2, 3, "full", Over::Only(&["mpich-tcp"])),
    row("bulk", &[], "restart", 2, 3, "normal", Over::Only(&["openmpi-vader", "mpich-posix"])),
    row("bulk", &["0", "64", "no-rma"], "restart", 4, 5, "full", Over::Only(&["openmpi-tcp"])),
    row("bulk", &[], "restart", 4, 5, "full", Over::Only(&["openmpi-ucx-posix", "openmpi-ucx-sysv", "mpich-posix"])),
    row("bulk", &["0", "8"], "restart", 2, 3, "full", Over::Only(&["mpich-verbs"])),
    row("bulk", &["0", "8", "no-rma"], "restart", 2, 3, "full", Over::Only(&["openmpi-verbs"])),
    row("stress", &[], "user", 2, 3, "normal", Over::Only(&["openmpi-default", "mpich-posix"])),
    row("ending", &["abort"], "ending", 2, 1, "normal", Over::Only(&["openmpi-vader"])),
    row("ending", &["abort"], "ending", 2, 1, "full", Over::Only(&["mpich-tcp"])),
    row("ending", &["signal"], "ending", 2, 1, "normal", Over::Only(&["openmpi-vader"])),
    row("ending", &["signal"], "ending", 2, 1, "full", Over::Only(&["mpich-tcp"])),
    row("ending", &["status"], "ending", 2, 1, "normal", Over::Only(&["openmpi-vader"])),
    row("ending", &["status"], "ending", 2, 1, "full", Over::Only(&["mpich-tcp"])),
    row("ending", &["echo"], "ending", 2, 1, "normal", Over::Only(&["openmpi-vader"])),
    row("ending", &["echo"], "ending", 2, 1, "full", Over::Only(&["mpich-tcp"])),
    // Open MPI 4.1.4 itself hangs now and then when it spawns; MPICH as Debian builds it cannot spawn at all.
    row("spawn", &[], "restart", 2, 3, "full", Over::Only(&["openmpi-default", "openmpi-verbs"])),
    row("spawn", &[], "go-on", 2, 5, "full", Over::Only(&["openmpi-verbs"])),
    row("stress", &[], "interval", 2, 2, "normal", Over::Only(&["openmpi-tcp", "mpich-posix"])),
    row("stress", &[], "interval", 4, 10, "full", Over::Host),
    row("inside", &["all"], "inside", 2, 2, "normal", Over::Only(&["openmpi-default", "mpich-posix"])),
    row("inside", &["one"], "inside", 4, 10, "full", Over::Host),
    row("inside", &["all"], "inside", 4, 10, "full", Over::Host),
    row("features", &[], "restart", 4, 10, "full", Over::Main),
    row("stress", &[], "restart", 4, 25, "full", Over::Main),
    row("stress", &[], "go-on", 4, 100, "full", Over::Main),
    row("solver", &["0", "64"], "restart", 8, 5, "full", Over::Main),
    row("stress", &[], "contract", 2, 100, "full", Over::Host),
    row("stress", &[], "contract", 4, 100, "full", Over::Host),
    row("stress", &[], "contract", 8, 100, "full", Over::Host),
];

/// Jobs that go from machine to machine. Nine machines are sixteen restarts, half of them on another one.
const TOURS: &[(Tour, Over)] = &[
    (tour("reboot", "stress", 2, 0, 3, "normal"), Over::Verbs),
    (tour("reboot", "stress", 2, 0, 3, "full"), Over::Host),
    (tour("contract", "stress", 2, 50, 9, "full"), Over::Verbs),
    (tour("contract", "stress", 4, 50, 9, "full"), Over::Verbs),
    (tour("contract", "solver", 2, 50, 9, "full"), Over::Verbs),
    (tour("contract", "solver", 4, 50, 9, "full"), Over::Verbs),
    (tour("contract", "threads", 2, 50, 9, "full"), Over::Verbs),
    (tour("contract", "features", 2, 50, 9, "full"), Over::Verbs),
    (tour("contract", "threads", 4, 50, 9, "full"), Over::Verbs),
    (tour("contract", "features", 4, 50, 9, "full"), Over::Verbs),
    (tour("contract", "lammps", 2, 50, 9, "full"), Over::Only(&["openmpi-verbs"])),
    (tour("contract", "lammps", 4, 50, 9, "full"), Over::Only(&["openmpi-verbs"])),
    (tour("contract", "hpcc", 2, 50, 9, "full"), Over::Only(&["openmpi-verbs"])),
    (tour("contract", "hpcc", 4, 50, 9, "full"), Over::Only(&["openmpi-verbs"])),
];

const fn tour(
    name: &'static str,
    program: &'static str,
    ranks: u32,
    checkpoints: u32,
    machines: u32,
    level: &'static str,
) -> Tour {
    Tour { name, program, ranks, checkpoints, machines, level }
}

/// A package's program: its name, ranks, kills, level, transports.
const PACKAGED: &[(&str, u32, u32, &str, Over)] = &[
    ("hpcc", 2, 2, "normal", Over::Only(&["openmpi-tcp"])),
    ("lammps", 2, 3, "normal", Over::Only(&["openmpi-vader", "openmpi-verbs"])),
    ("scalapack", 2, 3, "full", Over::Only(&["openmpi-default", "mpich-posix"])),
    ("mpi4py", 2, 5, "full", Over::Only(&["openmpi-default", "openmpi-tcp", "openmpi-ucx-posix"])),
    ("hpcc", 4, 3, "full", Over::Only(&["openmpi-tcp", "openmpi-vader"])),
    ("hpcc", 2, 2, "full", Over::Only(&["openmpi-vader", "openmpi-ucx-posix", "openmpi-verbs"])),
    ("lammps", 4, 5, "full", Over::Only(&["openmpi-tcp", "openmpi-ucx-sysv"])),
    ("scalapack", 4, 5, "full", Over::Only(&["openmpi-ucx-tcp"])),
    ("scalapack", 2, 2, "full", Over::Only(&["openmpi-verbs"])),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen = rank(&std::env::var("SLACKWATER_LEVEL").unwrap_or_default());
    let mut trials = Vec::new();
    for transport in TRANSPORTS {
        for row in ROWS {
            let Some(level) = row.over.level(row.level, transport) else { continue };
            let variant =
                if ["ending", "inside"].contains(&row.scenario) { format!("-{}", row.args[0]) } else { String::new() };
            let name = format!("{}::{}{variant}::{}::np{}", transport.name, row.program, row.scenario, row.ranks);
            // Built outside: the guest's file system forgets it.
            let build = move || job(row, transport).and_then(|j| j.command()).map(drop);
            trials.push(trial(transport, name, rank(level) > chosen, build, move || run(row, transport)));
        }
        for (tour, over) in TOURS {
            let Some(level) = over.level(tour.level, transport) else { continue };
            let name = format!("{}::{}::{}::np{}", transport.name, tour.program, tour.name, tour.ranks);
            let skip = rank(level) > chosen;
            let args: &[&str] = if tour.program == "solver" { &["0", "64"] } else { &[] };
            let package = PACKAGES.iter().find(|p| p.name == tour.program);
            let job = move || Job::new(tour.program, args, transport, tour.ranks);
            if in_guest() {
                let play = move || {
                    let traveller: Box<dyn Traveller> = match package {
                        Some(package) => Box::new(Packaged { package, transport, ranks: tour.ranks }),
                        None => Box::new(job()?),
                    };
                    reboot::play(&*traveller, tour, transport.name, transport.verbs)
                };
                trials.push(Trial::test(format!("host::{name}"), move || play().map_err(fail)).with_ignored_flag(skip));
            } else {
                let inside = format!("host::{name}");
                // Ours are built outside: the guest's file system forgets it.
                let build = move || if package.is_some() { Ok(()) } else { job()?.command().map(drop) };
                let direct = move || build().and_then(|()| reboot::direct(&inside, tour));
                let has_xtask = std::env::var_os("SLACKWATER_XTASK").is_some();
                let trial = Trial::test(format!("guest::{name}"), move || direct().map_err(fail));
                trials.push(trial.with_ignored_flag(skip || !has_xtask));
            }
        }
        for &(name, ranks, kills, level, over) in PACKAGED {
            let Some(level) = over.level(level, transport) else { continue };
            let Some(package) = PACKAGES.iter().find(|p| p.name == name) else { continue };
            let name = format!("{}::{name}::package::np{ranks}", transport.name);
            let play = move || counted(transport, || package.play(transport, ranks, kills));
            trials.push(trial(transport, name, rank(level) > chosen, || Ok(()), play));
        }
    }
    for name in ["openmpi-default", "mpich-posix"] {
        let Some(transport) = Transport::named(name) else { continue };
        for shape in SHAPES.iter().filter(|s| s.mpi == transport.mpi) {
            let skip = chosen < rank(if shape.name == "two" { "normal" } else { "full" });
            let play = move || shape.play(transport, 3);
            trials.push(trial(transport, format!("{name}::{}::shape", shape.name), skip, || Ok(()), play));
        }
        let skip = chosen < rank("normal");
        trials.push(trial(transport, format!("{name}::elsewhere"), skip, || Ok(()), || shape::elsewhere(transport)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial on this machine; or, over verbs, one that boots a guest in which this binary plays it.
fn trial(
    transport: &Transport,
    name: String,
    skip: bool,
    build: impl Fn() -> Result<()> + Send + 'static,
    play: impl Fn() -> Result<()> + Send + 'static,
) -> Trial {
    if transport.verbs && !in_guest() {
        let has_xtask = std::env::var_os("SLACKWATER_XTASK").is_some();
        let inside = format!("host::{name}");
        let boot = move || build().and_then(|()| guest::run(&inside)).map_err(fail);
        return Trial::test(format!("guest::{name}"), boot).with_ignored_flag(skip || !has_xtask);
    }
    Trial::test(format!("host::{name}"), move || play().map_err(fail)).with_ignored_flag(skip)
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
    counted(transport, || scenario::play(&job(row, transport)?, row.scenario, row.checkpoints))
}

/// Over verbs, packets must go over the device.
fn counted(transport: &Transport, play: impl FnOnce() -> Result<()>) -> Result<()> {
    if !transport.verbs {
        return play();
    }
    let before = guest::packets_sent()?;
    play()?;
    let sent = guest::packets_sent()? - before;
    ensure!(sent > 100, "only {sent} packets went over the RDMA device: the job took another way");
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn fail(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}
