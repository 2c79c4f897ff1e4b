//! Verbs from other languages: Rust clients on two people's bindings (`clients/`), and Python's own test suite.
//!
//! The clients are built outside of the guest, whose file system forgets it; their crates also bring rdma-core's sources, in
//! which the suite of pyverbs lies.
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode, in_guest};
use slackwater_mpi_tests::guest::{self, packets_sent};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clients: the old post interface over a libibverbs that is linked; the new one over one found by dlopen(3).
pub const CLIENTS: [&str; 2] = ["ibverbs", "sideway"];

/// Packets of a client that is at work.
const AT_WORK: u64 = 50;

fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/Cargo.toml");
    cargo.args([command, "--quiet", "--locked", "--manifest-path"]).arg(manifest);
    cargo
}

/// Builds the clients; where they lie.
///
/// # Errors
/// When cargo fails: it needs cmake.
pub fn build() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), Into::into)
        .join("verbs-clients");
    if !in_guest() {
        let status = cargo("build").arg("--release").env("CARGO_TARGET_DIR", &target).status()?;
        ensure!(status.success(), "the Rust clients do not build");
    }
    Ok(target.join("release").canonicalize()?)
}

/// A client over soft-RoCE: a checkpoint with which it goes on, then twice checkpoint, SIGKILL, restart.
///
/// # Errors
/// What went wrong.
pub fn play(client: &str) -> Result<()> {
    let before = packets_sent()?;
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&[build()?.join(client).to_string_lossy().into_owned()])?;
    computation.wait_line("beat")?;
    for n in 1..=3 {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.wait_new_line("beat").with_context(|| format!("after checkpoint {n}"))?;
        if n > 1 {
            computation.sigkill_all()?;
            computation.restart(None)?;
            computation.wait_line("beat").with_context(|| format!("after restart {}", n - 1))?;
        }
    }
    ensure!(packets_sent()? > before + AT_WORK, "it went over something else");
    computation.finish()
}

/// From outside: the trial `name` in two guests, one after the other, which have different addresses.
///
/// # Errors
/// What a guest printed.
pub fn travels(name: &str) -> Result<()> {
    build()?;
    let folder = tempfile::Builder::new().prefix("slackwater-client-").tempdir()?;
    for act in 1..=2 {
        let words = format!("{act} {}", folder.path().display());
        guest::boot(name, act, &[folder.path()], &words).with_context(|| format!("guest {act}"))?;
    }
    Ok(())
}

/// Inside: the client is killed in the first guest, and goes on in the second.
///
/// # Errors
/// What went wrong.
pub fn travel(client: &str) -> Result<()> {
    let words = std::env::var(guest::ACT).with_context(|| format!("${} is not set", guest::ACT))?;
    let (act, folder) = words.split_once(' ').context("no folder")?;
    let mut computation = Computation::lasting(Path::new(folder), Mode::Pipe)?;
    if act == "1" {
        computation.launch(&[build()?.join(client).to_string_lossy().into_owned()])?;
        computation.wait_line("beat")?;
        computation.checkpoint(&[])?;
        computation.wait_new_line("beat")?;
        computation.sigkill_all()
    } else {
        computation.restart(None)?;
        computation.wait_line("beat")?;
        computation.finish()
    }
}

/// The folder in which rdma-core's `tests` lie, among the sources of a binding.
///
/// # Errors
/// When the crate that brings them is not there, or has them no more.
pub fn suite() -> Result<PathBuf> {
    let output = cargo("metadata").args(["--format-version", "1"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let manifest = text
        .split("\"manifest_path\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .find(|path| path.contains("/ibverbs-sys-"))
        .context("cargo metadata names no ibverbs-sys")?;
    let folder = Path::new(manifest).with_file_name("vendor").join("rdma-core");
    ensure!(folder.join("tests/base.py").exists(), "{} has no tests of pyverbs", folder.display());
    Ok(folder)
}

/// Of the suite, what names a thing that is refused (`docs/verbs-coverage.md`): memory windows.
const REFUSED: [&str; 2] = [".MWTest.", "_bind_mw"];

/// Inside: each test of pyverbs ends as it does natively. `$SLACKWATER_ACT` is the folder of [`suite`].
///
/// # Errors
/// The tests that end otherwise.
pub fn pyverbs() -> Result<()> {
    let folder = std::env::var(guest::ACT).with_context(|| format!("${} is not set", guest::ACT))?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/suite.py");
    let command = ["/usr/bin/python3", program, &folder].map(str::to_owned);
    let run = |mut computation: Computation| -> Result<Vec<(String, String)>> {
        computation.launch(&command)?;
        let lines = computation.lines_until("END")?;
        let status = computation.wait_exit()?;
        ensure!(status.success(), "it ended with {status}");
        let split = |line: &String| line.split_once(": ").map(|(test, how)| (test.to_owned(), how.to_owned()));
        Ok(lines.iter().filter_map(split).collect())
    };
    let native = run(Computation::native(Mode::Pipe)?).context("natively")?;
    let ours = run(Computation::new(Mode::Pipe)?).context("under slackwater")?;
    ensure!(native.len() > 150 && native.len() == ours.len(), "{} tests natively, {}", native.len(), ours.len());
    let word = |how: &str| how.split(' ').next().unwrap_or_default().to_owned();
    let mut differ = Vec::new();
    for ((test, native), (same, ours)) in native.iter().zip(&ours) {
        let refused = word(ours) == "skip" && REFUSED.iter().any(|part| test.contains(part));
        if test != same || (word(native) != word(ours) && !refused) {
            differ.push(format!("{test}: natively {native}; {same}: {ours}"));
        }
    }
    if !differ.is_empty() {
        bail!("{}", differ.join("\n"));
    }
    Ok(())
}
