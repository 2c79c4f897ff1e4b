//! Connections at full speed through many checkpoints: 200 at random moments after which the program goes on, then 50 after
//! which it is killed and restarted. The programs themselves tell what is lost, doubled or reordered.
#![allow(clippy::print_stdout)] // Reason: the counts.
use crate::Case;
use anyhow::{Context as _, Result};
use slackwater_harness::{Computation, Mode, Program};
use std::path::Path;
use std::time::{Duration, Instant};

const GO_ON: u64 = 200;
const RESTARTS: u64 = 50;
/// (program, arguments): a kind of socket each; a thousand connections; full windows; 4 MiB that nobody reads, each way.
const KINDS: &[(&str, &str)] = &[
    ("streams", "tcp4"),
    ("streams", "tcp6"),
    ("streams", "mapped"),
    ("streams", "udp"),
    ("streams", "unix"),
    ("streams", "seqpacket"),
    ("streams", "dgram"),
    ("streams", "pair"),
    ("streams", "pairdgram"),
    ("streams", "small"),
    ("streams", "tcp4 1000"),
    ("streams", "unix 1000"),
    ("unread", "tcp4 4"),
    ("unread", "tcp6 4"),
    ("unread", "unix 4"),
    ("unread", "small 0"),
];

pub fn all() -> Vec<Case> {
    let case = |&(program, args): &(&'static str, &'static str)| {
        let name = format!("stress::{program}-{}", args.replace(' ', "-"));
        let mut case = Case::new(&name, "full", move || stress(program, args));
        case.places = vec!["host".into()];
        case.prepare = Box::new(move || command(program, args).map(drop));
        case
    };
    KINDS.iter().map(case).collect()
}

fn command(program: &str, args: &str) -> Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let is = |p: &&Program| p.source.file_stem().is_some_and(|stem| stem == program);
    let all = Program::all(&folder)?;
    let mut found = all.iter().find(is).with_context(|| format!("no program `{program}`"))?.clone();
    found.args = args.split(' ').map(str::to_owned).collect();
    found.command()
}

fn stress(program: &str, args: &str) -> Result<()> {
    let began = Instant::now();
    let mut moments = fastrand::Rng::with_seed(4);
    let mut a_moment = || std::thread::sleep(Duration::from_micros(moments.u64(..25_000)));
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch_with(&["--keep", "2"], &command(program, args)?)?;
    computation.wait_line("ready")?;
    computation.wait_line("beat")?;
    for n in 1..=GO_ON {
        a_moment();
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.wait_new_line("beat").with_context(|| format!("after checkpoint {n}"))?;
    }
    let going_on = began.elapsed();
    for n in 1..=RESTARTS {
        a_moment();
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {} before restart {n}", GO_ON + n))?;
        computation.wait_new_line("beat").with_context(|| format!("before restart {n}"))?;
        a_moment();
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("beat").with_context(|| format!("after restart {n}"))?;
    }
    computation.finish()?;
    println!(
        "{program} {args}: {GO_ON} checkpoints with go-on in {:.1} s, {RESTARTS} with kill and restart in {:.1} s",
        going_on.as_secs_f64(),
        (began.elapsed() - going_on).as_secs_f64()
    );
    Ok(())
}
