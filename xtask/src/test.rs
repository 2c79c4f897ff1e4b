//! `test`: what CI runs.
//!
//! Order: setup, format, lints, release build, unit and integration tests, then the end-to-end tests on the host and in the
//! guest. A stage of tests that fails does not keep the later ones from running; what failed, and why, is repeated at the end,
//! for a log is read, and kept, from there.
//!
//! The preloaded libraries are built one by one: cargo unifies the features of what it builds together, and a library that
//! lives in a stranger's process shall get no feature that only a tool needs (`std`, which it must not have at all).
use crate::{run, setup};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// `test`'s options.
#[derive(Args)]
pub struct Options {
    /// The core alone, in under three minutes.
    #[arg(long)]
    quick: bool,
    /// Everything, the long runs too.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Only end-to-end tests whose name contains this; no lints, no unit tests.
    #[arg(value_name = "NAME", conflicts_with = "quick")]
    only: Option<String>,
}

/// Setup, format, lints, build, tests.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    let packages = Packages::find()?;
    if options.only.is_none() {
        run::step(&mut run::cargo(["fmt", "--all", "--check"]))?;
        packages.lint()?;
    }
    build(&packages)?;
    let (mut failed, mut why) = (Vec::new(), String::new());
    if options.only.is_none() {
        failed.extend(stage(&mut run::cargo(["test", "--package", MPI, "--lib", "--", "--quiet"]), &mut why).err());
        for mut command in packages.commands(&["test", "--no-fail-fast"], &["--", "--quiet"]) {
            failed.extend(stage(&mut command, &mut why).err());
        }
    }
    let level = if options.quick {
        "quick"
    } else if options.full {
        "full"
    } else {
        "normal"
    };
    let mut end_to_end = run::cargo(["test", "--package", HARNESS, "--test", "e2e", "--"]);
    end_to_end.args(&options.only);
    end_to_end.env("SLACKWATER_LEVEL", level).env("SLACKWATER_XTASK", std::env::current_exe()?);
    failed.extend(stage(&mut end_to_end, &mut why).err());
    let mut jobs = run::cargo(["test", "--package", MPI, "--test", "mpi", "--", "--test-threads", "1"]);
    jobs.args(&options.only);
    jobs.env("SLACKWATER_LEVEL", level).env("SLACKWATER_XTASK", std::env::current_exe()?);
    failed.extend(stage(&mut jobs, &mut why).err());
    let mut pairs = run::cargo(["test", "--package", VERBS, "--test", "verbs", "--", "--test-threads", "1"]);
    pairs.args(&options.only);
    pairs.env("SLACKWATER_LEVEL", level).env("SLACKWATER_XTASK", std::env::current_exe()?);
    failed.extend(stage(&mut pairs, &mut why).err());
    print!("{why}");
    match failed.first() {
        None => Ok(()),
        Some(first) => bail!("{} of the test runs failed; the first: {first:#}", failed.len()),
    }
}

// Runs tests; what their runner says of its failures is added to `why`.
fn stage(command: &mut Command, why: &mut String) -> Result<()> {
    let shown = run::shown(command);
    println!("+ {shown}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let mut told = false;
    for line in BufReader::new(child.stdout.take().context("no output")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        told = (told || line == "failures:") && !line.starts_with("test result:");
        if told {
            why.push_str(&line);
            why.push('\n');
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "`{shown}` ended with {status}");
    Ok(())
}

/// The end-to-end tests: they need the release build, so they run last and on their own.
const HARNESS: &str = "slackwater-harness";
/// The MPI jobs likewise, one at a time: each is several processes that wait by spinning.
const MPI: &str = "slackwater-mpi-tests";
/// Pairs of verbs programs likewise.
const VERBS: &str = "slackwater-verbs-tests";

/// `slackwater` and its libraries, side by side in `target/release`, which is returned.
pub fn build_release() -> Result<PathBuf> {
    build(&Packages::find()?)
}

fn build(packages: &Packages) -> Result<PathBuf> {
    packages.each(&["build", "--release", "--quiet"], &[])?;
    Ok(packages.target.join("release"))
}

/// The workspace's packages.
struct Packages {
    target: PathBuf,
    /// Those that make a library to preload.
    preloaded: Vec<String>,
}

impl Packages {
    fn find() -> Result<Self> {
        let text = run::output(&mut run::cargo(["metadata", "--no-deps", "--format-version", "1"]))
            .context("`cargo metadata` failed: is the workspace's Cargo.toml sound?")?;
        let metadata: serde_json::Value = serde_json::from_str(&text)?;
        let is_preloaded = |package: &&serde_json::Value| {
            package["targets"].as_array().is_some_and(|targets| {
                targets.iter().any(|t| t["crate_types"].as_array().is_some_and(|k| k.iter().any(|k| k == "cdylib")))
            })
        };
        let packages = metadata["packages"].as_array().context("no packages")?;
        let names = packages.iter().filter(is_preloaded).filter_map(|p| p["name"].as_str());
        Ok(Self {
            target: metadata["target_directory"].as_str().context("no target directory")?.into(),
            preloaded: names.map(str::to_owned).collect(),
        })
    }

    /// `cargo FIRST... LAST...` for each preloaded library, then for all the rest.
    fn commands(&self, first: &[&str], last: &[&str]) -> Vec<Command> {
        let mut all = Vec::new();
        for name in &self.preloaded {
            let mut command = run::cargo(first);
            command.args(["--package", name]).args(last);
            all.push(command);
        }
        let mut rest = run::cargo(first);
        rest.arg("--workspace");
        for name in &self.preloaded {
            rest.args(["--exclude", name]);
        }
        if first.contains(&"test") {
            rest.args(["--exclude", HARNESS, "--exclude", MPI, "--exclude", VERBS]);
        }
        rest.args(last);
        all.push(rest);
        all
    }

    fn lint(&self) -> Result<()> {
        const STRICT: [&str; 3] = ["--", "-D", "warnings"];
        for name in &self.preloaded {
            // Not `--all-targets`: it would build a unit test of the library, with std.
            let targets = ["clippy", "--quiet", "--package", name, "--lib", "--tests"];
            run::step(&mut run::cargo(targets.iter().chain(&STRICT)))?;
        }
        let Some(mut rest) = self.commands(&["clippy", "--quiet", "--all-targets"], &STRICT).pop() else {
            return Ok(());
        };
        run::step(&mut rest)
    }

    fn each(&self, first: &[&str], last: &[&str]) -> Result<()> {
        self.commands(first, last).iter_mut().try_for_each(run::step)
    }
}
