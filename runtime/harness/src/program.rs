//! Test programs: source files with their scenario in their head.
//!
//! A line `//# Key: value` (in any comment syntax: only the part from `//#` on counts) among the first 30 says how a
//! program is built and played:
//!
//! | key | value |
//! | --- | --- |
//! | `Args` | variants, separated by `;`: each is an argument list and a test of its own |
//! | `Scenario` | list of `go-on`, `restart`, `stop-restart`, `restart-twice`; see [`crate::scenario`] |
//! | `Checkpoints` | how many, in each scenario |
//! | `Modes` | list of `pipe`, `pty`, `user` |
//! | `Where` | list of `host`, `guest` |
//! | `Cflags` | for the compiler |
//! | `Compilers` | list of compilers, each a test of its own |
//! | `Needs` | list: a flag of /proc/cpuinfo (`cpu:avx512f`), a program (`program:java`), or a file (`file:/path`) |
//! | `Preload` | a library to preload, as the user would |
//! | `Memory` | the guest's memory in MiB |
//! | `Level` | `quick`, `normal` or `full`: in which runs of the suite it takes part |
//!
//! A program prints `ready`, then a line `beat N` whenever it went once through its checks; when the file named by
//! `$SW_STOP` appears it makes its last checks, prints `PASS` and exits with 0. Anything that is wrong: a line on
//! standard error, and exit status 1.
use crate::kit;
use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One variant of a test program.
#[derive(Clone, Debug)]
pub struct Program {
    /// File name without extension, with the compiler and the arguments if there are several.
    pub name: String,
    /// The source.
    pub source: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// Scenarios.
    pub scenarios: Vec<String>,
    /// Checkpoints in each.
    pub checkpoints: u32,
    /// Modes.
    pub modes: Vec<String>,
    /// Places.
    pub places: Vec<String>,
    /// Compiler flags.
    pub cflags: Vec<String>,
    /// Compiler.
    pub compiler: String,
    /// Needs.
    pub needs: Vec<String>,
    /// Library to preload.
    pub preload: Option<String>,
    /// Memory of the guest, MiB.
    pub memory: u32,
    /// Level.
    pub level: String,
}

impl Program {
    /// All variants of all programs in `folder`, by name.
    ///
    /// # Errors
    /// A file that cannot be read, or a directive that nobody knows.
    pub fn all(folder: &Path) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("no test programs in {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e != "h") {
                all.extend(Self::variants(&path)?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn variants(path: &Path) -> Result<Vec<Self>> {
        let text = fs::read_to_string(path)?;
        let stem = path.file_stem().context("a program without a name")?.to_string_lossy().into_owned();
        let list = |value: &str| value.split(',').map(|w| w.trim().to_owned()).collect::<Vec<_>>();
        let mut base = Self {
            name: stem,
            source: path.to_owned(),
            args: Vec::new(),
            scenarios: vec!["go-on".into(), "restart".into()],
            checkpoints: 3,
            modes: vec!["pipe".into()],
            places: vec!["host".into(), "guest".into()],
            cflags: Vec::new(),
            compiler: "gcc".into(),
            needs: Vec::new(),
            preload: None,
            memory: 1024,
            level: "normal".into(),
        };
        let (mut args, mut compilers) = (Vec::new(), Vec::new());
        for line in text.lines().take(30) {
            let Some((_, directive)) = line.split_once("//# ") else { continue };
            let (key, value) = directive.split_once(": ").with_context(|| format!("{}: {line}", path.display()))?;
            let value = value.trim();
            match key {
                "Args" => args = value.split(';').map(|w| w.trim().to_owned()).collect(),
                "Scenario" => base.scenarios = list(value),
                "Checkpoints" => {
                    base.checkpoints = value.parse().with_context(|| format!("{}: {line}", path.display()))?
                }
                "Modes" => base.modes = list(value),
                "Where" => base.places = list(value),
                "Cflags" => base.cflags = value.split_whitespace().map(str::to_owned).collect(),
                "Compilers" => compilers = list(value),
                "Needs" => base.needs = list(value),
                "Preload" => base.preload = Some(value.to_owned()),
                "Memory" => base.memory = value.parse().with_context(|| format!("{}: {line}", path.display()))?,
                "Level" => base.level = value.to_owned(),
                _ => bail!("{}: unknown directive `{key}`", path.display()),
            }
        }
        let mut all = vec![base];
        if !compilers.is_empty() {
            all = spread(&all, &compilers, |p, c| p.compiler = c.to_owned());
        }
        if !args.is_empty() {
            all = spread(&all, &args, |p, a| p.args = a.split_whitespace().map(str::to_owned).collect());
        }
        Ok(all)
    }

    /// Why this program cannot run here, if so.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        self.needs.iter().find(|need| !has(need)).cloned()
    }

    /// The command that runs it: built, if need be, into a cache under `target/` that is keyed by all that goes into it.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn command(&self) -> Result<Vec<String>> {
        let source = self.source.to_str().context("a path that is not UTF-8")?.to_owned();
        let mut command = match self.source.extension().and_then(|e| e.to_str()) {
            Some("c") => vec![self.build(&["-O2", "-g", "-pthread", "-Wall"], &["-o"], "-lm")?],
            Some("f90") => vec![self.build(&["-O2", "-g", "-Wall"], &["-o"], "")?],
            Some("java") => {
                let out = self.build(&[], &["-d"], "")?;
                let class = self.source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                vec!["java".into(), "-Xmx256m".into(), "-cp".into(), out, class]
            }
            Some("py") => vec!["/usr/bin/python3".into(), source],
            Some("pl") => vec!["/usr/bin/perl".into(), source],
            other => bail!("{source}: nobody knows how to run {other:?}"),
        };
        command.extend(self.args.iter().cloned());
        Ok(command)
    }

