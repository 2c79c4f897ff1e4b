//! `guest`: one command in a User-Mode Linux kernel of our own, with soft-RoCE.
//!
//! The guest sees the host's root read-only under a throw-away overlay, so every program of the host, freshly built ones
//! too, is there; user code runs at native speed on one CPU, as root of the guest. Host and guest speak through a
//! control folder (command, environment, status) and two serial lines (output, errors). Each run has its own folder, so
//! guests run side by side. Rules: whatever ends this program ends the guest; a wait is bounded by the time limit.
use crate::{image, kernel, run};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use command_fds::{CommandFdExt as _, FdMapping};
use std::fs::{self, File};
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Status of a run that hit its time limit, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;
/// Status when the guest did not boot or died before it gave a status.
pub const NO_GUEST: u8 = 125;
/// The descriptors of the guest's serial lines, inside the kernel's process.
const OUT: i32 = 3;
const ERR: i32 = 4;
/// The descriptor of the link to another guest.
const LINK: i32 = 5;

/// Where the guest has file systems of its own.
const HIDDEN: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// The driver behind the guest's RDMA device.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Driver {
    /// Soft-RoCE.
    Rxe,
    /// Soft-iWARP.
    Siw,
    /// No device.
    None,
}

/// `guest`'s options.
#[derive(Args, Clone)]
pub struct Options {
    /// Number of the node, 1 to 254: its addresses are 10.77.0.N and fd77::N.
    #[arg(short = 'i', long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=254))]
    pub node: u8,
    /// Limit in seconds; then the guest is ended, with status 124.
    #[arg(short = 't', long, default_value_t = 300)]
    pub time: u64,
    /// Folder of the host that is writable in the guest, under the same path (may be repeated).
    #[arg(short = 'w', long)]
    pub writable: Vec<PathBuf>,
    /// Memory in MiB.
    #[arg(short = 'm', long, default_value_t = 1024)]
    pub memory: u32,
    /// The RDMA device's driver.
    #[arg(short = 'r', long, value_enum, default_value = "rxe")]
    pub driver: Driver,
    /// Environment variable to pass on (may be repeated).
    #[arg(short = 'e', long)]
    pub env: Vec<String>,
    /// Print the kernel's log at the end.
    #[arg(short = 'v', long)]
    pub verbose: bool,
    /// Boot a second guest, node N+1, linked to the first, and run this shell line there.
    #[arg(long, value_name = "LINE")]
    pub peer: Option<String>,
    /// The command. One word is a shell line, several are a program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

impl Options {
    /// What `cargo xtask guest -- LINE` stands for.
    pub fn shell(line: String) -> Self {
        Self {
            node: 1,
            time: 300,
            writable: Vec::new(),
            memory: 1024,
            driver: Driver::Rxe,
            env: Vec::new(),
            verbose: false,
            peer: None,
            command: vec![line],
        }
    }
}

/// Boots, runs, and gives the command's status.
pub fn run(options: &Options) -> Result<u8> {
    match &options.peer {
        Some(peer) => crate::nodes::run(options, peer),
        None => boot(options, None, Box::new(io::stdout()), Box::new(io::stderr())),
    }
}

/// As [`run`], for one guest, with its output copied to `out` and `err`. `link`: one end of a datagram socket pair whose
/// other end another guest has; the RDMA device then lies on it.
pub fn boot(
    options: &Options,
    link: Option<OwnedFd>,
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
) -> Result<u8> {
    let kernel = kernel::find()?;
    let control = tempfile::Builder::new().prefix("slackwater-guest-").tempdir().context("no control folder")?;
    let dir = control.path();
    prepare(dir, options)?;

    let (out_reader, out_writer) = io::pipe()?;
    let (err_reader, err_writer) = io::pipe()?;
    let console = File::create(dir.join("console"))?;
    let mut mappings = vec![map(out_writer.into(), OUT), map(err_writer.into(), ERR)];
    let linked = link.is_some();
    mappings.extend(link.map(|fd| map(fd, LINK)));

    // setpriv: when this program dies, however it dies, the kernel of the guest dies with it (and its processes with it).
    // taskset: on one CPU, system calls and faults of the guest are four times faster.
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", &(usize::from(options.node - 1) % cpus).to_string()]);
    command.arg(kernel).args(arguments(dir, options, linked)).env("TMPDIR", memory_folder(options.memory));
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    command.fd_mappings(mappings).map_err(|_| anyhow::anyhow!("descriptors of the guest collide"))?;
    let mut child = command.spawn().context("cannot start the guest's kernel")?;
    drop(command); // it holds the pipes' writing ends

    let pumps = [pump(out_reader, out), pump(err_reader, err)];
    let status = wait(&mut child, Duration::from_secs(options.time))?;
    for pump in pumps {
        let _ = pump.join();
    }
    let log = String::from_utf8_lossy(&fs::read(dir.join("console")).unwrap_or_default()).into_owned();
    if options.verbose {
        eprint!("{log}");
    }
    let Some(status) = status else {
        eprintln!("guest: time limit of {} s; the kernel's last words:\n{}", options.time, tail(&log, 5));
        return Ok(TIMED_OUT);
    };
    match fs::read_to_string(dir.join("rc")).ok().and_then(|rc| rc.trim().parse().ok()) {
        Some(code) => Ok(code),
        None => {
            eprintln!("guest: no status from the guest (its kernel: {status}); its last words:\n{}", tail(&log, 20));
            Ok(NO_GUEST)
        }
    }
}

fn map(parent_fd: OwnedFd, child_fd: i32) -> FdMapping {
    FdMapping { parent_fd, child_fd }
}

/// Fills the control folder.
fn prepare(dir: &Path, options: &Options) -> Result<()> {
    let command = match options.command.as_slice() {
        [line] => line.clone(),
        words => words.iter().map(|w| run::quote(w)).collect::<Vec<_>>().join(" "),
    };
    fs::write(dir.join("cmd"), command + "\n")?;
    fs::write(dir.join("cwd"), path_line(&std::env::current_dir()?)?)?;
    let mut env = String::new();
    for name in &options.env {
        if let Ok(value) = std::env::var(name) {
            env += &format!("export {name}={}\n", run::quote(&value));
        }
    }
    fs::write(dir.join("env"), env)?;
    let mut mounts = String::new();
    // The guest has a /tmp of its own; a clone that lies in the host's must be seen through it.
    let root = run::root();
    if HIDDEN.iter().any(|hidden| root.starts_with(hidden)) {
        mounts += &format!("ro {}", path_line(&root)?);
    }
    for folder in &options.writable {
        let folder = folder.canonicalize().with_context(|| format!("-w {}: no such folder", folder.display()))?;
        mounts += &format!("rw {}", path_line(&folder)?);
    }
    fs::write(dir.join("mounts"), mounts)?;
    image::write(&dir.join("initrd"))
}

fn path_line(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|t| !t.contains(['\n', ','])).with_context(|| {
        format!("{}: a path that the guest shall see must be UTF-8, without newlines and commas", path.display())
    })?;
    Ok(format!("{text}\n"))
}

