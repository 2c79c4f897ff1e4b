//! Plugins. Those of docs/plugins.md are cut out of it, so that the page and what is tested cannot differ, and built as its
//! reader would build them: gcc, the header, nothing else, in a folder elsewhere.
use crate::Case;
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Kit, Mode, patience};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn all() -> Vec<Case> {
    let case = |name: &str, run: fn() -> Result<()>| {
        let mut case = Case::new(&format!("plugin::{name}"), "normal", run);
        // A guest has no compiler to spare, and nothing here depends on the kernel.
        case.places = vec!["host".into()];
        case
    };
    let mut cases = vec![
        case("sleep", || sleeps("sleep.c")),
        case("sleep-in-rust", sleep_in_rust),
        case("environment", environment),
        case("virtual-ids", virtual_ids),
        case("cutout", cutout),
        case("publish-and-query", publish_and_query),
        case("inside", inside),
        case("events", events),
        case("chain", chain),
        case("errors", errors),
        case("asked-too-late", asked_too_late),
        case("cannot-be-loaded", cannot_be_loaded),
        case("gone-at-restart", gone_at_restart),
    ];
    cases[0].level = 0;
    cases
}

/// A file of this crate's or of the page.
fn source(name: &str) -> Result<String> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = crate_folder.join("tests/plugins").join(name);
    if own.is_file() {
        return Ok(fs::read_to_string(own)?);
    }
    let page = fs::read_to_string(crate_folder.join("../../docs/plugins.md"))?;
    let begin = format!("```c\n/* {name}: ");
    let (_, block) = page.split_once(&begin).with_context(|| format!("docs/plugins.md has no block of {name}"))?;
    let (block, _) = block.split_once("\n```").context("a block without an end")?;
    Ok(format!("/* {name}: {block}\n"))
}

/// An empty folder with the header in it.
fn workshop() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("slackwater-plugin-").tempdir()?;
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin/include/slackwater.h");
    fs::copy(header, folder.path().join("slackwater.h"))?;
    Ok(folder)
}

fn gcc(folder: &Path, source: &str, options: &[&str], out: &str) -> Result<PathBuf> {
    let file = folder.join("source.c");
    fs::write(&file, source)?;
    let out = folder.join(out);
    let built = Command::new("gcc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-I", "."])
        .args(options)
        .arg("-o")
        .arg(&out)
        .arg("source.c")
        .current_dir(folder)
        .output()
        .context("gcc")?;
    ensure!(built.status.success(), "gcc: {}", String::from_utf8_lossy(&built.stderr));
    Ok(out)
}

fn library(folder: &Path, name: &str) -> Result<String> {
    let out = name.replace(".c", ".so");
    Ok(gcc(folder, &source(name)?, &["-shared", "-fPIC"], &out)?.to_string_lossy().into_owned())
}

fn program(folder: &Path, name: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins/programs").join(name);
    let out = name.replace(".c", "-program");
    Ok(gcc(folder, &fs::read_to_string(file)?, &["-pthread"], &out)?.to_string_lossy().into_owned())
}

fn launch(computation: &mut Computation, plugins: &[&str], program: &str) -> Result<()> {
    let options: Vec<&str> = plugins.iter().flat_map(|plugin| ["--plugin", *plugin]).collect();
    computation.launch_with(&options, &[program.to_owned()])
}

/// Checkpoint and go on, then checkpoint, SIGKILL, restart; twice.
fn go_on_and_restart(computation: &mut Computation) -> Result<()> {
    for n in 0..2 {
        computation.checkpoint(&[]).with_context(|| format!("checkpoint {n}"))?;
        computation.wait_new_line("beat").context("it goes on")?;
        computation.checkpoint(&[])?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("beat").with_context(|| format!("after restart {n}"))?;
    }
    Ok(())
}

fn sleeps(name: &str) -> Result<()> {
    let folder = workshop()?;
    let plugin = library(folder.path(), name)?;
    sleeps_with(folder.path(), &plugin)
}

