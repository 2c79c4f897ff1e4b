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

/// What can travel.
pub trait Traveller {
    /// The environment that it wants.
    fn prepare(&self, computation: &mut Computation);

    /// Makes its input, launches it, and waits until it is in the midst of its work.
    ///
    /// # Errors
    /// What went wrong.
    fn launch(&self, computation: &mut Computation, options: &[&str]) -> Result<()>;

    /// Waits until it has got on with its work.
    ///
    /// # Errors
    /// When it does not in time.
    fn onward(&self, computation: &mut Computation) -> Result<()>;

    /// Lets it come to its end, with its own verdict.
    ///
    /// # Errors
    /// Its verdict.
    fn end(&self, computation: &mut Computation) -> Result<()>;

    /// Compares what it has printed on its whole way with a native run; a line that tells what was compared.
    ///
    /// # Errors
    /// How they differ.
    fn compare(&self, computation: &Computation, printed: &str) -> Result<Option<String>>;
}

/// How far a job travels.
#[derive(Clone, Copy, Debug)]
pub struct Tour {
    /// In the tests' names.
    pub name: &'static str,
    /// A program of ours (of these the solver's digits are compared) or of a package.
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

/// Inside: the act that the environment names. `verbs`: it goes over the RDMA device, whose packets are counted; else over
/// the `way` of that name.
///
/// # Errors
/// What went wrong.
pub fn play(traveller: &dyn Traveller, tour: &Tour, way: &str, verbs: bool) -> Result<()> {
    let words = std::env::var(guest::ACT).with_context(|| format!("${} is not set", guest::ACT))?;
    let (act, folder) = words.split_once(' ').context("no folder")?;
    let (act, folder) = (act.parse::<u32>().context("which act?")?, PathBuf::from(folder));
    let mut computation = Computation::lasting(&folder, Mode::Pipe)?;
    traveller.prepare(&mut computation);
    let sent = if verbs { guest::packets_sent()? } else { 0 };
    let moved = machine_changed(&folder, act, verbs)?;
    if act == 1 {
        traveller.launch(&mut computation, OPTIONS)?;
        if tour.checkpoints > 0 {
            let counted = scenario::go_on(&mut computation, tour.checkpoints, |c| traveller.onward(c))?;
            note(&folder, TALLY, &[counted])?;
        }
    } else {
        ensure!(moved, "this machine has the name, an address or the GID of the one before");
        restart(traveller, &mut computation)?;
    }
    if act < tour.machines {
        kill(traveller, &mut computation, &folder)?;
        restart(traveller, &mut computation)?;
        kill(traveller, &mut computation, &folder)?;
    } else {
        let output = computation.output()?.clone();
        traveller.end(&mut computation)?;
        note(&folder, PRINTED, &output.lines())?;
    }
    let packets = if verbs { guest::packets_sent()? - sent } else { 0 };
    // (A job that soon comes to its end on the last machine sends but a few.)
    ensure!(packets > 0 || !verbs, "no packet went over the RDMA device: the job took another way");
    let way = if verbs { format!("{packets} packets over rxe0") } else { way.to_owned() };
    let restarts = if act == 1 { 1 } else { 1 + u32::from(act < tour.machines) };
    note(&folder, TALLY, &[format!("  machine {act}: {restarts} restarts, {way}")])?;
    if act == tour.machines {
        let compared = traveller.compare(&computation, &fs::read_to_string(folder.join(PRINTED))?)?;
        note(&folder, TALLY, compared.as_slice())?;
    }
    Ok(())
}

/// Older generations would fill the folder.
const OPTIONS: &[&str] = &["--keep", "2"];

/// Files in the folder that lasts: what was counted; what was printed.
const TALLY: &str = "tally";
const PRINTED: &str = "printed";

fn restart(traveller: &dyn Traveller, computation: &mut Computation) -> Result<()> {
    computation.restart_with(OPTIONS)?;
    traveller.onward(computation).context("after a restart")
}

fn kill(traveller: &dyn Traveller, computation: &mut Computation, folder: &Path) -> Result<()> {
    computation.checkpoint(&[])?;
    traveller.onward(computation).context("after a checkpoint")?;
    let output = computation.output()?.clone();
    computation.sigkill_all()?;
    note(folder, PRINTED, &output.lines())
}

fn note(folder: &Path, name: &str, lines: &[String]) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(folder.join(name))?;
    Ok(lines.iter().try_for_each(|line| writeln!(file, "{line}"))?)
}

impl Traveller for Job {
    fn prepare(&self, computation: &mut Computation) {
        Self::prepare(computation);
    }

    fn launch(&self, computation: &mut Computation, options: &[&str]) -> Result<()> {
        computation.launch_with(options, &self.command()?)?;
        computation.wait_line("ready")?;
        computation.wait_line("beat").map(drop)
    }

    fn onward(&self, computation: &mut Computation) -> Result<()> {
        computation.wait_new_line("beat").map(drop)
    }

    fn end(&self, computation: &mut Computation) -> Result<()> {
        scenario::finish(self, computation)
    }

    /// All beats of the solver, before and after each restart, must be a native run's.
    fn compare(&self, _: &Computation, printed: &str) -> Result<Option<String>> {
        if self.program.name != "solver" {
            return Ok(None);
        }
        let beats: BTreeSet<&str> = printed.lines().filter(|line| line.starts_with("beat")).collect();
        let step = |line: &&str| line.split(' ').nth(1).and_then(|n| n.parse::<u32>().ok());
        let last = beats.iter().filter_map(step).max().context("no beat")?;
        let mut job = self.clone();
        *job.program.args.first_mut().context("the solver without arguments")? = last.to_string();
        let mut native = Self::environment(true)?;
        native.launch(&job.command()?)?;
        let lines = native.lines_until("PASS")?;
        ensure!(native.wait_exit()?.success(), "the native run failed");
        for beat in &beats {
            ensure!(lines.iter().any(|line| line == beat), "on its way it printed {beat}, and a native run does not");
        }
        Ok(Some(format!("  {} lines of the solver, to step {last}: each digit that of a native run", beats.len())))
    }
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
