//! Cases that need more than a program and a scenario.
use crate::Case;
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Kit, Mode, Program, in_guest, patience};
use std::fs;
use std::path::Path;
use std::process::Command;

pub fn all() -> Vec<Case> {
    let mut cases = vec![
        with("imports", "quick", &[], imports),
        with("exit-status", "quick", &[], exit_status),
        with("terminal-signals", "quick", &[], terminal_signals),
        with("job-control", "quick", &[], job_control),
        with("standard-input", "quick", &[], standard_input),
        with("status-and-kill", "quick", &["counter"], status_and_kill),
        with("side-by-side", "normal", &["counter"], side_by_side),
        with("older-generation", "normal", &["counter"], older_generation),
        with("deleted-program", "normal", &["counter"], deleted_program),
        with("replaced-program", "normal", &[], replaced_program),
        with("gdb-attaches", "normal", &["counter"], gdb_attaches),
        with("damaged-image", "normal", &["counter"], damaged_image),
        with("sparse-costs-nothing", "quick", &["sparse"], sparse_costs_nothing),
        with("shared-once", "normal", &["shared"], shared_once),
        with("interval", "normal", &["counter"], interval),
        with("other-signal", "normal", &["cancel"], other_signal),
    ];
    // A file system of our own is mounted: the guest is the place for it.
    let mut disk = with("disk-full", "quick", &["counter"], disk_full);
    disk.places = vec!["guest".into()];
    cases.push(disk);
    cases
}

fn with(name: &str, level: &str, programs: &'static [&'static str], run: fn() -> Result<()>) -> Case {
    let mut case = Case::new(&format!("case::{name}"), level, run);
    case.prepare = Box::new(|| programs.iter().try_for_each(|p| program(p).map(drop)));
    case
}

/// The command of the test program `name`; `NAME-ARG` has an argument.
fn program(name: &str) -> Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    let stem = name.split('-').next().unwrap_or(name);
    let all = Program::all(&folder)?;
    all.iter().find(|p| p.name == stem || p.name == name).with_context(|| format!("no program `{name}`"))?.command()
}

/// What lives in a stopped program may not call what that may hold a lock of: the library needs the listed symbols alone.
fn imports() -> Result<()> {
    let library = Kit::find()?.slackwater().with_file_name("libslackwater.so");
    let out = Command::new("nm").args(["--dynamic", "--undefined-only"]).arg(&library).output().context("nm")?;
    ensure!(out.status.success(), "nm {}: {}", library.display(), out.status);
    let list = include_str!("../../../agent/imports.list");
    let allowed: Vec<&str> = list.lines().filter(|l| !l.starts_with('#')).map(str::trim).collect();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for line in text.lines() {
        // "                 U memcpy@GLIBC_2.14"; weak ones are optional by nature.
        let mut words = line.split_whitespace();
        let (kind, symbol) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let name = symbol.split('@').next().unwrap_or_default();
        ensure!(
            kind != "U" || allowed.contains(&name),
            "libslackwater.so needs `{symbol}`, which imports.list does not name"
        );
    }
    ensure!(text.contains(" memcpy"), "nm printed nothing of use: {text}");
    Ok(())
}

/// `launch` ends as the program does, signals included, and so does `restart`.
fn exit_status() -> Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    for (script, code, signal) in
        [("exit 0", Some(0), None), ("exit 42", Some(42), None), ("kill -TERM $$", None, Some(15))]
    {
        let mut computation = Computation::new(Mode::Pipe)?;
        computation.launch(&["sh".into(), "-c".into(), script.into()])?;
        let status = computation.wait_exit()?;
        ensure!((status.code(), status.signal()) == (code, signal), "`{script}` under launch: {status}");
    }
    for (name, code) in [("Exit", 7), ("Exit", 0)] {
        let mut computation = Computation::new(Mode::Pipe)?;
        let script = format!(
            "$|=1; print \"ready\\n\"; until (-e $ENV{{SW_STOP}}) {{ print \"beat\\n\"; select undef,undef,undef,0.02 }} print \"PASS\\n\"; exit {code}"
        );
        computation.launch(&["/usr/bin/perl".into(), "-e".into(), script])?;
        computation.wait_line("beat")?;
        computation.checkpoint(&[])?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("beat")?;
        fs::write(computation.folder().join("stop"), "")?;
        let status = computation.wait_exit()?;
        ensure!(status.code() == Some(code), "{name} {code} under restart: {status}");
    }
    Ok(())
}