fn sleeps_with(folder: &Path, plugin: &str) -> Result<()> {
    let lines = source("sleep.c")?.lines().count();
    ensure!(lines < 50, "the example has {lines} lines");
    let mut computation = Computation::new(Mode::Pipe)?;
    launch(&mut computation, &[plugin], &program(folder, "sleeper.c")?)?;
    computation.wait_line("beat")?;
    go_on_and_restart(&mut computation)?;
    computation.wait_new_line("beat")?;
    let said = computation.errors()?.tail(10);
    ensure!(said.contains("] sleep(1) begins") && said.contains("] sleep(1) ends"), "no time stamps: {said}");
    computation.finish()
}

fn sleep_in_rust() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (page, code) = (
        fs::read_to_string(folder.join("docs/plugins.md"))?,
        fs::read_to_string(folder.join("runtime/plugin/examples/sleep/src/lib.rs"))?,
    );
    ensure!(page.contains(&format!("```rust\n{code}```\n")), "docs/plugins.md and the example in Rust differ");
    ensure!(code.lines().count() < 50, "the example has {} lines", code.lines().count());
    let plugin = Kit::find()?.slackwater().with_file_name("libslackwater_example_sleep.so");
    sleeps_with(workshop()?.path(), &plugin.to_string_lossy())
}

fn environment() -> Result<()> {
    let folder = workshop()?;
    let file = folder.path().join("new-environment");
    let plugin = format!("{},file={}", library(folder.path(), "env.c")?, file.display());
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.env("CHANGES", "before");
    launch(&mut computation, &[&plugin], &program(folder.path(), "lifecycle.c")?)?;
    ensure!(computation.wait_line("beat")?.ends_with("before"), "the environment of the launch");
    computation.checkpoint(&[])?;
    fs::write(&file, "CHANGES=after\nNOBODY=has this\n")?;
    ensure!(computation.wait_new_line("beat")?.ends_with("before"), "changed without a restart");
    computation.sigkill_all()?;
    computation.restart(None)?;
    ensure!(computation.wait_line("beat")?.ends_with("after"), "not changed at the restart");
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    fs::remove_file(&file)?;
    computation.restart(None)?;
    ensure!(computation.wait_line("beat")?.ends_with("after"), "lost at the next restart");
    computation.finish()
}

fn virtual_ids() -> Result<()> {
    let folder = workshop()?;
    let plugin = library(folder.path(), "vpid.c")?;
    let mut computation = Computation::new(Mode::Pipe)?;
    launch(&mut computation, &[&plugin], &program(folder.path(), "vpid.c")?)?;
    computation.wait_line("beat")?;
    go_on_and_restart(&mut computation)?;
    computation.finish()
}

fn cutout() -> Result<()> {
    let folder = workshop()?;
    let plugin = library(folder.path(), "cutout.c")?;
    let mut computation = Computation::new(Mode::Pipe)?;
    launch(&mut computation, &[&plugin], &program(folder.path(), "table.c")?)?;
    computation.wait_line("beat")?;
    let checkpoint = computation.checkpoint(&[])?;
    let images: Vec<PathBuf> = fs::read_dir(&checkpoint.path)?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "image"))
        .collect();
    let bytes = fs::metadata(images.first().context("no image")?)?.len();
    ensure!(bytes < 16 << 20, "64 MiB were left out, but the image has {bytes} bytes");
    let inspected = Command::new(Kit::find()?.slackwater()).arg("inspect").args(&images).output()?;
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    ensure!(inspected.contains("plugin.table"), "`inspect` does not show the section: {inspected}");
    let refused = Command::new(Kit::find()?.slackwater()).arg("inspect").arg(&checkpoint.path).output()?;
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.contains("name an image in it: member-"), "of a generation's folder: {refused}");
    go_on_and_restart(&mut computation)?;
    computation.finish()
}

