//! The main job, step by step: an MPI solver is checkpointed under `mpirun`, killed, and goes on after a reboot.
//!
//! In two acts, for a reboot lies between them: [`before`] runs in the first guest, [`after`] in the second, which has another
//! address. What passes between them lies in a folder of the host. Over a transport without verbs both run on one machine.
//!
//! Rules: nothing is told that is not checked. The answer must be, digit for digit, that of the uninterrupted run; over
//! verbs the packet counters must have moved, and the address must be another.
#![allow(clippy::print_stdout, reason = "it tells people what happens")]
use crate::{Job, Mpi, Transport, guest};
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Kit, Output, kill_tree, patience};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Inner points a side.
const SIZE: &str = "64";
/// Ranks.
const RANKS: u32 = 2;
/// Steps of the solver, and a line each so many: some five seconds in the guest; with MPICH, whose ranks wait by spinning, a minute.
fn steps(transport: &Transport) -> [&'static str; 2] {
    match transport.mpi {
        Mpi::Open => ["1500", "100"],
        Mpi::Mpich => ["150", "10"],
    }
}

/// The solver over `transport`. Also to be called before the guest is booted: it builds the program.
///
/// # Errors
/// What the compiler says.
pub fn command(transport: &'static Transport) -> Result<Vec<String>> {
    let [steps, every] = steps(transport);
    Job::new("solver", &[steps, SIZE, every], transport, RANKS)?.command()
}

/// A command whose output is shown as it is waited for.
struct Run {
    child: Child,
    out: Output,
    err: Output,
    seen: usize,
}

impl Run {
    fn start(words: &[String]) -> Result<Self> {
        let (program, arguments) = words.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let out = Output::read(child.stdout.take().context("no pipe")?);
        let err = Output::read(child.stderr.take().context("no pipe")?);
        Ok(Self { child, out, err, seen: 0 })
    }

    /// Prints what comes, up to a line that begins with `start`, and gives that. Each line has its own time to come.
    fn show(&mut self, start: &str) -> Result<String> {
        loop {
            let found = self.out.wait(self.seen, patience(), &format!("a line `{start}...`"), |_| true);
            let (number, line) = found.with_context(|| format!("its errors:\n{}\n", self.err.tail(10)))?;
            println!("{line}");
            self.seen = number + 1;
            if line.starts_with(start) {
                return Ok(line);
            }
        }
    }

    /// Prints the rest, which must hold an answer and PASS; gives the answer.
    fn finish(mut self) -> Result<String> {
        let answer = self.show("answer")?;
        self.show("PASS")?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(answer)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_tree(self.child.id(), patience());
            let _ = self.child.wait();
        }
    }
}

/// The first act: an uninterrupted run for comparison, then the same under slackwater, with a checkpoint while it runs, and
/// SIGKILL. `folder` keeps the checkpoint.
///
/// # Errors
/// The step that failed.
pub fn before(folder: &Path, transport: &'static Transport) -> Result<()> {
    let command = command(transport)?;
    if transport.verbs {
        say("The machine has an RDMA device: soft-RoCE.");
        device()?;
    }
    say("First an uninterrupted run, without slackwater, to compare with.");
    prompt(&command);
    let answer = Run::start(&command)?.finish()?;
    keep(folder, "answer", &answer)?;

    say("The same under slackwater: mpirun, its daemons and the ranks are one computation.");
    let mut words = slackwater(folder, "launch")?;
    words.extend(command);
    prompt(&words);
    let sent = packets(transport)?;
    let mut run = Run::start(&words)?;
    run.show("beat")?;
    run.show("beat")?;
    if transport.verbs {
        let now = packets(transport)?;
        ensure!(now > sent, "no packet went over the RDMA device");
        println!("  ({} packets over rxe0 so far; its queue pairs:)", now - sent);
        queue_pairs();
        keep(folder, "gid", &gid()?)?;
    }

    say("A checkpoint, while messages are in flight. The network stays up; the solver goes on.");
    let words = slackwater(folder, "checkpoint")?;
    prompt(&words);
    let (program, arguments) = words.split_first().context("no command")?;
    let done = Command::new(program).args(arguments).status()?;
    ensure!(done.success(), "the checkpoint ended with {done}; its errors:\n{}", run.err.tail(10));
    run.show("beat")?;

    say("SIGKILL: mpirun, daemons, ranks. Nothing of it is left.");
    let killed = kill_tree(run.child.id(), patience())?;
    println!("  killed: {}", killed.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    let status = run.child.wait()?;
    ensure!(!status.success(), "it had ended before it was killed");
    Ok(())
}

/// The second act, on a machine that was rebooted: restart, and the same digits.
///
/// # Errors
/// The step that failed.
pub fn after(folder: &Path, transport: &'static Transport) -> Result<()> {
    if transport.verbs {
        say("Another machine: it was booted anew, with another address. Its RDMA device:");
        device()?;
        let old = fs::read_to_string(folder.join("gid"))?;
        ensure!(gid()? != old, "it has the same GID as before: {old}");
        println!("  (before it was GID {old})");
    }
    say("The tide turns: slackwater restart.");
    let words = slackwater(folder, "restart")?;
    prompt(&words);
    let sent = packets(transport)?;
    let mut run = Run::start(&words)?;
    run.show("beat")?;
    if transport.verbs {
        queue_pairs();
    }
    let answer = run.finish()?;
    if transport.verbs {
        let now = packets(transport)?;
        ensure!(now > sent + 100, "only {} packets went over the RDMA device", now - sent);
        println!("  ({} packets over rxe0 since the restart)", now - sent);
    }
    let uninterrupted = fs::read_to_string(folder.join("answer"))?;
    ensure!(answer == uninterrupted, "restarted: {answer}; uninterrupted: {uninterrupted}");
    say("The same digits:");
    println!("  uninterrupted:        {uninterrupted}\n  killed and restarted: {answer}");
    Ok(())
}

fn slackwater(folder: &Path, command: &str) -> Result<Vec<String>> {
    let words: [PathBuf; 4] = [Kit::find()?.slackwater(), command.into(), "--dir".into(), folder.join("computation")];
    Ok(words.map(|w| w.to_string_lossy().into_owned()).to_vec())
}

fn keep(folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(folder.join(name), text).with_context(|| format!("cannot write {name} in {}", folder.display()))
}

fn packets(transport: &Transport) -> Result<u64> {
    if transport.verbs { guest::packets_sent() } else { Ok(0) }
}

/// The GID that UCX is told to use.
fn gid() -> Result<String> {
    let path = "/sys/class/infiniband/rxe0/ports/1/gids/2";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

fn device() -> Result<()> {
    println!("  rxe0, GID {}, {} packets sent", gid()?, guest::packets_sent()?);
    Ok(())
}

/// The queue pairs that the kernel knows, without its own.
fn queue_pairs() {
    let listed = Command::new("rdma").args(["resource", "show", "qp"]).output();
    let text = listed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    for line in text.lines().filter(|l| l.contains(" pid ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let field = |name: &str| words.iter().position(|w| *w == name).and_then(|at| words.get(at + 1)).copied();
        if let (Some(number), Some(kind)) = (field("lqpn"), field("type")) {
            let peer = field("rqpn").map(|p| format!(", connected to {p}")).unwrap_or_default();
            println!("  QP {number} ({kind}{peer})");
        }
    }
}

fn say(text: &str) {
    println!("\n# {text}");
}

fn prompt(words: &[String]) {
    println!("$ {}", words.join(" "));
}