/// Ctrl-C at the terminal reaches the program: after launch, and after a restart.
fn terminal_signals() -> Result<()> {
    let script = "$|=1; $SIG{INT} = sub { print \"\\ninterrupted\\n\" }; print \"ready\\n\"; while (1) { print \"beat\\n\"; select undef,undef,undef,0.02 }";
    let mut computation = Computation::new(Mode::Pty)?;
    computation.launch(&["/usr/bin/perl".into(), "-e".into(), script.into()])?;
    computation.wait_line("beat")?;
    computation.type_in(b"\x03")?;
    computation.wait_line("interrupted").context("Ctrl-C under launch")?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    computation.restart(None)?;
    computation.wait_line("beat")?;
    computation.type_in(b"\x03")?;
    computation.wait_line("interrupted").context("Ctrl-C under restart")?;
    Ok(())
}

/// A shell with a job that ^Z has stopped and one in the background: the first stays stopped when the computation goes
/// on, and is stopped after a restart; `fg` continues it each time, and ^Z stops it again.
fn job_control() -> Result<()> {
    let job =
        |name: &str| format!("perl -e '$|=1; while (1) {{ print \"{name}\\n\"; select undef,undef,undef,0.02 }}'");
    let stopped = |computation: &Computation| -> Result<bool> {
        let front =
            |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.windows(7).any(|w| w == b"\"front\\"));
        let tree = slackwater_harness::tree(computation.pid()?);
        let pid = tree.into_iter().rfind(front).context("the job in the foreground is no more")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    };
    // The shell answers; what it computes is not in what the terminal echoes.
    let answers = |computation: &mut Computation, n: u32| -> Result<()> {
        computation.type_in(format!("echo; echo shell-$(({n}+1000))\n").as_bytes())?;
        computation.wait_line(&format!("shell-{}", n + 1000)).map(drop)
    };
    let mut computation = Computation::new(Mode::Pty)?;
    computation.env("PS1", "");
    computation.launch(&["bash".into(), "--norc".into(), "--noprofile".into(), "-i".into()])?;
    computation.type_in(format!("{} &\n", job("back")).as_bytes())?;
    computation.wait_line("back").context("a job in the background")?;
    computation.type_in(format!("{}\n", job("front")).as_bytes())?;
    computation.wait_line("front").context("a job in the foreground")?;
    for n in 0..2 {
        computation.type_in(b"\x1a")?;
        answers(&mut computation, 10 * n).context("after ^Z")?;
        ensure!(stopped(&computation)?, "^Z did not stop it");
        computation.checkpoint(&[]).context("with a stopped job")?;
        answers(&mut computation, 10 * n + 1).context("after the checkpoint")?;
        ensure!(stopped(&computation)?, "the checkpoint left it running");
        computation.type_in(b"fg %2\n")?;
        computation.wait_new_line("front").context("`fg` after the checkpoint")?;
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("back").context("the background job after the restart")?;
        answers(&mut computation, 10 * n + 2).context("after the restart")?;
        ensure!(stopped(&computation)?, "the restart left it running");
        computation.type_in(b"fg %2\n")?;
        computation.wait_line("front").context("`fg` after the restart")?;
    }
    Ok(())
}

/// What is written to the command's standard input reaches the program: after launch, and after a restart.
fn standard_input() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let script = "$|=1; print \"ready\\n\"; while (<STDIN>) { print \"got $_\" }";
    computation.launch(&["/usr/bin/perl".into(), "-e".into(), script.into()])?;
    computation.wait_line("ready")?;
    computation.type_in(b"one\n")?;
    computation.wait_line("got one")?;
    computation.checkpoint(&[])?;
    computation.type_in(b"two\n")?;
    computation.wait_line("got two")?;
    computation.sigkill_all()?;
    computation.restart(None)?;
    computation.type_in(b"three\n")?;
    let line = computation.wait_line("got")?;
    ensure!(line == "got three", "after the restart: {line}");
    Ok(())
}