fn publish_and_query() -> Result<()> {
    let folder = workshop()?;
    let plugin = library(folder.path(), "pubsub.c")?;
    let program = program(folder.path(), "lifecycle.c")?;
    let mut computation = Computation::new(Mode::Pipe)?;
    let script = format!("ROLE=left {program} & ROLE=right {program}; wait");
    computation.launch_with(&["--plugin", &plugin], &["sh".into(), "-c".into(), script])?;
    computation.wait_line("beat")?;
    let said = |computation: &Computation, restarts: u32| -> Result<()> {
        for (a, b) in [("left", "right"), ("right", "left")] {
            let begin = format!("{a}: {b} is member ");
            let end = format!(", after {restarts} restarts");
            let is = |line: &str| line.starts_with(&begin) && line.ends_with(&end);
            computation.errors()?.wait(0, patience(), &format!("`{begin}...{end}`"), is)?;
        }
        Ok(())
    };
    // Both are there when a checkpoint finds both: `beat` came from one of them.
    while computation.status()?.processes != 3 {
        std::thread::yield_now();
    }
    for restarts in 0..2 {
        computation.checkpoint(&[])?;
        said(&computation, restarts)?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("beat")?;
        said(&computation, restarts + 1).context("in the rounds of the restart")?;
    }
    computation.finish_all(2)
}

fn inside() -> Result<()> {
    let folder = workshop()?;
    for options in [&["-fPIE", "-pie"][..], &["-fno-pie", "-no-pie"]] {
        let program = gcc(folder.path(), &source("inside.c")?, options, "inside")?;
        let alone = Command::new(&program).output()?;
        let said = String::from_utf8_lossy(&alone.stdout).into_owned();
        ensure!(alone.status.success() && said.contains("without slackwater"), "alone: {said}");
        let mut computation = Computation::new(Mode::Pipe)?;
        launch(&mut computation, &[], &program.to_string_lossy())?;
        computation.wait_line("saved").with_context(|| format!("{options:?}"))?;
        computation.wait_line("generation 1, 0 restarts")?;
        ensure!(computation.wait_exit()?.success(), "it failed");
        computation.restart(None)?;
        computation.wait_line("restarted")?;
        computation.wait_line("generation 1, 1 restarts")?;
        ensure!(computation.wait_exit()?.success(), "it failed");
    }
    Ok(())
}

/// Every event, in its order, on every path.
fn events() -> Result<()> {
    let folder = workshop()?;
    let log = folder.path().join("log");
    let plugin = format!("{},log={},rounds=3", library(folder.path(), "events.c")?, log.display());
    let mut computation = Computation::new(Mode::Pipe)?;
    launch(&mut computation, &[&plugin], &program(folder.path(), "lifecycle.c")?)?;
    computation.wait_line("beat")?;
    let since = |lines: &mut usize| -> Result<Vec<String>> {
        let text = fs::read_to_string(&log)?;
        let new = text.lines().skip(*lines).map(|l| l.trim_start_matches("events ").to_owned()).collect::<Vec<_>>();
        *lines += new.len();
        Ok(new)
    };
    let mut lines = 0;
    let thread = ["THREAD_START 0 0", "THREAD_EXIT 0 0"];
    let mut expected = vec!["INIT 0 0"];
    for _ in 0..3 {
        expected.extend(thread);
    }
    let begun = since(&mut lines)?;
    ensure!(begun.starts_with(&expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()), "{begun:?}");
    let count = |what: &str| begun.iter().filter(|l| l.starts_with(&format!("{what} "))).count();
    for (what, times) in [
        ("PREFORK", 1),
        ("POSTFORK_PARENT", 1),
        ("POSTFORK_CHILD", 1),
        ("PREEXEC", 2),
        ("EXEC_FAILED", 1),
        ("INIT", 2),
        ("POSTEXEC", 1),
        ("EXIT", 1),
    ] {
        ensure!(count(what) == times, "{} times {what}, not {times}: {begun:?}", count(what));
    }
    let to_save = ["PRESUSPEND 0", "SUSPENDED 0", "QUIESCE 0", "QUIESCE 1", "QUIESCE 2", "SAVE 0"];
    let after = [&["RESUME 0", "RUNNING 0"][..], &["RESTART 0", "RESTART 1", "RESTART 2", "RESTARTED 0", "RUNNING 0"]];
    for restarts in 0..2 {
        for (i, after) in after.iter().enumerate() {
            computation.checkpoint(&[])?;
            computation.wait_new_line("beat")?;
            let went_on = ["RESUME 0", "RUNNING 0"];
            let mut expected: Vec<String> = to_save.iter().chain(&went_on).map(|e| format!("{e} {restarts}")).collect();
            if i == 1 {
                computation.sigkill_all()?;
                computation.restart(None)?;
                computation.wait_line("beat")?;
                expected.extend(after.iter().map(|e| format!("{e} {}", restarts + 1)));
            }
            wait_for(&log, lines + expected.len())?;
            let seen = since(&mut lines)?;
            ensure!(seen == expected, "seen {seen:?}, expected {expected:?}");
        }
    }
    computation.finish()?;
    let end = since(&mut lines)?;
    ensure!(end == ["EXIT 0 2"], "at the end: {end:?}");
    Ok(())
}