    fn build(&self, fixed: &[&str], out_flag: &[&str], last: &str) -> Result<String> {
        let compiler = if self.source.extension().is_some_and(|e| e == "java") { "javac" } else { &self.compiler };
        let version =
            Command::new(compiler).arg("--version").output().with_context(|| format!("no {compiler}"))?.stdout;
        let mut key = fs::read(&self.source)?;
        for entry in fs::read_dir(self.source.parent().context("no folder")?)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "h") {
                key.extend(fs::read(entry.path())?);
            }
        }
        key.extend_from_slice(&version);
        key.extend_from_slice(format!("{fixed:?}{:?}{compiler}{last}", self.cflags).as_bytes());
        let folder = kit::target().join("test-programs");
        let stem = self.source.file_stem().unwrap_or_default().to_string_lossy();
        let done = folder.join(format!("{stem}-{:016x}", xxhash_rust::xxh3::xxh3_64(&key)));
        if !done.exists() {
            fs::create_dir_all(&folder)?;
            let partial = tempfile::tempdir_in(&folder)?;
            let out = partial.path().join("out");
            let mut build = Command::new(compiler);
            build.args(fixed).args(&self.cflags).args(out_flag).arg(&out).arg(&self.source);
            if !last.is_empty() {
                build.arg(last);
            }
            let result = build.output().with_context(|| format!("cannot run {compiler}"))?;
            if !result.status.success() {
                bail!("{}: {compiler} says:\n{}", self.source.display(), String::from_utf8_lossy(&result.stderr));
            }
            // Another test may have been quicker with the same, and run it by now: its file must not change.
            match renameat_with(CWD, &out, CWD, &done, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", done.display())),
            }
        }
        Ok(done.to_str().context("a path that is not UTF-8")?.to_owned())
    }
}

fn spread(programs: &[Program], values: &[String], set: impl Fn(&mut Program, &str)) -> Vec<Program> {
    let mut all = Vec::new();
    for program in programs {
        for value in values {
            let mut variant = program.clone();
            set(&mut variant, value);
            if values.len() > 1 {
                variant.name = format!("{}-{}", variant.name, value.replace(' ', "-"));
            }
            all.push(variant);
        }
    }
    all
}

fn has(need: &str) -> bool {
    match need.split_once(':') {
        Some(("cpu", flag)) => {
            let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            text.lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.split_whitespace().any(|w| w == flag))
        }
        Some(("program", name)) => std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).exists())),
        Some(("file", path)) => Path::new(path).exists(),
        _ => false,
    }
}