/// `status --json` tells the truth, and `kill` ends all.
fn status_and_kill() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program("counter")?)?;
    computation.wait_line("beat")?;
    let status = computation.status()?;
    ensure!(status.state == "running" && status.processes == 1 && status.generation.is_none(), "{status:?}");
    let checkpoint = computation.checkpoint(&[])?;
    ensure!(checkpoint.generation == 1, "the first generation is {}", checkpoint.generation);
    let status = computation.status()?;
    ensure!(status.generation == Some(1) && status.error.is_none() && status.threads == 1, "{status:?}");
    let figures = status.last_checkpoint.context("no figures")?;
    for phase in ["suspend", "quiesce", "snapshot", "resume", "save", "commit", "stopped", "total"] {
        ensure!(figures[phase].as_f64().is_some_and(|ms| (0.0..60_000.0).contains(&ms)), "{phase}: {figures}");
    }
    let (killed, _, error) = computation.run("kill", &[])?;
    ensure!(killed.success(), "kill: {error}");
    let status = computation.wait_exit()?;
    ensure!(!status.success(), "killed, but {status}");
    let (status, _, error) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && !error.is_empty(), "a checkpoint of nothing: {status} {error}");
    Ok(())
}

/// Computations do not meet: each has its folder, and nothing else is configured. One killed leaves the others.
fn side_by_side() -> Result<()> {
    let mut all = (0..4).map(|_| Computation::new(Mode::Pipe)).collect::<Result<Vec<_>>>()?;
    for computation in &mut all {
        computation.launch(&program("counter")?)?;
    }
    for computation in &mut all {
        computation.wait_line("beat")?;
        computation.checkpoint(&[])?;
    }
    all[1].sigkill_all()?;
    all[2].sigkill_all()?;
    all[2].restart(None)?;
    all[1].restart(None)?;
    for computation in &mut all {
        computation.wait_new_line("beat")?;
        computation.checkpoint(&[])?;
        computation.finish()?;
    }
    Ok(())
}

/// Each generation restarts, the newest by default.
fn older_generation() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program("counter")?)?;
    let mut at = Vec::new();
    for _ in 0..3 {
        for _ in 0..4 {
            computation.wait_new_line("beat")?;
        }
        let generation = computation.checkpoint(&[])?.generation;
        at.push((generation, number(&computation.wait_new_line("beat")?)?));
    }
    for (generation, before) in [at[0], at[2], at[1]] {
        computation.sigkill_all()?;
        computation.restart(Some(generation))?;
        let after = number(&computation.wait_line("beat")?)?;
        ensure!(
            (before - 3..=before + 1).contains(&after),
            "generation {generation} was at {before}, its restart at {after}"
        );
    }
    let (status, _, error) = computation.run("restart", &["--generation", "99"])?;
    ensure!(!status.success() && error.contains("99"), "generation 99 is not there, but: {status} {error}");
    computation.finish()
}

fn number(line: &str) -> Result<i64> {
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).with_context(|| format!("no number: {line}"))
}

/// A copy of the counter in the test's folder.
fn copied(computation: &Computation) -> Result<String> {
    let copy = computation.folder().join("the-program");
    fs::copy(&program("counter")?[0], &copy)?;
    Ok(copy.to_string_lossy().into_owned())
}

/// The executable is gone when the checkpoint is taken.
fn deleted_program() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let copy = copied(&computation)?;
    computation.launch(std::slice::from_ref(&copy))?;
    computation.wait_line("beat")?;
    fs::remove_file(&copy)?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    computation.restart(None)?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    computation.finish()
}

/// Waits until the coordinator of the computation has copied what is mapped at `path`.
pub fn wait_stored(computation: &Computation, path: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let about = fs::metadata(path)?;
    let start = format!("{}-{}-", about.len(), about.mtime() * 1_000_000_000 + about.mtime_nsec());
    let since = std::time::Instant::now();
    loop {
        let entries = fs::read_dir(computation.dir().join("files")).into_iter().flatten().flatten();
        let mut names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        if names.any(|n| n.starts_with(&start) && !n.ends_with(".new")) {
            return Ok(());
        }
        ensure!(since.elapsed() < patience(), "{path} does not come into the file store");
        std::thread::yield_now();
    }
}

