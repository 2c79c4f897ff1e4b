//! A job that moves from one machine to the next: each guest is another one, with another name and address, and over verbs
//! another GID and other QP numbers.
//!
//! Played in acts, one a guest: the first launches the job and takes checkpoints with which it goes on, as fast as they are
//! committed; the others restart what the one before has left in a folder of the host. In each act it is checkpointed and
//! killed twice, so that half of all restarts are on another machine. The last act lets the job end with its own verdict;
//! and what the solver has printed on its way must be, digit for digit, what a native run prints there.
use crate::{Job, guest, scenario};
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How far a job travels.
#[derive(Clone, Copy, Debug)]
pub struct Tour {
    /// In the tests' names.
    pub name: &'static str,
    /// `stress`, or `solver`, whose digits are compared.
    pub program: &'static str,
    /// Number of ranks.
    pub ranks: u32,
    /// Checkpoints on the first machine after which it goes on.
    pub checkpoints: u32,
    /// Number of machines: one less is restarts on another machine, and as many are on the same.
    pub machines: u32,
    /// The level from which on it takes part over the main transports.
    pub level: &'static str,
}

/// Plays the trial `name` from outside: boots a guest for each act.
///
/// # Errors
/// Which act failed, and what its guest printed.
#[allow(clippy::print_stdout, reason = "the runs that count things say what they have counted")]
pub fn direct(name: &str, tour: &Tour) -> Result<()> {
    let acts = tour.machines;
    ensure!(acts > 1, "one act has no reboot in it");
    let folder = tempfile::Builder::new().prefix("slackwater-reboot-").tempdir()?;
    for act in 1..=acts {
        let words = format!("{act} {}", folder.path().display());
        let node = u8::try_from(act).context("too many acts")?;
        guest::boot(name, node, &[folder.path()], &words).with_context(|| format!("act {act} of {acts}"))?;
    }
    if tour.checkpoints > 0 {
        println!("\n{}", fs::read_to_string(folder.path().join(TALLY))?.trim_end());
    }
    Ok(())
}

/// Inside: the act that the environment names.
///
/// # Errors
/// What went wrong.
pub fn play(job: &Job, tour: &Tour) -> Result<()> {
    let words = std::env::var(guest::ACT).with_context(|| format!("${} is not set", guest::ACT))?;
    let (act, folder) = words.split_once(' ').context("no folder")?;
    let (act, folder) = (act.parse::<u32>().context("which act?")?, PathBuf::from(folder));
    let mut computation = Computation::lasting(&folder, Mode::Pipe)?;
    Job::prepare(&mut computation);
    let verbs = job.transport.verbs;
    let sent = if verbs { guest::packets_sent()? } else { 0 };
    let moved = machine_changed(&folder, act, verbs)?;
    if act == 1 {
        computation.launch_with(&["--keep", "2"], &job.command()?)?;
        computation.wait_line("ready")?;
        computation.wait_line("beat")?;
        if tour.checkpoints > 0 {
            note(&folder, TALLY, &[scenario::go_on(&mut computation, tour.checkpoints)?])?;
        }
    } else {
        ensure!(moved, "this machine has the name, an address or the GID of the one before");
        computation.restart_with(&["--keep", "2"])?;
        computation.wait_line("beat")?;
    }
    if act < tour.machines {
        kill(&mut computation, &folder)?;
        computation.restart_with(&["--keep", "2"])?;
        computation.wait_line("beat")?;
        kill(&mut computation, &folder)?;
    } else {
        let output = computation.output()?.clone();
        scenario::finish(job, &mut computation)?;
        note(&folder, BEATS, &output.lines())?;
    }
    let packets = if verbs { guest::packets_sent()? - sent } else { 0 };
    let way = if verbs { format!("{packets} packets over rxe0") } else { job.transport.name.to_owned() };
    let restarts = if act == 1 { 1 } else { 1 + u32::from(act < tour.machines) };
    note(&folder, TALLY, &[format!("  machine {act}: {restarts} restarts, {way}")])?;
    if act == tour.machines && job.program.name == "solver" {
        compare(job, &folder)?;
    }
    Ok(())
}

/// Files in the folder that lasts: what was counted; what the solver has printed.
const TALLY: &str = "tally";
const BEATS: &str = "beats";

fn kill(computation: &mut Computation, folder: &Path) -> Result<()> {
    computation.checkpoint(&[])?;
    computation.wait_new_line("beat")?;
    let output = computation.output()?.clone();
    computation.sigkill_all()?;
    note(folder, BEATS, &output.lines())
}

fn note(folder: &Path, name: &str, lines: &[String]) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join(name))?;
    Ok(lines.iter().try_for_each(|line| writeln!(file, "{line}"))?)
}

/// All beats of the solver, before and after each restart, must be a native run's.
fn compare(job: &Job, folder: &Path) -> Result<()> {
    let text = fs::read_to_string(folder.join(BEATS))?;
    let beats: BTreeSet<&str> = text.lines().filter(|line| line.starts_with("beat")).collect();
    let step = |line: &&str| line.split(' ').nth(1).and_then(|n| n.parse::<u32>().ok());
    let last = beats.iter().filter_map(step).max().context("no beat")?;
    let mut job = job.clone();
    *job.program.args.first_mut().context("the solver without arguments")? = last.to_string();
    let mut native = Job::environment(true)?;
    native.launch(&job.command()?)?;
    let output = native.output()?.clone();
    native.wait_line("PASS")?;
    ensure!(native.wait_exit()?.success(), "the native run failed");
    let lines = output.lines();
    for beat in &beats {
        ensure!(lines.iter().any(|line| line == beat), "on its way it printed {beat}, and a native run does not");
    }
    let equal = format!("  {} lines of the solver, to step {last}: each digit that of a native run", beats.len());
    note(folder, TALLY, &[equal])
}

/// Notes the machine's name, addresses and GID; has each of them changed since the last act?
fn machine_changed(folder: &Path, act: u32, verbs: bool) -> Result<bool> {
    let addresses = Command::new("ip").args(["-4", "-oneline", "address", "show", "scope", "global"]).output()?;
    let addresses = String::from_utf8(addresses.stdout)?;
    let address = addresses.split_whitespace().nth(3).context("no address")?;
    let mut now = vec![fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned(), address.to_owned()];
    if verbs {
        let gid = fs::read_to_string("/sys/class/infiniband/rxe0/ports/1/gids/2").context("no GID")?;
        now.push(gid.trim().to_owned());
    }
    let before = if act > 1 { fs::read_to_string(folder.join("machine"))? } else { String::new() };
    fs::write(folder.join("machine"), now.join("\n"))?;
    Ok(now.iter().all(|word| before.lines().all(|line| line != word)))
}
