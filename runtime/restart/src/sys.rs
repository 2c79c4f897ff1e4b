//! The system calls that std has no word for. Each wrapper is safe to call from ordinary code; what can go wrong comes back
//! as `io::Error`.
//!
//! # Safety
//! [`fork_as`] leaves the child with the calling thread alone: it must be called while the process has one thread.
#![allow(unsafe_code)] // system calls that no safe wrapper covers
use std::io::{self, Error};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// -1 becomes errno.
pub fn check(r: impl Into<i64>) -> io::Result<i64> {
    let r = r.into();
    if r < 0 { Err(Error::last_os_error()) } else { Ok(r) }
}

/// The kernel's `struct clone_args` (clone3(2)), first version with `set_tid` (5.5).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// Forks with `flags` (namespaces), as process number `pid` of the innermost pid namespace, or any number (None). Its end is
/// told to the parent by `exit_signal`. 0 in the child. The caller must be the only thread of its process.
pub fn fork_as(flags: u64, pid: Option<i32>, exit_signal: i32) -> io::Result<i32> {
    let wanted = [pid.unwrap_or(0)];
    let mut args = CloneArgs { flags, exit_signal: exit_signal as u64, ..CloneArgs::default() };
    if pid.is_some() {
        args.set_tid = wanted.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: no shared memory, no new stack: a fork. `wanted` outlives the call.
    let r = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    check(r).map(|pid| pid as i32)
}

/// What ends this process by a signal is to leave no core file: it stands for another, which has left its own.
pub fn no_core() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is ours.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
}

/// Ends this process without running anything.
pub fn exit(status: i32) -> ! {
    // SAFETY: no condition.
    unsafe { libc::_exit(status) }
}

/// Sends `signal`.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory involved.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// getpid(2), uncached.
pub fn pid() -> i32 {
    // SAFETY: no memory involved.
    unsafe { libc::getpid() }
}

/// getppid(2); 0: the parent is outside of the pid namespace.
pub fn ppid() -> i32 {
    // SAFETY: no memory involved.
    unsafe { libc::getppid() }
}

/// getpgrp(2).
pub fn pgrp() -> i32 {
    // SAFETY: no memory involved.
    unsafe { libc::getpgrp() }
}

/// getsid(2) of ourselves.
pub fn sid() -> i32 {
    // SAFETY: no memory involved.
    unsafe { libc::getsid(0) }
}

/// setsid(2).
pub fn setsid() -> io::Result<()> {
    // SAFETY: no memory involved.
    check(unsafe { libc::setsid() }).map(drop)
}

/// setpgid(2) of ourselves; 0: a group of our own.
pub fn setpgid(group: i32) -> io::Result<()> {
    // SAFETY: no memory involved.
    check(unsafe { libc::setpgid(0, group) }).map(drop)
}

/// prctl(2) with one argument.
pub fn prctl(option: i32, value: u64) -> io::Result<i64> {
    // SAFETY: only used with options that take plain numbers.
    check(unsafe { libc::prctl(option, value, 0u64, 0u64, 0u64) })
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// The child.
    pub pid: i32,
    /// As wait4(2) gives it.
    pub status: i32,
}

/// waitpid(2); None: nothing to report (WNOHANG). EINTR is tried again.
pub fn wait(pid: i32, options: i32) -> io::Result<Option<Waited>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is ours.
        match check(unsafe { libc::waitpid(pid, &raw mut status, options | libc::__WALL) }) {
            Ok(0) => return Ok(None),
            Ok(pid) => return Ok(Some(Waited { pid: pid as i32, status })),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits until child `pid` has ended, and leaves it a zombie.
pub fn wait_dead(pid: i32) -> io::Result<()> {
    loop {
        // SAFETY: siginfo_t is plain data.
        let r = unsafe {
            let mut info: libc::siginfo_t = core::mem::zeroed();
            libc::waitid(libc::P_PID, pid as u32, &raw mut info, libc::WEXITED | libc::WNOWAIT | libc::__WALL)
        };
        match check(r) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A set of signals.
pub fn signals(of: &[i32]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, filled by the C library.
    unsafe {
        let mut set = core::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for s in of {
            libc::sigaddset(&raw mut set, *s);
        }
        set
    }
}

/// Sets this thread's mask; the old one.
pub fn mask(how: i32, set: &libc::sigset_t) -> libc::sigset_t {
    // SAFETY: both sets are ours.
    unsafe {
        let mut old = core::mem::zeroed();
        libc::sigprocmask(how, set, &raw mut old);
        old
    }
}

/// Gives `signal` its default action.
pub fn default_action(signal: i32) {
    // SAFETY: SIG_DFL is valid for each signal.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// signalfd(2), CLOEXEC, not blocking.
pub fn signalfd(set: &libc::sigset_t) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, which nobody else owns.
    unsafe {
        let fd = check(libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Which.
    pub number: i32,
    /// Who sent it: si_code.
    pub code: i32,
    /// The sender, as this namespace sees it. 0: one outside of it, or the kernel.
    pub sender: u32,
}

/// The next signal. None: no more.
pub fn next_signal(fd: &OwnedFd) -> Option<Signal> {
    // SAFETY: signalfd_siginfo is plain data.
    unsafe {
        let mut info: libc::signalfd_siginfo = core::mem::zeroed();
        let len = size_of_val(&info);
        let n = libc::read(fd.as_raw_fd(), (&raw mut info).cast(), len);
        let signal = Signal { number: info.ssi_signo as i32, code: info.ssi_code, sender: info.ssi_pid };
        (n == len as isize).then_some(signal)
    }
}

/// Two connected ends that keep messages apart, CLOEXEC.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: two new descriptors, which nobody else owns.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        check(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Sends one message; the reader's end may be gone.
pub fn send(fd: &OwnedFd, message: &[u8]) -> io::Result<()> {
    // SAFETY: `message` is readable.
    check(unsafe { libc::send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) } as i64)
        .map(drop)
}

/// Receives one message; empty: the other end is gone. `wait`: block.
pub fn receive(fd: &OwnedFd, wait: bool) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 8192];
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: the buffer is ours.
    let n = check(unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) } as i64)?;
    buffer.truncate(n as usize);
    Ok(buffer)
}

