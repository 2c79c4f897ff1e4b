//! Whole-process figures: `cargo xtask bench` prints them.
//!
//! Each figure of slackwater's is taken in turn with the same program run natively, so that a busy machine disturbs both; the
//! median is printed (of single calls the least), with the bound that the project has set itself. Times are wall-clock times seen from outside, but for
//! the time that a program stood still, which the agent measures.
#![deny(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod mpi;
mod perftest;

use anyhow::{Context as _, Result, ensure};
use slackwater_harness::{Computation, Kit, Mode, Program};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    if arguments.iter().any(|a| a == "--mpi") {
        return mpi::all(if quick { 3 } else { 15 });
    }
    let only = arguments.iter().find(|a| !a.starts_with("--"));
    let wanted = |part: &str| only.is_none_or(|o| o == part);
    if wanted("launch") {
        launch(if quick { 10 } else { 40 })?;
    }
    if wanted("checkpoints") {
        checkpoints("tiny process", "pulse-0", if quick { 5 } else { 15 }, 10.0, 40.0)?;
        checkpoints("1 GiB of random bytes", "pulse-1024", if quick { 1 } else { 5 }, 15.0, f64::INFINITY)?;
    }
    if wanted("connections") {
        connections(if quick { 3 } else { 15 })?;
    }
    if wanted("calls") {
        calls(if quick { 2 } else { 7 })?;
    }
    if wanted("cycles") {
        cycles(if quick { 2 } else { 5 })?;
    }
    let pairs = arguments.iter().find_map(|a| a.strip_prefix("--pairs=")?.parse().ok());
    let pairs = pairs.unwrap_or(if quick { 7 } else { 31 });
    if only.is_some_and(|o| o == "perftest-inside") {
        return perftest::inside(pairs);
    }
    if wanted("mpi") {
        mpi::all(if quick { 3 } else { 15 })?;
    }
    if wanted("perftest") {
        perftest::run(pairs)?;
    }
    Ok(())
}

fn program(name: &str) -> Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    let all = Program::all(&folder)?;
    all.iter().find(|p| p.name == name).with_context(|| format!("no program `{name}`"))?.command()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn verdict(value: f64, bound: f64) -> String {
    if bound.is_infinite() {
        return String::new();
    }
    format!("{} {bound}", if value <= bound { "within" } else { "OVER" })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// `/bin/true`: from spawn to the end of wait.
fn launch(rounds: usize) -> Result<()> {
    let slackwater = Kit::find()?.slackwater();
    let folder = std::env::temp_dir().join(format!("slackwater-bench-{}", std::process::id()));
    let (mut native, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let before = Instant::now();
        ensure!(Command::new("/bin/true").status()?.success(), "/bin/true fails");
        native.push(milliseconds(before));
        let mut command = Command::new(&slackwater);
        command.arg("launch").arg("--dir").arg(folder.join(round.to_string())).arg("/bin/true").stdin(Stdio::null());
        let before = Instant::now();
        ensure!(command.status()?.success(), "launch of /bin/true fails");
        ours.push(milliseconds(before));
    }
    std::fs::remove_dir_all(&folder)?;
    let (native, ours) = (median(&mut native), median(&mut ours));
    println!(
        "launch of /bin/true: {ours:.2} ms, native {native:.2} ms: {:.2} ms over native ({})",
        ours - native,
        verdict(ours - native, 5.0)
    );
    Ok(())
}

/// Checkpoints and restarts of a program that prints each millisecond.
fn checkpoints(what: &str, name: &str, rounds: usize, stop_bound: f64, restart_bound: f64) -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program(name)?)?;
    computation.wait_line("pulse")?;
    let (mut stopped, mut total, mut restart, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let before = Instant::now();
        computation.checkpoint(&[])?;
        total.push(milliseconds(before));
        let figures = computation.status()?.last_checkpoint.context("no figures")?;
        stopped.push(figures["stopped"].as_f64().context("no time stopped")?);
        bytes = figures["bytes"].as_u64().unwrap_or(0);
        computation.sigkill_all()?;
        let before = Instant::now();
        computation.restart(None)?;
        computation.wait_line("pulse")?;
        restart.push(milliseconds(before));
    }
    let (stopped, total, restart) = (median(&mut stopped), median(&mut total), median(&mut restart));
    println!("{what}: stopped {stopped:.2} ms ({})", verdict(stopped, stop_bound));
    println!("{what}: checkpoint, command to commit {total:.1} ms, image {:.1} MB", bytes as f64 / 1e6);
    println!(
        "{what}: restart, command to the program's first line {restart:.1} ms {}",
        verdict(restart, restart_bound)
    );
    Ok(())
}

