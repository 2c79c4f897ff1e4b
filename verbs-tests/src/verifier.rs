//! The verifier (`programs/verifier.c`) over its matrix: checkpoints at random moments, SIGKILL and restarts, from machine to machine.
//!
//! A case is played in acts, each in a guest of its own: the first launches, the second, at another address, restarts what the first
//! has left. In each act there are checkpoints after which the program goes on, and some after which it is killed and restarted,
//! so that every case has restarts in the same boot, in a fresh one, and of what was restarted. A moment is a number of packets
//! that the device has sent, drawn from a seed that is printed.
use crate::acts::{self, Act};
use crate::compile;
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode, patience};
use slackwater_mpi_tests::guest::packets_sent;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// A row of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Name of the trial.
    pub name: &'static str,
    /// Arguments of the verifier.
    pub arguments: &'static str,
    /// Plays in normal runs, too.
    pub normal: bool,
    /// Checkpoints stand still for long.
    pub hold: bool,
}

const fn case(name: &'static str, arguments: &'static str, normal: bool) -> Case {
    Case { name, arguments, normal, hold: false }
}

/// The matrix.
pub const CASES: &[Case] = &[
    case("rc-2-processes-2-threads", "-p 2 -T 2 -n 4", false),
    // Not one thread is there that is not in malloc most of the time.
    case("rc-malloc-hammer", "-p 2 -T 2 -n 3 -k 3 -M 3", true),
    case("rc-1-process-signaled-1-in-3", "-k 3", false),
    case("rc-shared-events", "-p 2 -s -e", false),
    case("rc-extended-events-signaled-1-in-5", "-p 2 -T 2 -n 3 -x -k 5 -e", false),
    case("rc-slow-receivers", "-p 2 -l -k 7", false),
    case("rc-slow-receivers-finite-retries", "-p 2 -l -d 8 -r 6 -R 0", false),
    // A request nearly always waits for a receive, which it does for 7 * 655 ms (IBTA table 45) before its queue pair dies: natively,
    // too, where the machine is so busy that a receiver does not come to run for so long. Hence for full runs.
    Case { name: "rc-slow-receivers-held", arguments: "-p 2 -l -d 2 -r 6 -R 0 -P 1500", normal: false, hold: true },
    case("rc-4-MiB", "-p 2 -n 1 -d 4 -m 4194304", false),
    case("rc-full-queues-signaled-1-in-64", "-p 2 -T 3 -n 4 -d 64 -m 1024 -k 64", false),
    case("rc-reads-only-unsignaled", "-p 2 -a 4 -k 4", false),
    case("rc-atomics-only-unsignaled", "-p 2 -a 8 -k 4", false),
    case("uc-2-threads", "-t uc -p 2 -T 2 -k 2", false),
    case("uc-shared-events", "-t uc -p 2 -s -e", false),
    case("ud-shared-events-extended", "-t ud -p 2 -s -e -x", true),
    case("ud-2-threads", "-t ud -p 2 -T 2 -k 3", false),
];

/// What is done in one act: checkpoints, of which so many end with a restart; the last of a machine's is restarted by the next machine.
#[derive(Clone, Copy, Debug)]
struct Score {
    checkpoints: u32,
    restarts: u32,
}

/// Per level. At `full`, 15 cases make 17 checkpoints and 5 restarts each, 255 and 75 in all.
fn score(case: &Case, full: bool) -> Score {
    if case.hold {
        Score { checkpoints: 1, restarts: 1 }
    } else if full {
        Score { checkpoints: 8, restarts: 2 }
    } else {
        Score { checkpoints: 3, restarts: 1 }
    }
}

/// Seconds for which a checkpoint stands still.
const HOLD: u32 = 30;

/// Packets after which a checkpoint is asked for at the latest; where receivers are slow, few are sent.
const LATEST: [u64; 2] = [3000, 20];