/// Waits until one of `fds` is readable (or hung up); which are. Empty: the time is over.
pub fn poll(fds: &[RawFd], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut set: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let ms = timeout.map_or(-1, |t| t.as_millis().min(i32::MAX as u128) as i32);
    // SAFETY: the array is ours.
    match check(unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, ms) }) {
        Ok(0) => Ok(Vec::new()),
        Ok(_) => Ok(set.iter().map(|p| p.revents != 0).collect()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(e) => Err(e),
    }
}

/// The terminal's foreground group.
pub fn foreground(tty: RawFd) -> io::Result<i32> {
    // SAFETY: no memory involved.
    check(unsafe { libc::tcgetpgrp(tty) }).map(|g| g as i32)
}

/// Makes `group` the terminal's foreground group, from the background if need be.
pub fn set_foreground(tty: RawFd, group: i32) -> io::Result<()> {
    let old = mask(libc::SIG_BLOCK, &signals(&[libc::SIGTTOU]));
    // SAFETY: no memory involved.
    let r = check(unsafe { libc::tcsetpgrp(tty, group) });
    mask(libc::SIG_SETMASK, &old);
    r.map(drop)
}

/// Closes every descriptor from 3 on except `keep`.
pub fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut from = 3;
    for end in keep.into_iter().map(|fd| fd as u32).chain([u32::MAX]) {
        let last = if end == u32::MAX { end } else { end - 1 };
        if from <= last {
            // SAFETY: the caller says that nothing else is in use.
            unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
        }
        from = end.saturating_add(1);
    }
}

/// A copy of `fd` at a number not below `from`, CLOEXEC.
pub fn duplicate_above(fd: &OwnedFd, from: i32) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, which nobody else owns.
    unsafe {
        let new = check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, from))?;
        Ok(OwnedFd::from_raw_fd(new as RawFd))
    }
}

/// Memory that a process shares with those it forks, for the life of the process.
pub struct SharedPage {
    at: *const Page,
}

#[repr(C)]
struct Page {
    failed: AtomicU32,
    barriers: [Counter; 16],
}

#[repr(C)]
struct Counter {
    arrived: AtomicU32,
}

impl SharedPage {
    /// A zeroed page.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new mapping, zeroed, larger than `Page`, never unmapped.
        unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let p =
                libc::mmap(core::ptr::null_mut(), size_of::<Page>(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if p == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(Self { at: p.cast() }) }
        }
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped for ever; all fields are atomics.
        unsafe { &*self.at }
    }

    /// Some process has failed: nobody need wait for it any more.
    pub fn fail(&self) {
        self.page().failed.store(1, SeqCst);
        for b in &self.page().barriers {
            futex_wake(&b.arrived);
        }
    }

    /// Did one?
    pub fn failed(&self) -> bool {
        self.page().failed.load(SeqCst) != 0
    }

    /// Arrives at barrier `number` and waits until `all` have. The error says how many had, when the time is over.
    pub fn meet(&self, number: usize, all: u32, patience: Duration) -> io::Result<()> {
        let counter = &self.page().barriers[number].arrived;
        let mut now = counter.fetch_add(1, SeqCst) + 1;
        if now >= all {
            futex_wake(counter);
            return Ok(());
        }
        let end = Instant::now() + patience;
        while now < all {
            if self.failed() {
                return Err(Error::other("another process failed"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::other(format!("only {now} of {all} processes came this far (step {number})")));
            }
            futex_wait(counter, now, left);
            now = counter.load(SeqCst);
        }
        Ok(())
    }
}

/// Waits until `word` is no longer `value`; may return earlier.
fn futex_wait(word: &AtomicU32, value: u32, patience: Duration) {
    // A failure between our look at `failed` and the sleep would go unseen: so no sleep is longer than this.
    let patience = patience.min(Duration::from_millis(250));
    let time = libc::timespec { tv_sec: patience.as_secs() as _, tv_nsec: patience.subsec_nanos().into() };
    // SAFETY: the word is mapped; the time is ours.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const time, 0, 0) };
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
}
