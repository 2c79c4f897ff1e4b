//! End-to-end tests: a trial for each program, scenario, mode and place.
//!
//! `PLACE::PROGRAM::SCENARIO[::MODE]`, PLACE being `host` or `guest`. A trial in the guest boots one and runs this same
//! test binary in it, with the trial's name. What takes part depends on `$SLACKWATER_LEVEL` (quick, normal, full); what does
//! not is listed as ignored.
#![deny(unsafe_code)]

mod cases;
mod clocks;
mod counter;
mod doctor;
mod named;
mod places;
mod plugins;
mod refused;
mod stress;
mod watched;

use libtest_mimic::{Arguments, Failed, Trial};
use slackwater_harness::{Mode, Program, in_guest, scenario};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

const LEVELS: [&str; 3] = ["quick", "normal", "full"];

/// A test, wherever it runs.
struct Case {
    name: String,
    level: usize,
    places: Vec<String>,
    /// Memory of the guest, MiB.
    memory: u32,
    /// Why it cannot run on this machine.
    missing: Option<String>,
    run: Box<dyn FnOnce() -> anyhow::Result<()> + Send>,
    /// What must be built before a guest can run it.
    prepare: Box<dyn Fn() -> anyhow::Result<()> + Send + Sync>,
}

impl Case {
    /// A case without a program of its own: it runs on the host and in the guest.
    fn new(name: &str, level: &str, run: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Self {
        Self {
            name: name.to_owned(),
            level: rank(level),
            places: vec!["host".into(), "guest".into()],
            memory: 1024,
            missing: None,
            run: Box::new(run),
            prepare: Box::new(|| Ok(())),
        }
    }
}

fn rank(level: &str) -> usize {
    LEVELS.iter().position(|l| *l == level).unwrap_or(1)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen = rank(&std::env::var("SLACKWATER_LEVEL").unwrap_or_default());
    let cases = match programs() {
        Ok(mut cases) => {
            cases.extend(cases::all());
            cases.extend(clocks::all());
            cases.extend(counter::all());
            cases.extend(doctor::all());
            cases.extend(plugins::all());
            cases.extend(places::all());
            cases.extend(refused::all());
            cases.extend(named::all());
            cases.extend(stress::all());
            cases.extend(watched::all());
            cases
        }
        Err(error) => {
            eprintln!("e2e: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let xtask = std::env::var("SLACKWATER_XTASK").ok();
    let mut trials = Vec::new();
    for case in cases {
        let skip = case.level > chosen || case.missing.is_some();
        if !in_guest() && case.places.iter().any(|p| p == "guest") {
            let (name, memory, prepare, xtask) = (case.name.clone(), case.memory, case.prepare, xtask.clone());
            let trial = Trial::test(format!("guest::{name}"), {
                let xtask = xtask.clone();
                move || {
                    prepare().map_err(fail)?;
                    guest(&xtask.ok_or("SLACKWATER_XTASK is not set")?, &format!("host::{name}"), memory)
                }
            });
            trials.push(trial.with_ignored_flag(skip || xtask.is_none()));
        }
        if in_guest() || case.places.iter().any(|p| p == "host") {
            let run = case.run;
            trials
                .push(Trial::test(format!("host::{}", case.name), move || run().map_err(fail)).with_ignored_flag(skip));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

#[allow(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn fail(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

/// The cases that the test programs' directives describe.
fn programs() -> anyhow::Result<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let mut cases = Vec::new();
    for program in Program::all(&folder)? {
        let mut add = |scenario: &str, mode: &str| -> anyhow::Result<()> {
            let (level, mode_value): (_, Mode) = (program.level.clone(), mode.parse()?);
            let suffix = if mode == "pipe" { String::new() } else { format!("::{mode}") };
            let mut case = Case::new(&format!("{}::{scenario}{suffix}", program.name), &level, {
                let (program, scenario) = (program.clone(), scenario.to_owned());
                move || scenario::play(&program, &scenario, mode_value)
            });
            case.places.clone_from(&program.places);
            case.memory = program.memory;
            case.missing = program.missing();
            let program = program.clone();
            case.prepare = Box::new(move || program.command().map(drop));
            cases.push(case);
            Ok(())
        };
        add("native", "pipe")?;
        for mode in &program.modes {
            for scenario in &program.scenarios {
                add(scenario, mode)?;
            }
        }
    }
    Ok(cases)
}

/// Runs the trial `name` of this same test binary in a guest of its own.
fn guest(xtask: &str, name: &str, memory: u32) -> Result<(), Failed> {
    let this = std::env::current_exe()?;
    let output = Command::new(xtask)
        .args(["guest", "-t", "600", "-m", &memory.to_string()])
        .args(["-e", "SLACKWATER_IN_GUEST", "-e", "SLACKWATER_LEVEL", "-e", "SLACKWATER_KIT", "-e", "CARGO_TARGET_DIR"])
        .arg("--")
        .arg(&this)
        .args(["--exact", name, "--include-ignored", "--test-threads", "1"])
        .env("SLACKWATER_IN_GUEST", "1")
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A trial that was not found is no success.
    if output.status.success() && text.contains("1 passed") {
        return Ok(());
    }
    Err(format!("in the guest: {}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}
