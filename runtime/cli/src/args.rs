//! The command line.
use clap::{Parser, Subcommand};
use slackwater_coordinator::{Codec, Options, folder};
use slackwater_protocol::names;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

/// Checkpoint and restart of distributed programs that talk RDMA: unmodified, unprivileged.
#[derive(Parser)]
#[command(name = "slackwater", version, subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a program so that it, and all it starts, can be checkpointed
    ///
    /// The program runs in the foreground with this terminal, and its exit status is the command's.
    Launch(Launch),
    /// Save the computation; prints the folder of the committed generation
    Checkpoint {
        #[command(flatten)]
        dir: Dir,
        /// End the computation once it is saved; its processes do not run on after the cut
        #[arg(long)]
        kill: bool,
        /// Print path and figures as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show how the computation stands
    Status {
        #[command(flatten)]
        dir: Dir,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// End all processes of the computation (SIGKILL); its generations stay
    Kill {
        #[command(flatten)]
        dir: Dir,
    },
    /// Bring a saved computation back
    ///
    /// It runs in the foreground with this terminal, and the exit status of its first process is the command's.
    Restart(Restart),
    /// Run a coordinator in the foreground (launch and restart start one by themselves)
    Coordinator {
        #[command(flatten)]
        dir: Dir,
        #[command(flatten)]
        options: CoordinatorOptions,
        /// Take over the folder, lock and socket from the parent
        #[arg(long, hide = true)]
        daemon: bool,
    },
    /// Does nothing, in a process into which libraries are preloaded as into a program: `launch` tries plugins by it
    #[command(hide = true)]
    TryPlugins,
    /// Show what an image holds, and verify it
    Inspect {
        /// Image file in a generation's folder
        image: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Do not read all of it to verify its checksums
        #[arg(long)]
        no_verify: bool,
    },
    /// Find out whether this user can checkpoint and restart on this machine, and what to change
    ///
    /// A shell is launched, checkpointed, killed and restarted on the disk of DIR; nothing stays behind.
    Doctor {
        #[command(flatten)]
        dir: Dir,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// A program of which is asked, too, whether it can be launched
        program: Option<OsString>,
    },
}

/// The handle of a computation.
#[derive(clap::Args)]
pub struct Dir {
    /// The computation's folder: address, secret, log, generations, copies of files
    #[arg(long, env = names::ENV_DIR, default_value = "slackwater", value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(clap::Args)]
pub struct Launch {
    #[command(flatten)]
    pub dir: Dir,
    #[command(flatten)]
    pub options: CoordinatorOptions,
    /// The signal that stops the program's threads: 33, or 32; both are glibc's own, which no program can see
    #[arg(long, value_name = "N", default_value = "33", value_parser = signal, hide_short_help = true)]
    pub signal: u8,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(clap::Args)]
pub struct Restart {
    #[command(flatten)]
    pub dir: Dir,
    #[command(flatten)]
    pub options: CoordinatorOptions,
    /// Which generation [default: the newest]
    #[arg(long, value_name = "N")]
    pub generation: Option<u64>,
    /// A file, folder or program that is elsewhere now; may be repeated, the first that fits is taken
    #[arg(long = "map-path", value_name = "OLD=NEW", value_parser = mapped)]
    pub map_path: Vec<(PathBuf, PathBuf)>,
    /// A variable that is to have another value in the environments of the restarted processes; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// Files that were open and have changed since: keep them, restore what the image has of them, or fail
    #[arg(long, default_value = "keep", value_parser = ["keep", "restore", "fail"])]
    pub files: String,
    /// Connections whose other end is outside the computation: reset, they come back broken, or fail, they stop the restart
    #[arg(long, default_value = "reset", value_parser = ["reset", "fail"])]
    pub external: String,
    /// What programs are told of sockets that cannot have their addresses here: the ones that they know, or the new ones
    #[arg(long, default_value = "known", value_parser = ["known", "new"])]
    pub addresses: String,
}

/// How checkpoints are taken.
#[derive(clap::Args)]
pub struct CoordinatorOptions {
    /// Take a checkpoint each so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
    /// Keep only the newest K generations [default: all; 3 with --interval]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Write images while the program is stopped, instead of from a copy-on-write child
    #[arg(long)]
    sync: bool,
    /// How images are compressed [default: lz4]
    #[arg(long, value_parser = ["raw", "lz4", "zstd"])]
    codec: Option<String>,
    /// Preload a plugin (a shared library) into each process, with options of its own; may be repeated
    #[arg(long = "plugin", value_name = "PATH[,KEY=VALUE]...")]
    pub plugins: Vec<PathBuf>,
    /// How long stopping all processes may take before the checkpoint counts as failed [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, hide_short_help = true)]
    patience: Option<Duration>,
    /// Do not copy executables and libraries into the checkpoint folder: they must then stay unchanged for a restart
    #[arg(long)]
    no_file_store: bool,
    /// The process for which the coordinator is started
    #[arg(long, hide = true, value_parser = expected, value_name = "TOKEN:PID")]
    expect: Option<(u64, i32)>,
}

/// What a coordinator was told before.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Noted {
    #[command(flatten)]
    options: CoordinatorOptions,
}

impl CoordinatorOptions {
    /// A restart works as the coordinator before it did, where it is told nothing else. Words that this version does not know
    /// count for nothing, all of them.
    pub fn or_noted(self, dir: &Path) -> Self {
        let Ok(Noted { options: noted }) = Noted::try_parse_from(folder::noted_options(dir)) else { return self };
        Self {
            interval: self.interval.or(noted.interval),
            keep: self.keep.or(noted.keep),
            sync: self.sync || noted.sync,
            codec: self.codec.or(noted.codec),
            plugins: if self.plugins.is_empty() { noted.plugins } else { self.plugins },
            patience: self.patience.or(noted.patience),
            no_file_store: self.no_file_store || noted.no_file_store,
            expect: self.expect,
        }
    }

    /// For the coordinator.
    pub fn into_options(self) -> Options {
        Options {
            interval: self.interval,
            // Unattended, and without a bound, checkpoints fill any disk.
            keep: self.keep.or(self.interval.map(|_| 3)),
            sync: self.sync,
            codec: self.codec.as_deref().and_then(Codec::from_name).unwrap_or_default(),
            plugins: self.plugins,
            patience: self.patience.unwrap_or(Options::default().patience),
            file_store: !self.no_file_store,
            expect: self.expect,
        }
    }
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.into()),
        _ => Err("must be NAME=VALUE".into()),
    }
}

fn mapped(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => Ok((old.into(), new.into())),
        _ => Err("not of the form OLD=NEW with two absolute paths".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than 0 seconds".into()),
    }
}

fn signal(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(number @ (32 | 33)) => Ok(number),
        _ => Err("only 32 and 33 can be shared with any program: glibc keeps them (SIGCANCEL, SIGSETXID) out of each mask, \
            sigaction, sigwait and signalfd, and hands on its own; any other could be blocked, waited for or taken over by the \
            program"
            .into()),
    }
}

fn expected(text: &str) -> Result<(u64, i32), String> {
    let parse = |(token, pid): (&str, &str)| Some((u64::from_str_radix(token, 16).ok()?, pid.parse().ok()?));
    text.split_once(':').and_then(parse).ok_or_else(|| "not of the form TOKEN:PID".into())
}
