//! Pairs of verbs programs, server and client, as one computation.
//!
//! A shell runs both and says how they ended; what the device has sent (its packet counter) says that they are at work, so no
//! checkpoint is aimed by a clock. A pair passes when both ended with status 0 and printed no error of theirs.
#![deny(unsafe_code)]

mod acts;
pub mod bindings;
pub mod devices;
pub mod ucx;
pub mod verifier;

use acts::Act;
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode, patience};
use slackwater_mpi_tests::guest::packets_sent;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A server and a client: the same command, the client's with the server's name behind it.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Name of the trial.
    pub name: &'static str,
    /// The command line; `SECONDS` in it is for how long it is to be at work.
    pub command: &'static str,
    /// The TCP port at which the server waits for its client.
    pub port: u16,
}

/// What a pair goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Without slackwater. What fails here is a mistake in the test.
    Native,
    /// Two checkpoints while it works.
    GoOn,
    /// Checkpoint, SIGKILL of all, restart; and once more, so that the second is a restart of a restart.
    Restart,
    /// All that can befall it: a checkpoint after which it goes on, a second, SIGKILL and restart, a third and SIGKILL; restart in a fresh
    /// machine with another address; there a fourth, SIGKILL and restart, of what was restarted.
    Move,
}

/// For how long a pair is at work that would go on for ever: between its two checkpoints and restarts it must not come to its end, on a
/// busy machine either.
const SECONDS: u32 = 10;

/// Packets by which a pair is known to be at work: connection set-up sends none.
const AT_WORK: u64 = 50;

/// Server first; the client when the server listens.
fn script(pair: &Pair, seconds: u32) -> String {
    let Pair { command, port, .. } = pair;
    let command = command.replace("SECONDS", &seconds.to_string());
    format!(
        "{command} & server=$!
         until ss -Hltn 'sport = :{port}' | grep -q .; do kill -0 $server || exit 9; done
         {command} 127.0.0.1; client=$?
         wait $server; echo RESULT client $client server $?"
    )
}

/// Plays `scenario`.
///
/// # Errors
/// What went wrong.
pub fn play(pair: &Pair, scenario: Scenario) -> Result<()> {
    if scenario == Scenario::Move {
        return moves(pair);
    }
    let mut computation =
        if scenario == Scenario::Native { Computation::native(Mode::Pipe)? } else { Computation::new(Mode::Pipe)? };
    let before = packets_sent()?;
    launch(&mut computation, pair, SECONDS)?;
    for n in 1..=2 {
        if scenario == Scenario::Native {
            break;
        }
        at_work(&computation, if n == 1 { before } else { packets_sent()? })
            .with_context(|| format!("before checkpoint {n}"))?;
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        if scenario == Scenario::Restart {
            computation.sigkill_all()?;
            computation.restart(None)?;
        }
    }
    verdict(&mut computation, pair)
}

fn launch(computation: &mut Computation, pair: &Pair, seconds: u32) -> Result<()> {
    for (name, value) in slackwater_mpi_tests::transport::VERBS {
        computation.env(name, value);
    }
    computation.launch(&["/bin/bash".into(), "-c".into(), script(pair, seconds)])
}

/// From outside: the trial `name`, of [`Scenario::Move`].
///
/// # Errors
/// Which machine it fails on, and what was printed there.
pub fn travel(name: &str) -> Result<()> {
    acts::direct(name, |_| Ok(()), |_, _| Ok(()))
}

/// One act of a pair that moves from machine to machine; [`travel`] boots them.
fn moves(pair: &Pair) -> Result<()> {
    let act = Act::here()?;
    let mut computation = Computation::lasting(&act.folder, Mode::Pipe)?;
    let before = packets_sent()?;
    if act.number == 1 {
        launch(&mut computation, pair, 4 * SECONDS)?;
    } else {
        computation.restart(None)?;
    }
    let cut = |computation: &mut Computation, before: u64, n: u32| {
        let what = || format!("checkpoint {n} on machine {}", act.number);
        at_work(computation, before).with_context(what)?;
        computation.checkpoint(&[]).with_context(what)
    };
    cut(&mut computation, before, 1)?;
    if !act.is_last() {
        cut(&mut computation, packets_sent()?, 2)?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        cut(&mut computation, packets_sent()?, 3)?;
        return computation.sigkill_all();
    }
    computation.sigkill_all()?;
    computation.restart(None)?;
    verdict(&mut computation, pair)
}

fn verdict(computation: &mut Computation, pair: &Pair) -> Result<()> {
    let line = computation.wait_line("RESULT")?;
    ensure!(line == "RESULT client 0 server 0", "{}: {line}", pair.command);
    let status = computation.wait_exit()?;
    ensure!(status.success(), "the shell ended with {status}");
    Ok(())
}

/// How long UCX 1.13 waits for the answer to a datagram, by the processor's time stamp counter, before it gives its user up; and a bit.
const TOO_LONG: Duration = Duration::from_secs(33);

