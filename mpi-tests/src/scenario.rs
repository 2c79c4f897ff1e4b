//! What a job is put through. Each scenario ends with the program's own verdict and the launcher's exit status.
use crate::{Job, ending};
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode, patience};
use std::fs;
use std::time::Instant;

/// The names that [`play`] knows.
pub const SCENARIOS: [&str; 9] =
    ["native", "go-on", "restart", "user", "digits", "ending", "contract", "interval", "inside"];

/// Plays `scenario` with `checkpoints` checkpoints.
///
/// - `native`: without slackwater. What fails here is a mistake in the test.
/// - `go-on`: checkpoints are taken one after the other; the job goes on.
/// - `restart`: checkpoint, SIGKILL of everything, restart; again and again, so that most are restarts of restarts.
/// - `user`: `restart` by a user without any privilege.
/// - `digits`: the solver, killed and restarted on its way, prints the very digits of an uninterrupted native run.
/// - `ending`: see [`ending`].
/// - `contract`: so many checkpoints with go-on, each as soon as the one before is committed, and then [`KILLS`] times SIGKILL
///   of everything and restart, all of one launch; it prints what it has counted.
/// - `interval`: `restart`, but nobody asks for the checkpoints: they are taken five times a second, and the kill comes when it
///   comes, also in the midst of one.
/// - `inside`: `restart`, but the ranks themselves ask for the checkpoints, by `slackwater_checkpoint()`.
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
    let options: &[&str] = match scenario {
        "native" => &[],
        "interval" => &["--keep", "2", "--interval", "0.2"],
        _ => &["--keep", "2"],
    };
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
        "contract" => return contract(job, computation, checkpoints),
        "digits" => return digits(job, computation, checkpoints),
        "interval" => {
            for n in 1..=checkpoints {
                by_interval(&mut computation).with_context(|| format!("kill {n}"))?;
            }
        }
        "inside" => {
            for n in 1..=checkpoints {
                from_inside(&mut computation).with_context(|| format!("kill {n}"))?;
            }
        }
        _ => bail!("no such scenario: {scenario}"),
    }
    finish(job, &mut computation)
}

/// The job's verdict, and its end. MPICH over TCP may stay in `MPI_Finalize`, natively too (`docs/operations.md` counts it), so
/// there the verdict is all that is waited for.
pub(crate) fn finish(job: &Job, computation: &mut Computation) -> Result<()> {
    if job.transport.name != "mpich-tcp" {
        return computation.finish();
    }
    fs::write(computation.folder().join("stop"), "")?;
    computation.wait_line("PASS").map(drop)
}

/// How often a `contract` kills everything and restarts.
pub const KILLS: u32 = 25;

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

/// Waits for two more generations, kills, and restarts; the restart goes on with the interval by itself.
fn by_interval(computation: &mut Computation) -> Result<()> {
    let newest = computation.status()?.generation.unwrap_or(0);
    let until = Instant::now() + patience();
    while computation.status()?.generation.unwrap_or(0) < newest + 2 {
        ensure!(Instant::now() < until, "no checkpoint is taken: generation {newest} is still the newest or the next");
        computation.wait_new_line(BEAT)?;
    }
    computation.sigkill_all()?;
    computation.restart_with(&[])?;
    computation.wait_line(BEAT)?;
    Ok(())
}

/// Waits until a checkpoint that a rank asked for is committed, kills, and restarts: it is told that it was restarted.
fn from_inside(computation: &mut Computation) -> Result<()> {
    computation.wait_line("committed")?;
    computation.sigkill_all()?;
    computation.restart_with(&["--keep", "2"])?;
    computation.wait_line("restarted")?;
    computation.wait_line(BEAT)?;
    Ok(())
}

/// So many checkpoints, each as soon as the one before is committed; the job must get on after every tenth. Gives a line
/// that tells for how long it was stopped.
///
/// # Errors
/// Which checkpoint failed.
pub fn go_on(
    computation: &mut Computation,
    checkpoints: u32,
    onward: impl Fn(&mut Computation) -> Result<()>,
) -> Result<String> {
    let mut stopped = Vec::new();
    for n in 1..=checkpoints {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        let figures = computation.status()?.last_checkpoint.context("a checkpoint without figures")?;
        stopped.push(figures["stopped"].as_f64().context("no time in the figures")?);
        if n % 10 == 0 || n == checkpoints {
            onward(computation).with_context(|| format!("after checkpoint {n}"))?;
        }
    }
    stopped.sort_by(f64::total_cmp);
    let (middle, longest) = (stopped.get(stopped.len() / 2).copied(), stopped.last().copied());
    let (middle, longest) = (middle.unwrap_or_default(), longest.unwrap_or_default());
    Ok(format!("  {checkpoints} checkpoints with go-on; stopped for {middle:.0} ms, at most {longest:.0} ms"))
}

#[allow(clippy::print_stdout, reason = "the runs that count things say what they have counted")]
fn contract(job: &Job, mut computation: Computation, checkpoints: u32) -> Result<()> {
    let counted = go_on(&mut computation, checkpoints, |c| c.wait_new_line(BEAT).map(drop))?;
    cycles(&mut computation, KILLS)?;
    finish(job, &mut computation)?;
    println!(
        "\n{counted}\n  {KILLS} times killed and restarted; {} ranks over {}: PASS",
        job.ranks, job.transport.name
    );
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
