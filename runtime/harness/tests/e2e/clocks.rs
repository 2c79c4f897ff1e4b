//! CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from the cut, over a pause and over a boot; CLOCK_REALTIME is the world's.
use crate::Case;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};
use std::path::Path;
use std::time::Duration;

const PROGRAM: &str = "use Time::HiRes qw(clock_gettime sleep CLOCK_MONOTONIC CLOCK_BOOTTIME CLOCK_REALTIME); $| = 1; \
    until (-e $ENV{SW_STOP}) { printf \"now %.6f %.6f %.6f\\n\", map { clock_gettime($_) } CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME; sleep 0.02 } \
    print \"PASS\\n\";";
/// Time is the subject here: nothing is waited for.
const PAUSE: Duration = Duration::from_secs(3);
/// Far more than any other machine's clock of this test could be behind.
const AHEAD: f64 = 1e8;

pub fn all() -> Vec<Case> {
    let cases = [
        Case::new("clocks::pause", "quick", || pause(Mode::Pipe)),
        Case::new("clocks::pause::user", "quick", || pause(Mode::User)),
        Case::new("clocks::boot", "quick", boot),
    ];
    let missing =
        (!Path::new("/proc/self/timens_offsets").exists()).then(|| "no time namespaces in this kernel".into());
    let case = |case| Case {
        // The guest's kernel has none.
        places: vec!["host".into()],
        missing: Option::clone(&missing),
        ..case
    };
    cases.into_iter().map(case).collect()
}

/// Monotonic, boottime, realtime, in seconds.
fn clocks(line: &str) -> Result<[f64; 3]> {
    let numbers: Vec<f64> = line.split(' ').skip(1).map(str::parse).collect::<Result<_, _>>()?;
    numbers.try_into().ok().with_context(|| format!("no three numbers: {line}"))
}

/// What the program saw last before the cut, and first after it.
fn over_restart(computation: &mut Computation, under: &[&str]) -> Result<([f64; 3], [f64; 3])> {
    let output = computation.output()?.clone();
    computation.checkpoint(&["--kill"])?;
    computation.wait_exit()?;
    let lines = output.lines();
    let last = lines.iter().rfind(|line| line.starts_with("now")).context("nothing printed")?;
    std::thread::sleep(PAUSE);
    computation.under(under);
    computation.restart(None)?;
    let first = computation.wait_line("now")?;
    Ok((clocks(last)?, clocks(&first)?))
}

fn hold(before: [f64; 3], after: [f64; 3]) -> Result<()> {
    let passed = [0, 1, 2].map(|i| after[i] - before[i]);
    ensure!(passed[2] >= PAUSE.as_secs_f64(), "the world stood still: {passed:?}");
    for (name, passed_here) in [("CLOCK_MONOTONIC", passed[0]), ("CLOCK_BOOTTIME", passed[1])] {
        ensure!(passed_here >= 0.0, "{name} went back: {passed:?}");
        ensure!(passed_here <= passed[2] - 0.9 * PAUSE.as_secs_f64(), "{name} did not stand still: {passed:?}");
    }
    Ok(())
}

fn pause(mode: Mode) -> Result<()> {
    let mut computation = Computation::new(mode)?;
    computation.launch(&["perl".into(), "-e".into(), PROGRAM.into()])?;
    computation.wait_line("now")?;
    // The second: a restart of a restart, which has clocks of its own.
    for _ in 0..2 {
        let (before, after) = over_restart(&mut computation, &[])?;
        hold(before, after)?;
    }
    computation.finish()
}

/// A machine that has been up for longer than the one of the restart, and back.
fn boot() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let ahead = ["unshare", "--time", "--monotonic", "100000000", "--boottime", "100000000"];
    computation.under(&ahead);
    computation.launch(&["perl".into(), "-e".into(), PROGRAM.into()])?;
    computation.wait_line("now")?;
    let (before, after) = over_restart(&mut computation, &[])?;
    ensure!(before[0] > AHEAD && before[1] > AHEAD, "not ahead: {before:?}");
    hold(before, after)?;
    let (before, after) = over_restart(&mut computation, &ahead)?;
    hold(before, after)?;
    computation.finish()
}