/// A pair that is away for longer than its library would wait for an answer.
///
/// # Errors
/// What went wrong.
pub fn absent(pair: &Pair) -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let before = packets_sent()?;
    launch(&mut computation, pair, 3)?;
    at_work(&computation, before)?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    std::thread::sleep(TOO_LONG);
    computation.restart(None)?;
    verdict(&mut computation, pair)
}

/// Waits until the device has sent [`AT_WORK`] packets more than `before`.
fn at_work(computation: &Computation, before: u64) -> Result<()> {
    let until = Instant::now() + patience();
    while packets_sent()? < before + AT_WORK {
        if Instant::now() > until {
            bail!("{}", computation.explain("the device sends nothing"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A program that loads libibverbs by dlopen(3), on a machine with or without a device, restarted.
///
/// # Errors
/// What it found instead of the wrappers.
pub fn loads() -> Result<()> {
    let folder = Folder::new()?;
    let program = folder.build("programs/loads.c", "loads", &[])?;
    let mut native = Computation::native(Mode::Pipe)?;
    native.launch(std::slice::from_ref(&program))?;
    native.wait_line("ok").context("natively")?;
    native.wait_exit()?;
    let plugin = plugin()?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch_with(&["--plugin", &plugin], &[program, "ours".into(), "-l".into()])?;
    computation.wait_line("ok")?;
    computation.cycle()?;
    computation.type_in(b"once more\n")?;
    computation.wait_line("again")?;
    Ok(())
}

/// A program that closes all descriptors it does not know, as daemons and Python's subprocess do, keeps its checkpoints where a
/// plugin makes the checkpoint thread share its descriptor table.
///
/// # Errors
/// What went wrong.
pub fn closes() -> Result<()> {
    const PROGRAM: &str = "
import os, sys
def sweep():
    os.closerange(3, 1 << 20)
    for fd in range(3, 1 << 16):
        try:
            os.close(fd)
        except OSError:
            continue
        sys.exit(f'{fd} was open')
sweep()
print('ok', flush=True)
while sys.stdin.readline():
    sweep()
    print('again', flush=True)
";
    let mut computation = Computation::new(Mode::Pipe)?;
    let program = ["/usr/bin/python3", "-c", PROGRAM].map(str::to_owned);
    computation.launch_with(&["--plugin", &plugin()?], &program)?;
    computation.wait_line("ok")?;
    for n in 1..=2 {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.type_in(b"once more\n")?;
        computation.wait_new_line("again")?;
    }
    computation.checkpoint(&[]).map(drop).context("after it closed all once more")
}

/// Every thread of a verbs program is inside malloc(3) when it is stopped, over a provider in the program's own process: a plugin or a
/// driver that needed the program's malloc would hang.
///
/// # Errors
/// What went wrong.
pub fn hammer(cycles: u32) -> Result<()> {
    let folder = Folder::new()?;
    let mock = folder.build("../ib-plugin/tests/programs/mock.c", "mock.so", &["-shared", "-fPIC", "-libverbs"])?;
    let program = folder.build("../ib-plugin/tests/programs/defects.c", "defects", &["-pthread", "-libverbs"])?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.env("SLACKWATER_LIBIBVERBS", &mock);
    computation.launch_with(&["--plugin", &plugin()?], &[program, "endless".into()])?;
    beats(computation, cycles)
}

/// Atomic writes, which only an extended queue pair of the driver's can send, over go-on and restarts.
///
/// # Errors
/// What went wrong.
pub fn atomic_write(cycles: u32) -> Result<()> {
    let folder = Folder::new()?;
    let program = folder.build("programs/atomicwrite.c", "atomicwrite", &["-libverbs"])?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&[program])?;
    beats(computation, cycles)
}

/// Pairs of queue pairs of which one end is connected before a restart and the other after it.
///
/// # Errors
/// What went wrong.
pub fn half_open(cycles: u32) -> Result<()> {
    let folder = Folder::new()?;
    let program = folder.build("programs/halfopen.c", "halfopen", &["-libverbs"])?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&[program])?;
    beats(computation, cycles)
}

/// Processes that are connected anew after each restart, by numbers and keys of which a third may have had others before. One act:
/// [`travel`] boots the machines.
///
/// # Errors
/// What went wrong.
pub fn strangers() -> Result<()> {
    beats_there("strangers", &["-libverbs"], &[])
}

/// What is left open from one checkpoint to the next: unacknowledged events, an armed limit, flushes, completions, handles.
///
/// # Errors
/// What went wrong.
pub fn corners() -> Result<()> {
    beats_there("corners", &["-libverbs"], &[])
}

/// Threads that sleep in libibverbs; two contexts of one device, 2,000 regions, children.
///
/// # Errors
/// What went wrong.
pub fn closed() -> Result<()> {
    beats_there("closed", &["-libverbs"], &[])
}

/// One act of a program of ours that prints "beat" as it comes on, and is killed and restarted here and on the next machine.
fn beats_there(name: &str, flags: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let act = Act::here()?;
    let mut computation = Computation::lasting(&act.folder, Mode::Pipe)?;
    for (name, value) in environment {
        computation.env(name, value);
    }
    if act.number == 1 {
        let program = act.folder.join(name);
        compile(&format!("programs/{name}.c"), &program, flags)?;
        computation.launch(&[program.to_string_lossy().into_owned()])?;
    } else {
        computation.restart(None)?;
    }
    for n in 1..=2 {
        computation.wait_new_line("beat").with_context(|| format!("on machine {}", act.number))?;
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.wait_new_line("beat").with_context(|| format!("after checkpoint {n}"))?;
        computation.sigkill_all()?;
        if n == 1 || act.is_last() {
            computation.restart(None)?;
            computation.wait_line("beat").with_context(|| format!("after restart {n} on machine {}", act.number))?;
        }
    }
    if act.is_last() { computation.finish() } else { Ok(()) }
}

/// So many times: checkpoint, go on, SIGKILL, restart; the program prints "beat" as it comes on.
fn beats(mut computation: Computation, cycles: u32) -> Result<()> {
    computation.wait_line("beat")?;
    for n in 1..=cycles {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.wait_new_line("beat").with_context(|| format!("after checkpoint {n}"))?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("beat").with_context(|| format!("after restart {n}"))?;
    }
    computation.finish()
}

/// A pair that connects by rdma_cm: no checkpoint, which says why, and the pair ends well.
///
/// # Errors
/// What went wrong.
pub fn refused() -> Result<()> {
    let command = "ib_send_bw -R -F -D 3";
    let script = format!(
        "{command} & server=$!
         until {command} 10.77.0.1; do kill -0 $server || exit 9; done
         wait $server; echo RESULT server $?"
    );
    let before = packets_sent()?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&["/bin/bash".into(), "-c".into(), script])?;
    at_work(&computation, before)?;
    let (status, _, errors) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && errors.contains("rdma_cm ids"), "the checkpoint ended with {status}: {errors}");
    let line = computation.wait_line("RESULT")?;
    ensure!(line == "RESULT server 0", "{line}");
    computation.wait_exit().map(drop)
}

/// A drained send queue that holds requests back: no checkpoint, which says why at once; one that holds none is kept.
///
/// # Errors
/// What went wrong.
pub fn held_back() -> Result<()> {
    let folder = Folder::new()?;
    let program = folder.build("programs/heldback.c", "heldback", &["-libverbs"])?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&[program])?;
    computation.wait_line("beat")?;
    let (status, _, errors) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && errors.contains("in state SQD"), "the checkpoint ended with {status}: {errors}");
    computation.type_in(b"go\n")?;
    computation.wait_new_line("beat")?;
    computation.cycle()?;
    computation.type_in(b"go\n")?;
    computation.wait_line("PASS")?;
    computation.wait_exit().map(drop)
}