/// RUNNING comes while the program runs already.
fn wait_for(log: &Path, lines: usize) -> Result<()> {
    let since = std::time::Instant::now();
    while fs::read_to_string(log)?.lines().count() < lines {
        ensure!(since.elapsed() < slackwater_harness::patience(), "no {lines} lines in {}", fs::read_to_string(log)?);
        std::thread::yield_now();
    }
    Ok(())
}

/// Two plugins over one function, and over each event.
fn chain() -> Result<()> {
    let folder = workshop()?;
    let log = folder.path().join("log");
    let first = library(folder.path(), "events.c")?;
    let second = folder.path().join("second.so");
    fs::copy(&first, &second)?;
    let named = |path: &str, name: &str| format!("{path},name={name},log={}", log.display());
    let (a, b) = (named(&first, "A"), named(&second.to_string_lossy(), "B"));
    for order in [[&a, &b], [&b, &a]] {
        fs::write(&log, "")?;
        let names: Vec<&str> = order.iter().filter_map(|o| o.split("name=").nth(1)?.get(..1)).collect();
        let mut computation = Computation::new(Mode::Pipe)?;
        launch(&mut computation, &[order[0], order[1]], &program(folder.path(), "lifecycle.c")?)?;
        let line = computation.wait_line("chain")?;
        ensure!(line == format!("chain {}{}", names[0], names[1]), "{names:?}: {line}");
        computation.wait_line("beat")?;
        computation.checkpoint(&[])?;
        computation.finish()?;
        let text = fs::read_to_string(&log)?;
        let order_of = |event: &str| -> Vec<String> {
            let wanted = format!(" {event} ");
            text.lines().filter(|l| l.contains(&wanted)).map(|l| l[..1].to_owned()).take(2).collect()
        };
        for event in ["INIT", "PREFORK", "PRESUSPEND", "SUSPENDED", "QUIESCE", "SAVE"] {
            ensure!(order_of(event) == names, "{event} of {names:?}: {text}");
        }
        for event in ["POSTFORK_PARENT", "RESUME", "RUNNING"] {
            let seen: Vec<String> = order_of(event).into_iter().rev().collect();
            ensure!(seen == names, "{event} of {names:?}: {text}");
        }
    }
    Ok(())
}

/// An error in an event is the checkpoint's, or the restart's, with the plugin's sentence; the program runs on.
fn errors() -> Result<()> {
    let folder = workshop()?;
    let log = folder.path().join("log");
    let plugin = library(folder.path(), "events.c")?;
    let program = program(folder.path(), "lifecycle.c")?;
    for (number, name) in [(0, "PRESUSPEND"), (1, "SUSPENDED"), (2, "QUIESCE"), (3, "SAVE")] {
        let plugin = format!("{plugin},log={},fail={number}", log.display());
        let mut computation = Computation::new(Mode::Pipe)?;
        launch(&mut computation, &[&plugin], &program)?;
        computation.wait_line("beat")?;
        for _ in 0..2 {
            let (status, _, error) = computation.run("checkpoint", &[])?;
            let sentence = format!("plugin events: it was told to fail in {name}");
            ensure!(!status.success() && error.contains(&sentence), "{name}: {status} {error}");
            computation.wait_new_line("beat").context("the program runs on")?;
        }
        ensure!(computation.status()?.generation.is_none(), "a generation was committed");
        computation.finish()?;
    }
    let fails = format!("{plugin},log={},fail=5", log.display());
    let mut computation = Computation::new(Mode::Pipe)?;
    launch(&mut computation, &[&fails], &program)?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    computation.restart(None)?;
    let status = computation.wait_exit()?;
    ensure!(!status.success(), "RESTART failed, but: {status}");
    let sentence = "plugin events: it was told to fail in RESTART";
    let said = computation.last_errors();
    ensure!(said.contains(sentence), "RESTART: {said}");
    Ok(())
}

