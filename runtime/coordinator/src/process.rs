//! Processes as the kernel knows them: pidfds to see them die and to kill them, without a chance to hit another process
//! that got the pid later.
#![allow(unsafe_code)] // AsyncFd must be told that a descriptor stays what it is
use rustix::{
    fd::OwnedFd,
    io::Errno,
    process::{Pid, PidfdFlags, Signal},
};
use slackwater_protocol::signal;
use std::{fs, path::Path, sync::Arc};
use tokio::io::unix::AsyncFd;

/// A process that can be watched and killed.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<OwnedFd>);

/// What became of an attempt to get hold of a process.
pub(crate) enum Found {
    /// Here it is.
    Alive(Handle),
    /// There is no such process (any more).
    Dead,
    /// It cannot be watched (kernel before 5.3, no descriptors left): its connection must do.
    Unknown(Errno),
}

/// Opens a process by pid.
pub(crate) fn open(pid: i32) -> Found {
    let Some(pid) = Pid::from_raw(pid) else { return Found::Dead };
    match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(fd) => Found::Alive(Handle(Arc::new(fd))),
        Err(Errno::SRCH) => Found::Dead,
        // PIDFD_NONBLOCK is of Linux 5.10.
        Err(Errno::INVAL) => match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Found::Alive(Handle(Arc::new(fd))),
            Err(Errno::SRCH) => Found::Dead,
            Err(error) => Found::Unknown(error),
        },
        Err(error) => Found::Unknown(error),
    }
}

impl Handle {
    /// SIGKILL; a process that is gone already is no error.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&*self.0, Signal::KILL);
    }

    /// SIGCONT or SIGSTOP.
    pub(crate) fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        rustix::process::pidfd_send_signal(&*self.0, signal)
    }

    /// Until it has died (be it a zombie).
    pub(crate) async fn died(self) {
        // SAFETY: the Arc keeps the descriptor open, and it is never replaced.
        match unsafe { AsyncFd::register(self.0) } {
            Ok(fd) => drop(fd.readable().await),
            // Cannot be told: never.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Whether `pid`, here, is the process that says it runs `exe` and is a child of `ppid`; None: there is no such pid. A
/// process in another pid namespace names other pids than we know. Either fits: it may have become another program since
/// it said so, or its parent may have died.
pub(crate) fn is(pid: i32, exe: &str, ppid: i32) -> Option<bool> {
    let parent = field(pid, 4)?;
    let plain = |path: &str| path.strip_suffix(" (deleted)").unwrap_or(path).to_string();
    let runs =
        || fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| plain(&path.to_string_lossy()) == plain(exe));
    Some(parent == i64::from(ppid) || runs())
}

/// A number of /proc/PID/stat (proc(5), counted from 1, not before the fourth).
fn field(pid: i32, number: usize) -> Option<i64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field may hold anything; the last ')' ends it.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

/// Number of threads, from /proc/PID/stat field 20; None when it is gone.
pub(crate) fn threads(pid: i32) -> Option<u32> {
    u32::try_from(field(pid, 20)?).ok()
}

/// Is it stopped (job control, SIGSTOP)? A debugger's stop is none of ours.
pub(crate) fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// Who traces it (a debugger, strace); None: nobody in this pid namespace.
pub(crate) fn tracer(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|&pid| pid != 0)
}

/// Sees to it that the threads of a stopped process park before they run, if its agent takes the checkpoint signal already.
pub(crate) fn hold_threads(pid: i32) {
    let Some(caught) = signal_set(pid, "SigCgt:") else { return };
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for number in [signal::SIGNAL, signal::OTHER].into_iter().filter(|number| caught & 1 << (number - 1) != 0) {
        // SAFETY: all zeros is a siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        (info.si_signo, info.si_code) = (number, libc::SI_QUEUE);
        // SAFETY: after the common fields come si_pid, si_uid and si_value (sigaction(2)).
        unsafe { (&raw mut info).cast::<u8>().add(24).cast::<usize>().write(signal::HOLD) };
        for tid in tasks().filter_map(|task| task.file_name().to_string_lossy().parse::<i32>().ok()) {
            // One that has ended needs none.
            // SAFETY: `info` is a siginfo.
            unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, number, &raw const info) };
        }
    }
}

/// A set of signals in /proc/PID/status.
fn signal_set(pid: i32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Is a SIGCONT pending, for its first thread or for all of it? None: it cannot be told.
pub(crate) fn continue_pending(pid: i32) -> Option<bool> {
    let set = signal_set(pid, "SigPnd:")? | signal_set(pid, "ShdPnd:")?;
    Some(set & 1 << (Signal::CONT.as_raw() - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_program_or_its_parent() {
        let pid = std::process::id() as i32;
        let parent = i32::try_from(field(pid, 4).unwrap()).unwrap();
        let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        assert_eq!(is(pid, &exe, -1), Some(true));
        assert_eq!(is(pid, "/another/program", parent), Some(true));
        assert_eq!(is(pid, "/another/program", -1), Some(false));
        assert_eq!(is(i32::MAX, &exe, parent), None);
        assert!(threads(pid).unwrap() >= 1);
    }
}