/// What libibverbs says to all sorts of calls, wrong ones too, is the same under slackwater, errno included.
///
/// # Errors
/// The first answer that differs.
pub fn answers() -> Result<()> {
    let folder = Folder::new()?;
    let program = folder.build("programs/answers.c", "answers", &["-libverbs"])?;
    let ask = |mut computation: Computation| -> Result<Vec<String>> {
        computation.launch(std::slice::from_ref(&program))?;
        let output = computation.output()?.clone();
        let status = computation.wait_exit()?;
        ensure!(status.success(), "it ended with {status}: {:?}", output.lines().last());
        Ok(output.lines())
    };
    let (native, ours) = (ask(Computation::native(Mode::Pipe)?)?, ask(Computation::new(Mode::Pipe)?)?);
    for (native, ours) in native.iter().zip(&ours) {
        ensure!(native == ours, "natively `{native}`, under slackwater `{ours}`");
    }
    ensure!(native.len() == ours.len() && native.len() > 150, "{} answers, and {}", native.len(), ours.len());
    Ok(())
}

fn plugin() -> Result<String> {
    let path = slackwater_harness::Kit::find()?.slackwater().with_file_name("libslackwater_ib.so");
    Ok(path.to_string_lossy().into_owned())
}

/// A folder of programs, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("slackwater-verbs-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Compiles a C file of this crate's folder; the path of what comes out.
    fn build(&self, source: &str, name: &str, flags: &[&str]) -> Result<String> {
        let to = self.0.join(name);
        compile(source, &to, flags)?;
        Ok(to.to_string_lossy().into_owned())
    }
}

/// Compiles a C file of this crate's folder.
fn compile(source: &str, to: &Path, flags: &[&str]) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let status =
        Command::new("cc").args(["-O2", "-g", "-o"]).arg(to).arg(&source).args(flags).status().context("cc")?;
    ensure!(status.success(), "{} does not compile", source.display());
    Ok(())
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
