//! `demo`: an MPI solver over RDMA is checkpointed under mpirun, killed, and goes on after a reboot, with a word on each step.
//!
//! It checks what it tells, or the demo fails. The main job is played by `slackwater_mpi_tests::demo`, in two guests one after
//! the other; here stand what leads to it, and a smaller demo of one program with threads (`--threads`).
use crate::{guest, run, setup, test};
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use slackwater_harness::{Computation, Mode};
use slackwater_mpi_tests::{Transport, demo as job};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `demo`'s options.
#[derive(Args)]
pub struct Options {
    /// On this machine's own kernel, over TCP, instead of over RDMA in the guest.
    #[arg(long)]
    host: bool,
    /// Which MPI.
    #[arg(long, value_enum, default_value = "openmpi")]
    mpi: Mpi,
    /// A program with threads instead of the MPI job: no MPI, no network.
    #[arg(long)]
    threads: bool,
    /// Setup and build are done (the guest calls it so).
    #[arg(long, hide = true)]
    built: bool,
    /// One act of the MPI job, in this folder.
    #[arg(long, hide = true, requires = "folder")]
    act: Option<u8>,
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mpi {
    Openmpi,
    Mpich,
}

impl Options {
    fn transport(&self) -> Result<&'static Transport> {
        let name = match (self.mpi, self.host) {
            (Mpi::Openmpi, false) => "openmpi-verbs",
            (Mpi::Openmpi, true) => "openmpi-tcp",
            (Mpi::Mpich, false) => "mpich-verbs",
            (Mpi::Mpich, true) => "mpich-tcp",
        };
        Transport::named(name).with_context(|| format!("no transport {name}"))
    }

    fn mpi_name(&self) -> &'static str {
        match self.mpi {
            Mpi::Openmpi => "openmpi",
            Mpi::Mpich => "mpich",
        }
    }
}

/// Sets up, builds, shows.
pub fn run(options: &Options) -> Result<u8> {
    if let (Some(act), Some(folder)) = (options.act, &options.folder) {
        let play = if act == 1 { job::before } else { job::after };
        return play(folder, options.transport()?).map(|()| 0);
    }
    if !options.built {
        setup::ensure()?;
        test::build_release()?;
    }
    if options.threads { threads(options) } else { mpi(options) }
}

/// Memory of the guest, in MiB: two ranks with UCX's buffers, and their copies while images are written.
const MEMORY: u32 = 1500;

fn mpi(options: &Options) -> Result<u8> {
    let transport = options.transport()?;
    // Built here: a guest forgets what it writes, but for the folder.
    job::command(transport)?;
    let folder = tempfile::Builder::new().prefix("demo-").tempdir_in(run::root().join("target"))?;
    if options.host {
        job::before(folder.path(), transport)?;
        job::after(folder.path(), transport)?;
        return Ok(0);
    }
    for node in [1, 2] {
        println!("\ndemo: a guest boots as node {node}: 10.77.0.{node}, fd77::{node}");
        let status = act(options, folder.path(), node)?;
        if status != 0 {
            return Ok(status);
        }
    }
    println!("\ndemo: done; the guest was rebooted between checkpoint and restart");
    Ok(0)
}

/// One act in a guest of its own.
fn act(options: &Options, folder: &Path, node: u8) -> Result<u8> {
    let words = [
        std::env::current_exe()?.to_string_lossy().into_owned(),
        "demo".into(),
        "--mpi".into(),
        options.mpi_name().into(),
        "--act".into(),
        node.to_string(),
        "--folder".into(),
        folder.to_string_lossy().into_owned(),
    ];
    guest::run(&guest::Options {
        node,
        memory: MEMORY,
        writable: vec![folder.to_owned()],
        ..guest::Options::shell(words.map(|w| run::quote(&w)).join(" "))
    })
}

fn threads(options: &Options) -> Result<u8> {
    if !options.built {
        run::quiet(
            Command::new("gcc")
                .args(["-O2", "-pthread", "-o"])
                .arg(program())
                .arg(run::root().join("xtask/demo/tide.c")),
        )?;
    }
    if options.host || options.built {
        return show().map(|()| 0);
    }
    println!("demo: in the guest, a kernel of its own (`--host` shows it on this one)\n");
    let this = std::env::current_exe()?.to_string_lossy().into_owned();
    guest::run(&guest::Options::shell(format!("{} demo --threads --built", run::quote(&this))))
}

fn program() -> PathBuf {
    run::root().join("target/release/tide")
}

fn show() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let dir = computation.dir();
    say(
        "A program with five threads starts under slackwater. It is an ordinary program; nothing was linked or changed.",
    );
    prompt(&format!("slackwater launch --dir {} ./tide", dir.display()));
    computation.launch(&[program().to_string_lossy().into_owned()])?;
    lines(&mut computation, 3)?;

    say("A checkpoint. The program stands still for a moment, and runs on while its memory is written.");
    prompt(&format!("slackwater checkpoint --dir {}", dir.display()));
    let checkpoint = computation.checkpoint(&[])?;
    let last = computation.output()?.lines().iter().filter_map(|l| tide(l)).max().unwrap_or(0);
    println!("{}", checkpoint.path.display());
    if let Some(figures) = computation.status()?.last_checkpoint {
        println!("  its phases: {figures}");
    }
    lines(&mut computation, 3)?;

    let pid = computation.pid()?;
    say("Now the worst: SIGKILL. Nothing of the program is left.");
    prompt(&format!("kill -9 {pid}"));
    computation.sigkill_all()?;
    ensure!(!PathBuf::from(format!("/proc/{pid}")).exists(), "process {pid} is still there");

    say("And the tide turns: all threads, all memory, at the moment of the checkpoint.");
    prompt(&format!("slackwater restart --dir {}", dir.display()));
    computation.restart(None)?;
    let first = lines(&mut computation, 4)?;
    ensure!(first <= last + 2, "the restart went on with tide {first}, though the cut was at {last}");
    computation.sigkill_all()?;
    say(&format!("It went on with tide {first}: the number after the cut."));
    Ok(())
}

fn say(text: &str) {
    println!("\n# {text}");
}

fn prompt(text: &str) {
    println!("$ {text}");
}

fn tide(line: &str) -> Option<u64> {
    line.strip_prefix("tide ")?.split(':').next()?.parse().ok()
}

/// Shows the program's next lines; the number of the first.
fn lines(computation: &mut Computation, n: usize) -> Result<u64> {
    let mut first = None;
    for _ in 0..n {
        let line = computation.wait_line("tide")?;
        println!("{line}");
        first = first.or_else(|| tide(&line));
    }
    first.context("no number in the program's line")
}