/// A process asks the coordinator while another has made the checkpoint fail: both run on.
fn asked_too_late() -> Result<()> {
    let folder = workshop()?;
    let file = folder.path().join("resumed");
    let plugin = format!("{},file={}", library(folder.path(), "late.c")?, file.display());
    let program = program(folder.path(), "lifecycle.c")?;
    let mut computation = Computation::new(Mode::Pipe)?;
    let script = format!("ROLE=fails {program} > /dev/null & ROLE=asks {program}; wait");
    computation.launch_with(&["--plugin", &plugin], &["sh".into(), "-c".into(), script])?;
    computation.wait_line("beat")?;
    while computation.status()?.processes != 3 {
        std::thread::yield_now();
    }
    for _ in 0..3 {
        let (status, _, error) = computation.run("checkpoint", &[])?;
        ensure!(!status.success() && error.contains("plugin late: it was told to fail"), "{status} {error}");
        computation.wait_new_line("beat").context("who had asked runs on")?;
        fs::remove_file(&file)?;
    }
    computation.finish()
}

/// What the dynamic linker would only mention stops `launch`.
fn cannot_be_loaded() -> Result<()> {
    let folder = workshop()?;
    let text = folder.path().join("text.so");
    fs::write(&text, "no library")?;
    let lacking = "int nobody_has_this(void); int f(void) { return nobody_has_this(); }";
    let lacking = gcc(folder.path(), lacking, &["-shared", "-fPIC"], "lacking.so")?;
    let foreign = source("events.c")?.replace("{SLACKWATER_ABI, sizeof plugin", "{99, sizeof plugin");
    let foreign = gcc(folder.path(), &foreign, &["-shared", "-fPIC"], "foreign.so")?;
    let sound = library(folder.path(), "sleep.c")?;
    for (plugin, reason) in [
        (folder.path().join("missing.so").to_string_lossy().into_owned(), "No such file"),
        (text.to_string_lossy().into_owned(), "text.so"),
        (lacking.to_string_lossy().into_owned(), "nobody_has_this"),
        (foreign.to_string_lossy().into_owned(), "version 99"),
        (format!("{sound},novalue"), "not of the form KEY=VALUE"),
    ] {
        let computation = Computation::new(Mode::Pipe)?;
        let (status, out, error) = computation.run("launch", &["--plugin", &plugin, "--", "echo", "it ran"])?;
        if status.success() || !error.contains(reason) || out.contains("it ran") {
            bail!("{plugin}: {status}, says: {error}{out}");
        }
    }
    Ok(())
}

/// The plugin's file is gone when the restart comes: from the copy, or, without one, a sentence that names it.
fn gone_at_restart() -> Result<()> {
    let folder = workshop()?;
    let program = program(folder.path(), "sleeper.c")?;
    for store in [true, false] {
        let plugin = library(folder.path(), "sleep.c")?;
        let mut computation = Computation::new(Mode::Pipe)?;
        let mut options = vec!["--plugin", &plugin];
        options.extend((!store).then_some("--no-file-store"));
        computation.launch_with(&options, std::slice::from_ref(&program))?;
        computation.wait_line("beat")?;
        computation.checkpoint(&[])?;
        if store {
            crate::cases::wait_stored(&computation, &plugin)?;
        }
        computation.sigkill_all()?;
        fs::remove_file(&plugin)?;
        if store {
            computation.restart(None)?;
            computation.wait_line("beat").context("from the file store")?;
            computation.finish()?;
        } else {
            let (status, _, error) = computation.run("restart", &[])?;
            ensure!(!status.success() && error.contains(&plugin), "{plugin} is gone, but: {status} {error}");
        }
    }
    Ok(())
}
