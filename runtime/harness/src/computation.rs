//! One computation: a folder and what runs in it.
mod ends;
mod talk;

use crate::kit::{self, Kit};
use crate::output::Output;
use crate::status::{Checkpoint, Status};
use crate::{patience, process};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

/// The user and group that nobody is: the unprivileged user of the tests.
const NOBODY: u32 = 65534;
/// How often a program's life is followed line by line in messages.
const TAIL: usize = 15;
/// The same of what it says of errors, at either end.
const ERRORS: usize = 20;

/// How the standard streams are connected, and who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Pipes, as the caller.
    Pipe,
    /// A terminal of its own, as the caller.
    Pty,
    /// Pipes, as a user without any privilege.
    User,
}

impl std::str::FromStr for Mode {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "pipe" => Self::Pipe,
            "pty" => Self::Pty,
            "user" => Self::User,
            _ => bail!("no such mode: {text}"),
        })
    }
}

/// A program that runs, under `slackwater` or natively.
struct Running {
    child: Child,
    out: Output,
    err: Output,
    /// The next line of `out` that nobody has waited for yet.
    seen: usize,
    /// The next byte of `out` that nobody has waited for yet; see [`Computation::wait_text`].
    read: usize,
    /// The terminal's master, which must stay open.
    terminal: Option<fs::File>,
}

/// A computation, its folder, and how it is run. Whatever still runs when it is dropped is killed.
pub struct Computation {
    folder: PathBuf,
    /// Removes the folder, unless somebody else will.
    temporary: Option<tempfile::TempDir>,
    kit: Option<Kit>,
    /// Removes the copy of the kit.
    _public: Option<tempfile::TempDir>,
    mode: Mode,
    env: Vec<(String, String)>,
    /// Words before the command that starts the program.
    under: Vec<String>,
    running: Option<Running>,
    /// Standard error of what ended last.
    ended: Output,
    /// What runs was started by `slackwater restart`.
    restarted: bool,
}

