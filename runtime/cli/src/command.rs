//! Commands that ask a running coordinator: status, checkpoint, kill.
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use slackwater_coordinator::folder;
use slackwater_protocol::{
    auth::Role,
    client::{Client, ClientError},
    command::{Figures, Phase, Reply, Request, Status},
};
use std::{
    io::{ErrorKind, Write, stdout},
    path::Path,
    time::{Duration, Instant},
};

/// From when on progress is shown, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(200);

fn ask(dir: &Path, request: &Request) -> Result<Client> {
    let dir = std::path::absolute(dir).with_context(|| dir.display().to_string())?;
    let mut client = folder::connect(&dir, Role::Command)?;
    client.send(request)?;
    Ok(client)
}

fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!("the coordinator gave an answer that does not fit: {reply:?}")
}

/// Prints the state of the computation.
pub fn status(dir: &Path, json: bool) -> Result<()> {
    let mut client = ask(dir, &Request::Status)?;
    match client.receive()? {
        Reply::Status(status) if json => print_json(&StatusJson::new(&status)),
        Reply::Status(status) => print_status(&status),
        Reply::Failed { reason } => bail!(reason),
        other => Err(unexpected(&other)),
    }
}

/// Waits for the commit and prints where the generation is.
pub fn checkpoint(dir: &Path, kill: bool, json: bool) -> Result<()> {
    let mut client = ask(dir, &Request::Checkpoint { kill })?;
    client.stream().set_read_timeout(Some(TICK))?;
    let mut progress = Progress { since: Instant::now(), last: None, bar: None };
    let (path, figures) = loop {
        match client.receive() {
            Ok(Reply::Progress { phase, done, members, memory }) => {
                progress.last = Some((phase, done, members, memory))
            }
            Ok(Reply::Committed { path, figures }) => break (path, figures),
            Ok(Reply::Failed { reason }) => bail!(reason),
            Ok(other) => return Err(unexpected(&other)),
            Err(ClientError::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(ClientError::Closed) => bail!("the coordinator ended before the checkpoint was committed"),
            Err(error) => return Err(error.into()),
        }
        progress.show();
    };
    progress.clear();
    if json {
        return print_json(&CheckpointJson { path: &path, figures: FiguresJson::new(&figures) });
    }
    writeln!(stdout(), "{path}")?;
    Ok(())
}

/// Returns when all processes are gone.
pub fn kill(dir: &Path) -> Result<()> {
    let mut client = ask(dir, &Request::Kill)?;
    match client.receive() {
        Ok(Reply::Gone) => Ok(()),
        Ok(Reply::Failed { reason }) => bail!(reason),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(error.into()),
    }
}

/// Shown on a terminal, and only when it takes long.
struct Progress {
    since: Instant,
    last: Option<(Phase, u32, u32, u64)>,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn show(&mut self) {
        let Some((phase, done, members, memory)) = self.last else { return };
        if self.since.elapsed() < PATIENCE {
            return;
        }
        let style = || ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} processes, {elapsed}");
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(u64::from(members)).with_elapsed(self.since.elapsed());
            style().map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style))
        });
        bar.set_length(u64::from(members));
        bar.set_position(u64::from(done));
        bar.set_message(format!("{} ({})", phase_name(phase), indicatif::HumanBytes(memory)));
        bar.tick();
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A name as `--json` has it.
const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Suspend => "suspend",
        Phase::Quiesce => "quiesce",
        Phase::Snapshot => "snapshot",
        Phase::Save => "save",
        Phase::Commit => "commit",
        Phase::Abort => "abort",
        Phase::Restart => "restart",
        Phase::Ending => "ending",
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    serde_json::to_writer_pretty(stdout(), value)?;
    writeln!(stdout())?;
    Ok(())
}

/// Times in milliseconds.
#[derive(Serialize)]
struct FiguresJson {
    generation: u64,
    processes: u32,
    suspend: f64,
    quiesce: f64,
    snapshot: f64,
    resume: f64,
    stopped: f64,
    save: f64,
    commit: f64,
    total: f64,
    bytes: u64,
    memory: u64,
    retaken: u32,
}

impl FiguresJson {
    fn new(figures: &Figures) -> Self {
        let ms = |us: u64| us as f64 / 1000.0;
        Self {
            generation: figures.generation,
            processes: figures.processes,
            suspend: ms(figures.suspend_us),
            quiesce: ms(figures.quiesce_us),
            snapshot: ms(figures.snapshot_us),
            resume: ms(figures.resume_us),
            stopped: ms(figures.stopped_us),
            save: ms(figures.save_us),
            commit: ms(figures.commit_us),
            total: ms(figures.total_us),
            bytes: figures.bytes,
            memory: figures.memory,
            retaken: figures.retaken,
        }
    }
}

#[derive(Serialize)]
struct CheckpointJson<'a> {
    path: &'a str,
    #[serde(flatten)]
    figures: FiguresJson,
}

#[derive(Serialize)]
struct StatusJson<'a> {
    state: &'static str,
    processes: usize,
    threads: u64,
    expected: u32,
    generation: Option<u64>,
    last_checkpoint: Option<FiguresJson>,
    error: Option<&'a str>,
    members: &'a [slackwater_protocol::command::MemberStatus],
}

impl<'a> StatusJson<'a> {
    fn new(status: &'a Status) -> Self {
        Self {
            state: phase_name(status.state),
            processes: status.members.len(),
            threads: status.members.iter().map(|m| u64::from(m.threads)).sum(),
            expected: status.expected,
            generation: status.generation,
            last_checkpoint: status.last_checkpoint.as_ref().map(FiguresJson::new),
            error: status.error.as_deref(),
            members: &status.members,
        }
    }
}

fn print_status(status: &Status) -> Result<()> {
    let mut out = stdout().lock();
    let json = StatusJson::new(status);
    write!(out, "{}: {} processes, {} threads", json.state, json.processes, json.threads)?;
    if status.expected > 0 {
        write!(out, ", {} more are being born", status.expected)?;
    }
    writeln!(out)?;
    match status.generation {
        Some(generation) => writeln!(out, "newest generation: {generation}")?,
        None => writeln!(out, "no generation is committed")?,
    }
    if let Some(last) = &json.last_checkpoint {
        writeln!(
            out,
            "last checkpoint: generation {}, {} processes, {} in {}, stopped {:.1} ms, in all {:.1} ms",
            last.generation,
            last.processes,
            indicatif::HumanBytes(last.memory),
            indicatif::HumanBytes(last.bytes),
            last.stopped,
            last.total
        )?;
    }
    if let Some(error) = &status.error {
        writeln!(out, "last error: {error}")?;
    }
    for m in &status.members {
        writeln!(out, "{:>6}  pid {:<8} {:>5} threads  {}  {}", m.member, m.pid, m.threads, m.host, m.exe)?;
    }
    Ok(())
}
