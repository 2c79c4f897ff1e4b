//! Peek, don't pull: a tracer from outside watches a checkpoint that goes on, and sees nothing sent, received or connected on the
//! program's sockets. (`untouched.c` asks the kernel's counters.)
use crate::Case;
use anyhow::{Context as _, Result, bail, ensure};
use slackwater_harness::{Computation, Mode};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ends of its sockets in which bytes are unread.
const UNREAD: usize = 14;
/// Calls that change a socket.
const CHANGES: [&str; 18] = [
    "read", "readv", "preadv", "preadv2", "recvmmsg", "write", "writev", "pwritev", "pwritev2", "sendto", "sendmsg",
    "sendmmsg", "sendfile", "splice", "connect", "accept", "accept4", "shutdown",
];

pub fn all() -> Vec<Case> {
    let case = Case::new("watched::strace", "normal", watched);
    let missing = (!Path::new("/usr/bin/strace").exists()).then(|| "no strace".into());
    vec![Case { places: vec!["host".into()], missing, ..case }]
}

fn watched() -> Result<()> {
    let mut computation = Computation::new(Mode::Pipe)?;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/servers/idle.py");
    computation.launch(&["python3".into(), program.into()])?;
    computation.wait_line("ready")?;
    let trace = computation.folder().join("trace");
    let pid = computation.pid()?.to_string();
    // A file for each thread: no call is cut in two by another's.
    let mut strace = Command::new("strace")
        .args(["-ff", "-yy", "-s0", "-o", &trace.display().to_string(), "-p", &pid])
        .stderr(Stdio::piped())
        .spawn()
        .context("strace")?;
    let checked = attached(&mut strace).and_then(|()| {
        computation.wait_new_line("beat")?;
        computation.checkpoint(&[])?;
        computation.wait_new_line("beat").map(drop)
    });
    // SIGINT: it lets go of whom it traces.
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), rustix::process::Signal::INT)?;
    strace.wait()?;
    checked?;
    let log = fs::read_to_string(computation.dir().join("log"))?;
    let coordinator = log.lines().find_map(|l| l.split_once(" listens on ")).context("no address in the log")?.1;
    let mut peeks = 0;
    for entry in fs::read_dir(computation.folder())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("trace.") {
            let text = fs::read_to_string(entry.path())?;
            for line in text.lines().filter(|line| !line.contains(coordinator)) {
                peeks += usize::from(peek(line)?);
            }
        }
    }
    ensure!(peeks >= UNREAD, "it was looked into {peeks} of {UNREAD} queues: the trace is not whole");
    computation.finish()
}

/// Waits until all threads are traced.
fn attached(strace: &mut Child) -> Result<()> {
    let mut errors = BufReader::new(strace.stderr.take().context("no output")?);
    let mut line = String::new();
    errors.read_line(&mut line)?;
    ensure!(line.contains("attached"), "strace says: {line}");
    // It writes on as threads come and go; nobody is to stand in its way.
    std::thread::spawn(move || errors.read_to_end(&mut Vec::new()));
    Ok(())
}

/// Does this line of a trace look into a socket? An error if it is a call that does more than look.
fn peek(line: &str) -> Result<bool> {
    let Some((call, rest)) = line.split_once('(') else { return Ok(false) };
    let on = rest.split([',', ')']).next().unwrap_or_default();
    if !["<TCP", "<UDP", "<UNIX"].iter().any(|kind| on.contains(kind)) {
        return Ok(false);
    }
    match call {
        "recvfrom" | "recvmsg" if rest.contains("MSG_PEEK") => Ok(true),
        "recvfrom" | "recvmsg" => bail!("bytes were taken out of a socket: {line}"),
        _ if CHANGES.contains(&call) => bail!("a socket of the program was changed: {line}"),
        _ => Ok(false),
    }
}
