//! Starts a coordinator as a daemon: `slackwater coordinator` in a session of its own, a child of init (or of the nearest
//! subreaper), so that the program which takes the launcher's place never sees a child it has not made.
//!
//! Fast, because a launch waits for it: the caller itself claims the folder and listens; whoever connects before the
//! daemon is up waits in the backlog. The caller only waits until exec has succeeded.
//!
//! Rules: between fork and exec only async-signal-safe calls, for the caller may have threads; all that allocates is done
//! before. Descriptors of the caller do not live on in the daemon (it would hold pipes open).
#![allow(unsafe_code)] // fork(2), execv(2) and what lies between
use crate::{
    folder::{self, Claim, FolderError},
    options::Options,
};
use slackwater_protocol::{auth::Secret, names};
use std::{
    ffi::{CString, OsString},
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, RawFd},
        unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Descriptor of the listening socket in the daemon.
pub const LISTENER_FD: RawFd = 3;
/// Descriptor of the folder's lock in the daemon.
pub const LOCK_FD: RawFd = 4;
const FIRST_FREE_FD: RawFd = 5;

/// Why no daemon was started.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// fork, exec and the like.
    #[error("cannot start the coordinator ({what}): {error}")]
    Start {
        /// What failed.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

/// A coordinator that was started.
#[derive(Debug)]
pub struct Daemon {
    /// The computation's folder, absolute.
    pub dir: PathBuf,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The computation's secret.
    pub secret: Secret,
}

/// Claims `dir` and starts `program coordinator ...` for it; `program` is the `slackwater` executable.
///
/// # Errors
/// When the folder is in use or cannot be written, or the program cannot be executed.
pub fn spawn_daemon(dir: &Path, options: &Options, program: &Path) -> Result<Daemon, DaemonError> {
    let start = |what| move |error| DaemonError::Start { what, error };
    let Claim { dir, lock, listener, addr, secret } = folder::claim(dir)?;
    let log_path = dir.join(names::FILE_LOG);
    let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(log_path).map_err(start("log"))?;
    let null = fs::OpenOptions::new().read(true).open("/dev/null").map_err(start("/dev/null"))?;
    let (mut ready, failure) = io::pipe().map_err(start("pipe"))?;

    let arguments = [program.as_os_str().to_owned(), "coordinator".into(), "--daemon".into(), "--dir".into()];
    let arguments = arguments.into_iter().chain([dir.clone().into()]).chain(options.arguments());
    let nul = |_| DaemonError::Start { what: "arguments", error: io::ErrorKind::InvalidInput.into() };
    let text = |argument: OsString| CString::new(argument.into_vec());
    let arguments: Vec<CString> = arguments.map(text).collect::<Result<_, _>>().map_err(nul)?;
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(std::ptr::null());
    // The daemon is no part of the computation: whatever is preloaded into the caller stays out of it.
    let environment: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| name != names::ENV_PRELOAD)
        .filter_map(|(name, value)| {
            let mut line = name.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            CString::new(line).ok()
        })
        .collect();
    let mut envp: Vec<*const libc::c_char> = environment.iter().map(|line| line.as_ptr()).collect();
    envp.push(std::ptr::null());
    let plan = Plan {
        argv: &argv,
        envp: &envp,
        stdio: [null.as_raw_fd(), log.as_raw_fd()],
        listener: listener.as_raw_fd(),
        lock: lock.as_raw_fd(),
        failure: failure.as_raw_fd(),
    };

    // SAFETY: the child only makes system calls (`Plan::daemonize`) and never returns.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(start("fork")(io::Error::last_os_error())),
        // SAFETY: this is the child of fork.
        0 => unsafe { plan.daemonize() },
        child => child,
    };
    drop(failure);
    let mut status = 0;
    // SAFETY: waits for our own child with a valid place for its status. The child exits as soon as it has forked.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            // SIGCHLD is ignored: the kernel has reaped it.
            _ if error.raw_os_error() == Some(libc::ECHILD) => break,
            _ => return Err(start("waitpid")(error)),
        }
    }
    let mut errno = Vec::new();
    ready.read_to_end(&mut errno).map_err(start("pipe"))?;
    match <[u8; 4]>::try_from(errno.as_slice()) {
        Err(_) => Ok(Daemon { dir, addr, secret }),
        Ok(errno) => {
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            let _ = fs::remove_file(dir.join(names::FILE_ADDRESS));
            Err(start("fork or exec of slackwater itself")(error))
        }
    }
}

