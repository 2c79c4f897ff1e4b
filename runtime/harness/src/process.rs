//! Process trees, by /proc, and their end.
//!
//! Processes of a restarted computation have other pids outside their namespace than inside, so the tree is walked from
//! the process that we started; pids are pinned by pidfds before anything is killed, and a process counts as gone when its
//! pidfd says so.
use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// `root` and all its descendants that run, parents first.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        found.extend(children(found[next]));
        next += 1;
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut all = Vec::new();
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    all
}

/// Sends SIGKILL to `root` and all its descendants, parents first (a parent that saw its child die would end in its own way),
/// and waits for their end.
///
/// # Errors
/// When one of them is still there after `limit`.
pub fn kill_tree(root: u32, limit: Duration) -> Result<Vec<u32>> {
    kill_all(tree(root), limit)
}

/// Sends SIGKILL to `pids`, and waits for their end.
pub(crate) fn kill_all(pids: Vec<u32>, limit: Duration) -> Result<Vec<u32>> {
    let until = Instant::now() + limit;
    let pinned: Vec<(u32, OwnedFd)> = pids.iter().filter_map(|pid| Some((*pid, open(*pid)?))).collect();
    for (_, fd) in &pinned {
        // A process that has just ended is what we want.
        let _ = pidfd_send_signal(fd, Signal::KILL);
    }
    for (pid, fd) in &pinned {
        wait_gone(fd, until).with_context(|| format!("process {pid} survives SIGKILL"))?;
    }
    Ok(pids)
}

fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

/// Waits until the process behind `fd` has ended.
pub(crate) fn wait_gone(fd: &OwnedFd, until: Instant) -> Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => bail!("still there after the time limit"),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => bail!("poll: {e}"),
        }
    }
}

/// Pending and blocked signals, from a thread's status.
fn signals(status: &str) -> String {
    let lines = status.lines().filter(|l| l.starts_with("SigPnd") || l.starts_with("SigBlk"));
    lines.map(|l| l.replace('\t', "")).collect::<Vec<_>>().join(" ")
}

/// Where the threads of `root`'s tree are, for the message of a test that hangs.
pub(crate) fn describe(root: u32) -> String {
    let mut text = String::new();
    for pid in tree(root) {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        text += &format!("process {pid} {}\n", read("cmdline").replace('\0', " "));
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten().take(12) {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default().trim().to_owned();
            let stat = read("stat");
            let state = stat.rsplit(") ").next().and_then(|s| s.chars().next()).unwrap_or('?');
            let tid = task.file_name();
            text += &format!(
                "  thread {} {} state {state} in {} syscall {} signals {}\n",
                tid.to_string_lossy(),
                read("comm"),
                read("wchan"),
                read("syscall"),
                signals(&read("status"))
            );
        }
    }
    text
}
