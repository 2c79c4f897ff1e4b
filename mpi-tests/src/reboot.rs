//! A job that moves from one machine to the next: each guest is another one, with another address, GID and QP numbers.
//!
//! Played in acts, one a guest: the first launches the job, the others restart what the one before has left in a folder of
//! the host. In each act it is checkpointed and killed twice, so that half of all restarts are on another machine. The last
//! act lets the job end with its own verdict.
use crate::{Job, guest};
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Mode};
use std::path::{Path, PathBuf};

/// Plays `acts` acts of the trial `name` from outside: boots a guest for each.
///
/// # Errors
/// Which act failed, and what its guest printed.
pub fn direct(name: &str, acts: u32) -> Result<()> {
    ensure!(acts > 1, "one act has no reboot in it");
    let folder = tempfile::Builder::new().prefix("slackwater-reboot-").tempdir()?;
    for act in 1..=acts {
        let words = format!("{act} {acts} {}", folder.path().display());
        let node = u8::try_from(act).context("too many acts")?;
        guest::boot(name, node, &[folder.path()], &words).with_context(|| format!("act {act} of {acts}"))?;
    }
    Ok(())
}

/// Inside: the act that the environment names.
///
/// # Errors
/// What went wrong.
pub fn play(job: &Job) -> Result<()> {
    let words = std::env::var(guest::ACT).with_context(|| format!("${} is not set", guest::ACT))?;
    let mut words = words.splitn(3, ' ');
    let mut number = || words.next().unwrap_or_default().parse::<u32>().context("which act?");
    let (act, acts) = (number()?, number()?);
    let folder = PathBuf::from(words.next().context("no folder")?);
    let mut computation = Computation::lasting(&folder, Mode::Pipe)?;
    Job::prepare(&mut computation);
    let moved = gid_changed(&folder, act)?;
    if act == 1 {
        computation.launch(&job.command()?)?;
        computation.wait_line("ready")?;
    } else {
        ensure!(moved, "this machine has the GID of the one before");
        computation.restart_with(&["--keep", "2"])?;
    }
    computation.wait_line("beat")?;
    if act == acts {
        return computation.finish();
    }
    kill(&mut computation)?;
    computation.restart_with(&["--keep", "2"])?;
    computation.wait_line("beat")?;
    kill(&mut computation)
}

fn kill(computation: &mut Computation) -> Result<()> {
    computation.checkpoint(&[])?;
    computation.wait_new_line("beat")?;
    computation.sigkill_all()
}

/// Notes the machine's GID; has it changed since the last act?
fn gid_changed(folder: &Path, act: u32) -> Result<bool> {
    let now = std::fs::read_to_string("/sys/class/infiniband/rxe0/ports/1/gids/2").context("no GID")?;
    let before = if act > 1 { std::fs::read_to_string(folder.join("gid"))? } else { String::new() };
    std::fs::write(folder.join("gid"), &now)?;
    Ok(now != before)
}