/// The executable and a library that it has loaded are other files when the restart comes, or gone: the copies in
/// the checkpoint folder are used, again for a restart of the restarted; without copies, the restart says what is wrong.
fn replaced_program() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let copy = computation.folder().join("the-program").to_string_lossy().into_owned();
    fs::copy("/usr/bin/perl", &copy)?;
    let library = computation.folder().join("libreplaced.so").to_string_lossy().into_owned();
    let libm = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6"].into_iter().find(|p| Path::new(p).exists());
    fs::copy(libm.context("no libm.so.6")?, &library)?;
    let script = "$|=1; DynaLoader::dl_load_file($ARGV[0]) or die; while (1) { print \"beat\\n\"; select undef,undef,undef,0.02 }";
    computation.launch(&[copy.clone(), "-MDynaLoader".into(), "-e".into(), script.into(), library.clone()])?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    wait_stored(&computation, &copy)?;
    wait_stored(&computation, &library)?;
    computation.sigkill_all()?;
    fs::remove_file(&library)?;
    fs::remove_file(&copy)?;
    fs::copy("/bin/true", &copy)?;
    for _ in 0..2 {
        computation.restart(None)?;
        computation.wait_line("beat").context("from the file store")?;
        let warned = computation.errors()?.tail(20);
        for path in [&copy, &library] {
            let lines = warned.lines().filter(|line| line.contains(path.as_str())).count();
            ensure!(lines <= 1, "{lines} lines about {path}: {warned}");
        }
        computation.checkpoint(&[])?;
        computation.wait_new_line("beat")?;
        computation.sigkill_all()?;
    }
    // The first generation, whose program is known by its old path.
    computation.restart(Some(1))?;
    computation.wait_line("beat").context("the first generation from the file store")?;
    let warned = computation.errors()?.tail(20);
    ensure!(warned.contains(&copy) && warned.contains(&library), "no warning: {warned}");
    computation.sigkill_all()?;
    fs::remove_dir_all(computation.dir().join("files"))?;
    let (status, out, error) = computation.run("restart", &["--generation", "1"])?;
    ensure!(
        !status.success() && error.contains("put the old file back") && !out.contains("beat"),
        "the store is gone, but: {status} {error}{out}"
    );
    Ok(())
}

/// gdb attaches to a restarted process, sees its symbols, and lets it go on.
fn gdb_attaches() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program("counter")?)?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    computation.restart(None)?;
    computation.wait_line("beat")?;
    // The program is the last of the tree: `slackwater restart` and the namespace's init come before it.
    let tree = slackwater_harness::tree(computation.pid()?);
    let pid = tree
        .iter()
        .copied()
        .find(|pid| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.to_string_lossy().contains("test-programs"))
        })
        .with_context(|| format!("no restarted program among {tree:?}"))?;
    let limit = patience().as_secs().to_string();
    let gdb = Command::new("timeout")
        .args([
            &limit,
            "gdb",
            "-nx",
            "-batch",
            "-ex",
            "bt",
            "-ex",
            "info threads",
            "-ex",
            "detach",
            "-p",
            &pid.to_string(),
        ])
        .stdin(std::process::Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&gdb.stdout);
    ensure!(
        gdb.status.success() && text.contains("main ("),
        "gdb: {} {text} {}",
        gdb.status,
        String::from_utf8_lossy(&gdb.stderr)
    );
    computation.wait_new_line("beat").context("after gdb let it go")?;
    computation.finish()
}

/// Whatever byte of an image is wrong, `restart` says so before it starts anything.
fn damaged_image() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program("counter")?)?;
    computation.wait_line("beat")?;
    let checkpoint = computation.checkpoint(&[])?;
    computation.sigkill_all()?;
    let image = fs::read_dir(&checkpoint.path)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .find(|p| p.extension().is_some_and(|e| e == "image"))
        .context("no image in the generation's folder")?;
    let sound = fs::read(&image)?;
    for i in 0..25_usize {
        let mut damaged = sound.clone();
        let at = i * 7919 * 101 % sound.len();
        if i % 5 == 4 {
            damaged.truncate(at);
        } else {
            damaged[at] ^= 1 << (i % 8);
        }
        fs::write(&image, &damaged)?;
        let (status, out, error) = computation.run("restart", &[])?;
        if status.success() || !error.contains("image") || out.contains("beat") {
            bail!("damaged at {at} of {}: {status}, says: {error}{out}", sound.len());
        }
    }
    fs::write(&image, &sound)?;
    computation.restart(None)?;
    computation.wait_line("beat").context("the sound image")?;
    computation.finish()
}

