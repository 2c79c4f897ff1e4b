//! The trial: a shell waits for a line; it is launched, checkpointed, killed and restarted, and then gets its line.
use super::{Finding, machine::existing};
use anyhow::{Context, Result, anyhow, bail};
use slackwater_coordinator::folder;
use slackwater_protocol::{
    auth::Role,
    command::{Figures, Reply, Request},
};
use std::{
    env, fs,
    io::{Read, Write, pipe},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use wait_timeout::ChildExt;

/// Each step takes some milliseconds; a machine on which one takes this long has another problem.
const BOUND: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(2);
const SCRIPT: &str = "read line && echo \"got $line\"";

pub(super) fn trial(dir: &Path) -> Finding {
    match run(dir) {
        Ok(text) => Finding::ok("trial", text),
        Err(error) => Finding::problem("trial", format!("{error:#}")),
    }
}

fn run(dir: &Path) -> Result<String> {
    let place = existing(dir);
    let room = tempfile::Builder::new().prefix(".slackwater-doctor-").tempdir_in(&place);
    let room = room.with_context(|| format!("no folder can be made in {}", place.display()))?;
    let result = play(&room.path().join("trial"));
    // The coordinator may still be about to end, with a file to make: the folder is not empty then.
    let begin = Instant::now();
    while fs::remove_dir_all(room.path()).is_err() && room.path().exists() && begin.elapsed() < BOUND {
        thread::sleep(LOOK);
    }
    result
}

fn play(folder: &Path) -> Result<String> {
    let own = env::current_exe().context("cannot find the slackwater executable")?;
    let command = |name: &str| {
        let mut command = Command::new(&own);
        command.arg(name).arg("--dir").arg(folder).arg("--no-file-store");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };

    let mut shell = Running(command("launch").args(["/bin/sh", "-c", SCRIPT]).spawn().context("launch")?);
    let figures = checkpoint(folder, &mut shell.0).context("a shell was launched, but could not be checkpointed")?;
    let output = finish(shell).context("the shell was saved, but did not end")?;
    if !output.stdout.is_empty() {
        bail!("the shell was to be killed at its checkpoint, and went on");
    }

    let begin = Instant::now();
    // Written while this end is open, too: a restart that fails closes its end, and SIGPIPE would end the doctor.
    let (stdin, mut line) = pipe().context("no pipe")?;
    line.write_all(b"slack\n")?;
    drop(line);
    let shell = Running(command("restart").stdin(stdin).spawn().context("restart")?);
    let output = finish(shell).context("a shell was launched and checkpointed, but its restart did not end")?;
    let took = begin.elapsed();
    if output.stdout != b"got slack\n" || !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "a shell was launched and checkpointed, but not restarted: {}",
            said.trim().trim_start_matches("slackwater: ")
        );
    }
    Ok(format!(
        "a shell was launched, checkpointed ({:.1} ms), killed and restarted ({:.1} ms)",
        figures.total_us as f64 / 1e3,
        took.as_secs_f64() * 1e3
    ))
}

/// Asks as soon as there is a coordinator to ask.
fn checkpoint(folder: &Path, shell: &mut Child) -> Result<Figures> {
    let begin = Instant::now();
    let mut client = loop {
        match folder::connect(folder, Role::Command) {
            Ok(client) => break client,
            Err(error) if shell.try_wait()?.is_some() || begin.elapsed() > BOUND => {
                let mut said = String::new();
                let _ = shell.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
                let said = said.trim().trim_start_matches("slackwater: ");
                return Err(if said.is_empty() { error.into() } else { anyhow!("{said}") });
            }
            Err(_) => thread::sleep(LOOK),
        }
    };
    client.stream().set_read_timeout(Some(BOUND))?;
    client.send(&Request::Checkpoint { kill: true })?;
    loop {
        match client.receive()? {
            Reply::Committed { figures, .. } => return Ok(figures),
            Reply::Failed { reason } => bail!(reason),
            _ => {}
        }
    }
}

/// Ended, whatever becomes of the trial.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What it printed, all of which fits in its pipes.
fn finish(mut running: Running) -> Result<Output> {
    let child = &mut running.0;
    let status = child.wait_timeout(BOUND)?.with_context(|| format!("not within {} s", BOUND.as_secs()))?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().context("no pipe")?.read_to_end(&mut stdout)?;
    child.stderr.take().context("no pipe")?.read_to_end(&mut stderr)?;
    Ok(Output { status, stdout, stderr })
}