/// From outside: the trial `name`; prints what its last act found.
///
/// # Errors
/// As [`acts::direct`].
pub fn direct(name: &str) -> Result<()> {
    let prepare = |folder: &Path| {
        compile("programs/verifier.c", &folder.join("verifier"), &["-pthread", "-libverbs"])?;
        let header = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/../runtime/plugin/include");
        compile("programs/hold.c", &folder.join("hold.so"), &["-shared", "-fPIC", header])
    };
    acts::direct(name, prepare, |seed, folder| {
        eprintln!("{name}, seed {seed}: {}", fs::read_to_string(folder.join("verdict"))?);
        Ok(())
    })
}

/// Inside: the act that the environment names.
///
/// # Errors
/// What went wrong.
pub fn play(case: &Case, full: bool) -> Result<()> {
    let score = score(case, full);
    let act = Act::here()?;
    let (number, place) = (act.number, &act.folder);
    let mut seed = act.seed + u64::from(number) * 0x1_0000_0000;
    let mut computation = Computation::lasting(place, Mode::Pipe)?;
    let mut tally = Tally::read(place);
    if number == 1 {
        let mut command = vec![place.join("verifier").to_string_lossy().into_owned()];
        command.extend(case.arguments.split_whitespace().map(str::to_owned));
        let plugin = format!("{},seconds={}", place.join("hold.so").display(), HOLD);
        let options = ["--keep", "2", "--plugin", &plugin];
        computation.launch_with(&options[..if case.hold { 4 } else { 2 }], &command)?;
        computation.wait_line("ready")?;
    } else {
        computation.restart_with(&["--keep", "2"])?;
        tally.restarts += 1;
    }
    computation.wait_line("beat").context("at the beginning")?;
    for n in 1..=score.checkpoints {
        let last_restarts = score.checkpoints - n < score.restarts;
        moment(&mut seed, case.hold)?;
        computation.checkpoint(&[]).with_context(|| format!("act {number}, checkpoint {n}"))?;
        tally.checkpoints += 1;
        computation.wait_new_line("beat").with_context(|| format!("act {number}, after checkpoint {n}"))?;
        if last_restarts {
            computation.sigkill_all()?;
            computation.restart_with(&["--keep", "2"])?;
            tally.restarts += 1;
            computation.wait_line("beat").with_context(|| format!("act {number}, after the restart of {n}"))?;
        }
    }
    if !act.is_last() {
        moment(&mut seed, case.hold)?;
        computation.checkpoint(&[]).context("the checkpoint that moves")?;
        tally.checkpoints += 1;
        tally.write(place)?;
        return computation.sigkill_all();
    }
    let output = computation.output()?.clone();
    computation.finish()?;
    let verdict = output.lines().into_iter().find(|l| l.starts_with("verified")).unwrap_or_default();
    ensure!(verdict.contains(" operations of "), "it printed no verdict");
    tally.verdict = format!("{} checkpoints, {} restarts; {verdict}", tally.checkpoints, tally.restarts);
    tally.write(place)
}

/// What has been done to a case over all acts.
#[derive(Default)]
struct Tally {
    checkpoints: u32,
    restarts: u32,
    verdict: String,
}

impl Tally {
    fn read(place: &Path) -> Self {
        let text = fs::read_to_string(place.join("tally")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap_or(0));
        Self { checkpoints: numbers.next().unwrap_or(0), restarts: numbers.next().unwrap_or(0), verdict: String::new() }
    }

    fn write(&self, place: &Path) -> Result<()> {
        fs::write(place.join("tally"), format!("{} {}", self.checkpoints, self.restarts))?;
        Ok(fs::write(place.join("verdict"), &self.verdict)?)
    }
}

/// Returns when the device has sent as many more packets as the seed says (splitmix64).
fn moment(seed: &mut u64, hold: bool) -> Result<()> {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *seed;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let (goal, until) = (packets_sent()? + (x ^ (x >> 31)) % LATEST[usize::from(hold)], Instant::now() + patience());
    while packets_sent()? < goal {
        if Instant::now() > until {
            bail!("the device sends nothing more");
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}
