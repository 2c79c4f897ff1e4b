//! What a job is put through. Each scenario ends with the program's own verdict and the launcher's exit status.
use crate::{Job, ending};
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode};
use std::fs;

/// The names that [`play`] knows.
pub const SCENARIOS: [&str; 6] = ["native", "go-on", "restart", "user", "digits", "ending"];

/// Plays `scenario` with `checkpoints` checkpoints.
///
/// - `native`: without slackwater. What fails here is a mistake in the test.
/// - `go-on`: checkpoints are taken one after the other; the job goes on.
/// - `restart`: checkpoint, SIGKILL of everything, restart; again and again, so that most are restarts of restarts.
/// - `user`: `restart` by a user without any privilege.
/// - `digits`: the solver, killed and restarted on its way, prints the very digits of an uninterrupted native run.
///
/// - `ending`: see [`ending`].
///
/// # Errors
/// What went wrong, and at which checkpoint.
pub fn play(job: &Job, scenario: &str, checkpoints: u32) -> Result<()> {
    if scenario == "ending" {
        return ending::play(job);
    }
    let native = scenario == "native";
    let mut command = job.command()?;
    let mut computation = if scenario == "user" { Computation::new(Mode::User)? } else { Job::environment(native)? };
    if scenario == "user" {
        // A clone may lie where only its owner can look.
        let built = job.program.command()?;
        let (program, copy) = (built.first().context("no program")?, computation.folder().join("job"));
        fs::copy(program, &copy)?;
        let place = command.iter().position(|w| w == program).context("the program is not in its command")?;
        command[place] = copy.to_string_lossy().into_owned();
    }
    // In the guest the folder lies in memory, where a hundred generations have no room.
    let options: &[&str] = if native { &[] } else { &["--keep", "2"] };
    computation.launch_with(options, &command)?;
    computation.wait_line("ready")?;
    computation.wait_line(BEAT)?;
    match scenario {
        "native" => {}
        "go-on" => {
            for n in 1..=checkpoints {
                computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
                computation.wait_new_line(BEAT).with_context(|| format!("after checkpoint {n}"))?;
            }
        }
        "restart" | "user" => cycles(&mut computation, checkpoints)?,
        "digits" => return digits(job, computation, checkpoints),
        _ => bail!("no such scenario: {scenario}"),
    }
    computation.finish()
}

/// Each program prints a line that begins so when it has gone once through its checks.
const BEAT: &str = "beat";

fn cycles(computation: &mut Computation, checkpoints: u32) -> Result<()> {
    for n in 1..=checkpoints {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.wait_new_line(BEAT).with_context(|| format!("after checkpoint {n}"))?;
        computation.sigkill_all()?;
        computation.restart_with(&["--keep", "2"])?;
        computation.wait_line(BEAT).with_context(|| format!("after restart {n}"))?;
    }
    Ok(())
}

/// The job must be one that ends by itself.
fn digits(job: &Job, mut computation: Computation, checkpoints: u32) -> Result<()> {
    cycles(&mut computation, checkpoints)?;
    let interrupted = answer(&mut computation)?;
    let mut computation = Job::environment(true)?;
    computation.launch(&job.command()?)?;
    let native = answer(&mut computation)?;
    ensure!(interrupted == native, "restarted: {interrupted}\nuninterrupted: {native}");
    Ok(())
}

fn answer(computation: &mut Computation) -> Result<String> {
    let line = computation.wait_line("answer")?;
    computation.wait_line("PASS")?;
    let status = computation.wait_exit()?;
    ensure!(status.success(), "it printed PASS, and ended with {status}");
    Ok(line)
}