impl Computation {
    /// An empty folder, with `slackwater` from `target/release`.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn new(mode: Mode) -> Result<Self> {
        let mut computation = Self::native(mode)?;
        let kit = Kit::find()?;
        computation.kit = Some(match mode {
            Mode::User => kit.copied(&computation.folder.join("kit"))?,
            _ if kit.is_public() => kit,
            _ => {
                let everybody = fs::Permissions::from_mode(0o755);
                let copy = tempfile::Builder::new().prefix("slackwater-kit-").permissions(everybody).tempdir()?;
                let kit = kit.copied(copy.path())?;
                computation._public = Some(copy);
                kit
            }
        });
        Ok(computation)
    }

    /// The same without `slackwater`: programs run as they are.
    ///
    /// # Errors
    /// When no temporary folder can be made.
    pub fn native(mode: Mode) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("slackwater-test-").tempdir()?;
        Self::bare(temporary.path().to_owned(), Some(temporary), mode)
    }

    /// In a folder that lasts: what one machine has left there, another goes on with.
    ///
    /// # Errors
    /// When `slackwater` has not been built.
    pub fn lasting(folder: &Path, mode: Mode) -> Result<Self> {
        let mut computation = Self::bare(folder.to_owned(), None, mode)?;
        computation.kit = Some(Kit::find()?);
        Ok(computation)
    }

    fn bare(folder: PathBuf, temporary: Option<tempfile::TempDir>, mode: Mode) -> Result<Self> {
        if mode == Mode::User && rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY))?;
        }
        let stop = folder.join("stop");
        let env = vec![("SW_STOP".to_owned(), stop.to_string_lossy().into_owned())];
        let ended = Output::default();
        let (under, kit, running) = (Vec::new(), None, None);
        Ok(Self { folder, temporary, kit, _public: None, mode, env, under, running, restarted: false, ended })
    }

    /// Sets an environment variable of the program.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// From now on, what starts the program is run by this command (`unshare ...`); nothing: by itself.
    pub fn under(&mut self, words: &[&str]) {
        self.under = words.iter().map(|&word| word.to_owned()).collect();
    }

    /// The test's own folder: scratch files may go here.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The checkpoint folder (`--dir`).
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.folder.join("computation")
    }

    /// Starts `program` under `slackwater launch`, or as it is if this is a native run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, program: &[String]) -> Result<()> {
        self.launch_with(&[], program)
    }

    /// As [`Computation::launch`], with options for `slackwater launch`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_with(&mut self, options: &[&str], program: &[String]) -> Result<()> {
        let mut words = Vec::new();
        if self.kit.is_some() {
            words.extend(self.slackwater("launch")?);
            words.extend(options.iter().map(|o| (*o).to_owned()));
        }
        let mut program = program.to_vec();
        if self.mode == Mode::User
            && let Some(first) = program.first_mut()
            && first.starts_with(kit::target().to_string_lossy().as_ref())
        {
            let copy = self.folder.join("program");
            kit::install(Path::new(first.as_str()), &copy)?;
            *first = copy.to_string_lossy().into_owned();
        }
        words.extend(program);
        self.restarted = false;
        self.start(&words)
    }

    /// `slackwater restart` of the newest generation, or of `generation`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, generation: Option<u64>) -> Result<()> {
        let mut words = self.slackwater("restart")?;
        if let Some(number) = generation {
            words.extend(["--generation".to_owned(), number.to_string()]);
        }
        self.restarted = true;
        self.start(&words)
    }

    /// As [`Computation::restart`] of the newest generation, with options for `slackwater restart`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_with(&mut self, options: &[&str]) -> Result<()> {
        let mut words = self.slackwater("restart")?;
        words.extend(options.iter().map(|o| (*o).to_owned()));
        self.restarted = true;
        self.start(&words)
    }

    /// `slackwater checkpoint`; returns when the generation is committed.
    ///
    /// # Errors
    /// What it says when it fails; or that it hangs, with a picture of the program's threads.
    pub fn checkpoint(&mut self, options: &[&str]) -> Result<Checkpoint> {
        let mut words = self.slackwater("checkpoint")?;
        words.extend(options.iter().map(|o| (*o).to_owned()));
        let (status, out, err) = self.tool(&words)?;
        if !status.success() {
            bail!("{}", self.explain(&format!("`slackwater checkpoint` ended with {status}: {err}")));
        }
        let path = PathBuf::from(out.lines().last().unwrap_or_default().trim());
        let generation =
            path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("generation-")?.parse().ok());
        match generation {
            Some(generation) if path.is_dir() => Ok(Checkpoint { path, generation }),
            _ => bail!("`slackwater checkpoint` printed no generation's folder, but: {out}"),
        }
    }

    /// `slackwater status --json`.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn status(&self) -> Result<Status> {
        let mut words = self.slackwater("status")?;
        words.push("--json".into());
        let (status, out, err) = self.tool(&words)?;
        ensure!(status.success(), "`slackwater status` ended with {status}: {err}");
        serde_json::from_str(&out).with_context(|| format!("`slackwater status --json` printed: {out}"))
    }

    /// Runs `slackwater COMMAND --dir D OPTIONS...` to its end.
    ///
    /// # Errors
    /// When it hangs.
    pub fn run(&self, command: &str, options: &[&str]) -> Result<(ExitStatus, String, String)> {
        let mut words = self.slackwater(command)?;
        words.extend(options.iter().map(|o| (*o).to_owned()));
        self.tool(&words)
    }

    /// The host's pid of the process that was launched, or of `slackwater restart`.
    ///
    /// # Errors
    /// When nothing runs.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.running()?.child.id())
    }

    /// Checkpoint, SIGKILL, restart.
    ///
    /// # Errors
    /// What failed.
    pub fn cycle(&mut self) -> Result<()> {
        self.checkpoint(&[])?;
        self.sigkill_all()?;
        self.restart(None)
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("nothing runs")
    }

    fn slackwater(&self, command: &str) -> Result<Vec<String>> {
        let kit = self.kit.as_ref().context("a native run has no slackwater")?;
        let words = [&kit.slackwater(), Path::new(command), Path::new("--dir"), &self.dir()];
        Ok(words.map(|w| w.to_string_lossy().into_owned()).to_vec())
    }

    /// `words` as the mode's user, with the environment of the test.
    fn words(&self, words: &[String]) -> Vec<String> {
        let mut all = Vec::new();
        if self.mode == Mode::User && rustix::process::geteuid().is_root() {
            all.extend(
                ["setpriv", &format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]
                    .map(str::to_owned),
            );
        }
        all.extend_from_slice(words);
        all
    }

    fn start(&mut self, words: &[String]) -> Result<()> {
        ensure!(self.running.is_none(), "it runs already");
        let words = self.words(&[&self.under, words].concat());
        let (program, args) = words.split_first().context("no command")?;
        let env = self.env.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let (child, out, err, terminal) = if self.mode == Mode::Pty {
            let (pty, pts) = pty_process::blocking::open().context("no pty")?;
            pty.resize(pty_process::Size::new(24, 500))?;
            let child = pty_process::blocking::Command::new(program)
                .args(args)
                .envs(env)
                .current_dir(&self.folder)
                .spawn(pts)?;
            let reader = fs::File::from(rustix::io::dup(&pty)?);
            let master = fs::File::from(rustix::io::dup(&pty)?);
            (child, Output::read(reader), Output::default(), Some(master))
        } else {
            let mut command = Command::new(program);
            command.args(args).envs(env).current_dir(&self.folder);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
            let out = Output::read(child.stdout.take().context("no pipe")?);
            let err = Output::read(child.stderr.take().context("no pipe")?);
            (child, out, err, None)
        };
        self.running = Some(Running { child, out, err, seen: 0, read: 0, terminal });
        Ok(())
    }

    /// Runs a command of `slackwater` that ends by itself.
    fn tool(&self, words: &[String]) -> Result<(ExitStatus, String, String)> {
        let words = self.words(words);
        let (program, args) = words.split_first().context("no command")?;
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let (mut out, mut err) = (child.stdout.take().context("no pipe")?, child.stderr.take().context("no pipe")?);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            err.read_to_string(&mut text).map(|_| text)
        });
        let printed = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).map(|_| text)
        });
        let Some(status) = ends::wait(&mut child)? else {
            let picture = self.explain(&format!("`{}` hangs", words.join(" ")));
            let _ = process::kill_tree(child.id(), patience());
            let _ = child.wait();
            bail!("{picture}");
        };
        let text = |t: std::thread::JoinHandle<std::io::Result<String>>| -> Result<String> {
            t.join().ok().context("a reader died")?.context("its output is not text")
        };
        Ok((status, text(printed)?, text(reader)?))
    }

    /// `what`, and all that helps to understand it.
    #[must_use]
    pub fn explain(&self, what: &str) -> String {
        let mut text = format!("{what}\n");
        if let Some(running) = &self.running {
            text +=
                &format!("--- its output\n{}\n--- its errors\n{}\n", running.out.tail(TAIL), running.err.ends(ERRORS));
            text += &format!("--- its processes\n{}", process::describe(running.child.id()));
        }
        if let Ok(log) = fs::read_to_string(self.dir().join("log")) {
            let lines: Vec<&str> = log.lines().collect();
            text += &format!("--- the computation's log\n{}\n", lines[lines.len().saturating_sub(TAIL)..].join("\n"));
        }
        text
    }
}

impl Drop for Computation {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = process::kill_tree(running.child.id(), patience());
            let _ = running.child.wait();
        }
        if self.temporary.is_none() {
            return;
        }
        // Its coordinator may be about to copy one more file into it.
        let since = Instant::now();
        while let Err(error) = fs::remove_dir_all(self.dir())
            && error.kind() == std::io::ErrorKind::DirectoryNotEmpty
            && since.elapsed() < patience()
        {}
    }
}