/// All that the children need, prepared before fork.
struct Plan<'a> {
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
    /// stdin; stdout and stderr.
    stdio: [RawFd; 2],
    listener: RawFd,
    lock: RawFd,
    /// Closed by exec; an errno in it tells that exec failed.
    failure: RawFd,
}

impl Plan<'_> {
    /// In the first child: a session of its own, a second fork, and exec there.
    ///
    /// # Safety
    /// Only in a child of fork(2).
    unsafe fn daemonize(&self) -> ! {
        // SAFETY: system calls alone, as the rules of this module demand; pointers in the plan outlive the exec.
        unsafe {
            libc::setsid();
            match libc::fork() {
                -1 => self.fail(),
                0 => {}
                _ => libc::_exit(0),
            }
            let root = c"/";
            libc::chdir(root.as_ptr());
            // Copies above every number that is a target, so that no source is overwritten before its turn.
            let targets = [0, 1, 2, LISTENER_FD, LOCK_FD];
            let sources = [self.stdio[0], self.stdio[1], self.stdio[1], self.listener, self.lock];
            let mut copies = [0; 5];
            for (copy, source) in copies.iter_mut().zip(sources) {
                *copy = libc::fcntl(source, libc::F_DUPFD_CLOEXEC, FIRST_FREE_FD + 1);
                if *copy < 0 {
                    self.fail();
                }
            }
            let failure = libc::fcntl(self.failure, libc::F_DUPFD_CLOEXEC, FIRST_FREE_FD + 1);
            if failure < 0 || libc::dup2(failure, FIRST_FREE_FD) < 0 {
                self.fail();
            }
            libc::fcntl(FIRST_FREE_FD, libc::F_SETFD, libc::FD_CLOEXEC);
            for (copy, target) in copies.into_iter().zip(targets) {
                libc::dup2(copy, target);
            }
            close_from(FIRST_FREE_FD + 1);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::execve(self.argv[0], self.argv.as_ptr(), self.envp.as_ptr());
            Plan { failure: FIRST_FREE_FD, ..*self }.fail()
        }
    }

    /// Reports errno and exits.
    ///
    /// # Safety
    /// Only in a child of fork(2).
    unsafe fn fail(&self) -> ! {
        // SAFETY: errno of this thread; write(2) from a local; _exit runs nothing of the parent's.
        unsafe {
            let errno = (*libc::__errno_location()).to_ne_bytes();
            libc::write(self.failure, errno.as_ptr().cast(), errno.len());
            libc::_exit(127)
        }
    }
}

/// Closes all descriptors from `first` on.
///
/// # Safety
/// Only in a child of fork(2) that needs none of them.
unsafe fn close_from(first: RawFd) {
    // SAFETY: integers only; nothing of this process uses these descriptors any more.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) == 0 {
            return;
        }
        // Before Linux 5.9.
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        for fd in first..RawFd::try_from(limit.rlim_cur.min(1 << 20)).unwrap_or(1 << 20) {
            libc::close(fd);
        }
    }
}

/// In the daemon: takes over what [`spawn_daemon`] has claimed.
///
/// # Errors
/// When descriptors 3 and 4 are not what they should be.
///
/// # Safety
/// Descriptors [`LISTENER_FD`] and [`LOCK_FD`] must belong to nobody else in this process.
pub unsafe fn adopt(dir: &Path) -> Result<Claim, DaemonError> {
    use std::os::fd::FromRawFd;
    let start = |what| move |error: rustix::io::Errno| DaemonError::Start { what, error: error.into() };
    // SAFETY: as demanded of the caller.
    let (listener, lock) = unsafe { (FromRawFd::from_raw_fd(LISTENER_FD), FromRawFd::from_raw_fd(LOCK_FD)) };
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).map_err(start("listening socket"))?;
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::CLOEXEC).map_err(start("lock"))?;
    let addr = rustix::net::getsockname(&listener).map_err(start("listening socket"))?;
    let addr = SocketAddr::try_from(addr).map_err(start("listening socket"))?;
    let secret = folder::read_secret(dir)?;
    Ok(Claim { dir: dir.to_path_buf(), lock, listener, addr, secret })
}