/// What idle connections add to the time stopped: the same program with and without them, in one process and in two.
fn connections(rounds: usize) -> Result<()> {
    for processes in [1, 2] {
        let mut without_and_with = [Vec::new(), Vec::new()];
        for (count, stopped) in ["0", "1000"].into_iter().zip(&mut without_and_with) {
            let mut computation = Computation::new(Mode::Pipe)?;
            computation.launch(&program(&format!("idle-{processes}-{count}"))?)?;
            (0..processes).try_for_each(|_| computation.wait_line("idle").map(drop))?;
            for _ in 0..rounds {
                computation.checkpoint(&[])?;
                let figures = computation.status()?.last_checkpoint.context("no figures")?;
                stopped.push(figures["stopped"].as_f64().context("no time stopped")?);
            }
            computation.sigkill_all()?;
        }
        let [without, with] = without_and_with.map(|mut stopped| median(&mut stopped));
        println!(
            "1,000 idle connections (both ends) in each of {processes}: stopped {with:.2} ms, without {without:.2} ms: {:.2} ms for sockets ({})",
            with - without,
            verdict(with - without, 20.0)
        );
    }
    Ok(())
}

/// Single calls, in nanoseconds.
fn calls(rounds: usize) -> Result<()> {
    let command = program("calls")?;
    let (mut native, mut ours) = (BTreeMap::<String, Vec<f64>>::new(), BTreeMap::<String, Vec<f64>>::new());
    let mut order = Vec::new();
    for _ in 0..rounds {
        for (results, computation) in
            [(&mut native, Computation::native(Mode::Pipe)?), (&mut ours, Computation::new(Mode::Pipe)?)]
        {
            for line in run(computation, &command)? {
                let (name, value) = line.split_once(' ').with_context(|| format!("not a figure: {line}"))?;
                if !order.iter().any(|o| o == name) {
                    order.push(name.to_owned());
                }
                results.entry(name.to_owned()).or_default().push(value.parse()?);
            }
        }
    }
    println!("{:<22}{:>12}{:>12}{:>8}", "call", "native ns", "launched ns", "ratio");
    for name in order {
        let (n, o) = (least(&native, &name), least(&ours, &name));
        // fork is followed by the runtime, so it has no bound here.
        let bound = match name.as_str() {
            "fork+wait" => f64::INFINITY,
            "send+recv" | "connect+accept" => 1.02,
            _ => 1.05,
        };
        println!("{name:<22}{n:>12.1}{o:>12.1}{:>8.3}  {}", o / n, verdict(o / n, bound));
    }
    Ok(())
}

/// The least disturbed: what another process does on the machine only ever adds.
fn least(results: &BTreeMap<String, Vec<f64>>, name: &str) -> f64 {
    results.get(name).into_iter().flatten().copied().fold(f64::INFINITY, f64::min)
}

/// Runs it to its end; what it printed.
fn run(mut computation: Computation, command: &[String]) -> Result<Vec<String>> {
    computation.launch(command)?;
    let output = computation.output()?.clone();
    let status = computation.wait_exit()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(output.lines())
}

/// Cycles of the processor's clock that the InfiniBand plugin adds to the data path, on a provider that does nothing: before any
/// restart, and after one (of the plugin's objects, by a runtime in one file).
fn cycles(rounds: usize) -> Result<()> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ib-plugin/tests/programs");
    let folder = std::env::temp_dir().join(format!("slackwater-bench-cycles-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let build = |source: &str, flags: &[&str]| -> Result<String> {
        let to = folder.join(source.replace(".c", ".bin"));
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-o"]).arg(&to).args(flags).arg(sources.join(source)).arg("-libverbs");
        ensure!(cc.status()?.success(), "{source} does not compile");
        Ok(to.to_string_lossy().into_owned())
    };
    let mock = build("mock.c", &["-shared", "-fPIC"])?;
    let runtime = build("fakert.c", &["-shared", "-fPIC"])?;
    let program = build("cycles.c", &[])?;
    let plugin = Kit::find()?.slackwater().with_file_name("libslackwater_ib.so");
    let mut all = [BTreeMap::<String, Vec<f64>>::new(), BTreeMap::new(), BTreeMap::new()];
    let mut order = Vec::new();
    for _ in 0..rounds {
        for (how, results) in all.iter_mut().enumerate() {
            let mut command = Command::new(&program);
            command.env("MOCK_NULL", "1").env("FAKERT", "restart").stdin(Stdio::null());
            if how == 0 {
                command.env("LD_PRELOAD", &mock);
            } else {
                command
                    .env("LD_PRELOAD", format!("{runtime} {}", plugin.display()))
                    .env("SLACKWATER_LIBIBVERBS", &mock);
                command.args((how == 2).then_some("restarted"));
            }
            let out = command.output()?;
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
            for line in String::from_utf8(out.stdout)?.lines() {
                let (name, value) = line.split_once(": ").with_context(|| format!("not a figure: {line}"))?;
                if !order.iter().any(|o| o == name) {
                    order.push(name.to_owned());
                }
                results.entry(name.to_owned()).or_default().push(value.parse()?);
            }
        }
    }
    std::fs::remove_dir_all(&folder)?;
    println!("{:<22}{:>14}{:>14}{:>16}", "verbs, cycles", "provider", "plugin adds", "after a restart");
    for name in order {
        let [native, ours, restarted] = [0, 1, 2].map(|i| least(&all[i], &name));
        let (before, after) = (ours - native, restarted - native);
        println!(
            "{name:<22}{native:>14.1}{before:>14.1}{after:>16.1}  {}; {}",
            verdict(before, 10.0),
            verdict(after, 30.0)
        );
    }
    Ok(())
}