/// The kernel's command line.
fn arguments(dir: &Path, options: &Options, linked: bool) -> Vec<String> {
    let dir = dir.display();
    let mut args = vec![
        format!("mem={}M", options.memory),
        format!("initrd={dir}/initrd"),
        format!("uml_dir={dir}/"),
        "umid=u".into(),
        "con0=null,fd:1".into(),
        "con=null".into(),
        "ssl=null".into(),
        format!("ssl0=null,fd:{OUT}"),
        format!("ssl1=null,fd:{ERR}"),
        "console=tty0".into(),
        "quiet".into(),
        "loglevel=5".into(),
        "panic=1".into(),
        format!("sw.dir={dir}"),
        format!("sw.id={}", options.node),
    ];
    let mhz = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("cpu MHz"))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    });
    args.extend(mhz.map(|mhz| format!("sw.mhz={mhz}")));
    match options.driver {
        Driver::None => args.push("sw.net=none".into()),
        driver => {
            args.push(format!("sw.rdma={}", if matches!(driver, Driver::Siw) { "siw" } else { "rxe" }));
            args.push(format!("sw.net={}", if linked { "vec0" } else { "pair" }));
        }
    }
    if linked {
        args.push(format!("vec0:transport=fd,fd={LINK},mac=02:00:00:00:00:{:02x},depth=128", options.node));
    }
    args
}

/// Where the guest's memory file lies: /dev/shm if it has room and lets programs be mapped, else the temporary folder.
fn memory_folder(mebibytes: u32) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let fits = rustix::fs::statvfs(shm).is_ok_and(|fs| {
        let noexec = fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC);
        !noexec && fs.f_bavail.saturating_mul(fs.f_frsize) >= u64::from(mebibytes) << 20
    });
    if fits { shm.to_owned() } else { std::env::temp_dir() }
}

/// Copies `from` to `to` until the guest closes it.
fn pump(mut from: PipeReader, mut to: Box<dyn Write + Send>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 16384];
        loop {
            match io::Read::read(&mut from, &mut buffer) {
                Ok(0) => return,
                // A reader that has gone away must not stop the guest.
                Ok(n) => drop(to.write_all(&buffer[..n]).and_then(|()| to.flush())),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

/// Waits for `child`, at most `limit`; None: it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let pid = rustix::process::Pid::from_child(child);
    let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).context("pidfd_open")?;
    let readable = |until: Instant| -> Result<bool> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout =
                rustix::event::Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() };
            let mut poll = [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&timeout)) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => bail!("poll on the guest's pidfd {}: {e}", ended.as_raw_fd()),
            }
        }
    };
    if readable(Instant::now() + limit)? {
        return Ok(Some(child.wait()?));
    }
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    if !readable(Instant::now() + Duration::from_secs(3))? {
        child.kill()?;
    }
    child.wait()?;
    Ok(None)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
