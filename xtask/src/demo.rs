//! `demo`: a threaded program is checkpointed, killed and restarted, with a word on each step.
//!
//! It checks what it tells: the numbers after the restart must follow those at the cut, or the demo fails.
use crate::{guest, run, setup, test};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use slackwater_harness::{Computation, Mode};
use std::path::PathBuf;
use std::process::Command;

/// `demo`'s options.
#[derive(Args)]
pub struct Options {
    /// On this machine's own kernel instead of in the guest.
    #[arg(long)]
    host: bool,
    /// Setup and build are done (the guest calls it so).
    #[arg(long, hide = true)]
    built: bool,
}

/// Sets up, builds, shows.
pub fn run(options: &Options) -> Result<u8> {
    if !options.built {
        setup::ensure()?;
        test::build_release()?;
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
    guest::run(&guest::Options::shell(format!("{} demo --built", run::quote(&this))))
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