/// Two reservations of up to 1 TiB, of which a hundred pages are used.
fn sparse_costs_nothing() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program("sparse")?)?;
    computation.wait_line("beat")?;
    let checkpoint = computation.checkpoint(&[])?;
    let bytes: u64 = fs::read_dir(&checkpoint.path)?.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum();
    ensure!(bytes < 4 << 20, "the generation has {bytes} bytes");
    computation.finish()
}

/// Three processes share 16 MiB of memory that cannot be compressed: one of them saves it.
fn shared_once() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch(&program("shared")?)?;
    computation.wait_line("beat")?;
    let checkpoint = computation.checkpoint(&[])?;
    let bytes: u64 = fs::read_dir(&checkpoint.path)?.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum();
    ensure!((16 << 20..24 << 20).contains(&bytes), "the generation has {bytes} bytes");
    computation.finish()
}

/// `--interval` takes checkpoints by itself.
fn interval() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch_with(&["--interval", "0.2"], &program("counter")?)?;
    for _ in 0..40 {
        computation.wait_new_line("beat")?;
        if computation.status()?.generation.is_some_and(|g| g >= 3) {
            computation.sigkill_all()?;
            computation.restart(None)?;
            computation.wait_line("beat")?;
            return goes_on_by_itself(computation);
        }
    }
    bail!("no third generation in 40 beats of 50 ms, at an interval of 0.2 s")
}

/// A restart takes checkpoints as often as the launch did, and keeps as many.
fn goes_on_by_itself(mut computation: Computation) -> Result<()> {
    let newest = computation.status()?.generation.unwrap_or(0);
    for _ in 0..60 {
        computation.wait_new_line("beat")?;
        if computation.status()?.generation.is_some_and(|g| g >= newest + 3) {
            computation.finish()?;
            let kept = fs::read_dir(computation.dir())?.flatten();
            let kept = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("generation-")).count();
            ensure!(kept == 3, "{kept} generations are kept");
            return Ok(());
        }
    }
    bail!("no third generation in 60 beats of 50 ms after the restart")
}

/// The disk is full: that checkpoint fails, the program runs on, and the generation before restarts.
fn disk_full() -> Result<()> {
    ensure!(in_guest(), "this case mounts");
    let mut computation = Computation::new(Mode::Pipe)?;
    let dir = computation.dir();
    fs::create_dir(&dir)?;
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]).arg(&dir).status()?;
    ensure!(mount.success(), "mount: {mount}");
    // Copies of libraries would take as much room as this disk has.
    computation.launch_with(&["--no-file-store"], &program("counter")?)?;
    computation.wait_line("beat")?;
    computation.checkpoint(&[])?;
    let filler = dir.join("filler");
    let full = fs::write(&filler, vec![1; 8 << 20]);
    ensure!(full.is_err(), "4 MiB hold 8");
    let (status, _, error) = computation.run("checkpoint", &[])?;
    ensure!(!status.success() && error.contains("space"), "the disk is full, but: {status} {error}");
    computation.wait_new_line("beat").context("the program runs on")?;
    ensure!(computation.status()?.generation == Some(1), "{:?}", computation.status()?);
    computation.sigkill_all()?;
    computation.restart(None)?;
    computation.wait_line("beat").context("the generation before")?;
    fs::remove_file(&filler)?;
    computation.checkpoint(&[]).context("there is room again")?;
    computation.finish()?;
    // The coordinator ends with its last process; until then the folder is in use.
    ensure!(Command::new("umount").arg("-l").arg(&dir).status()?.success(), "umount");
    Ok(())
}

/// `--signal 32` is shared with pthread_cancel; another one is refused.
fn other_signal() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    computation.launch_with(&["--signal", "32"], &program("cancel")?)?;
    computation.wait_line("beat")?;
    for _ in 0..4 {
        computation.checkpoint(&[])?;
        for _ in 0..6 {
            computation.wait_new_line("beat")?;
        }
        computation.sigkill_all()?;
        computation.restart(None)?;
        computation.wait_line("beat")?;
    }
    computation.finish()
}
