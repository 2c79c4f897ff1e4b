//! System calls of the rebuilding side that `std` does not offer.
//!
//! Descriptors are plain numbers here, not `OwnedFd`: they are inherited by fork, renumbered by dup3 and closed in bulk, and
//! most become the program's; an owner that closes its number at the end of a scope would close somebody else's.
#![allow(unsafe_code)] // Reason: system calls.
use std::ffi::CString;
use std::io::{Error, Result};

fn check(r: i64) -> Result<i64> {
    if r < 0 { Err(Error::last_os_error()) } else { Ok(r) }
}

fn c_path(path: &[u8]) -> Result<CString> {
    CString::new(path).map_err(|_| Error::from_raw_os_error(libc::EINVAL))
}

/// open(2), close-on-exec.
pub fn open(path: &[u8], flags: i32, mode: u32) -> Result<i32> {
    let path = c_path(path)?;
    // SAFETY: a terminated path.
    check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) } as i64).map(|fd| fd as i32)
}

/// Another description of what `fd` is open on.
pub fn reopen(fd: i32, flags: i32) -> Result<i32> {
    open(format!("/proc/self/fd/{fd}").as_bytes(), flags, 0)
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: a number; the callers close only what they made.
    unsafe { libc::close(fd) };
}

/// Moves a descriptor to the lowest free number from `from` on, close-on-exec.
pub fn raise(fd: i32, from: i32) -> Result<i32> {
    let high = copy(fd, from)?;
    close(fd);
    Ok(high)
}

/// Duplicates a descriptor to the lowest free number from `from` on, close-on-exec.
pub fn copy(fd: i32, from: i32) -> Result<i32> {
    fcntl(fd, libc::F_DUPFD_CLOEXEC, from)
}

/// fcntl(2) with an int.
pub fn fcntl(fd: i32, command: i32, arg: i32) -> Result<i32> {
    // SAFETY: commands used here take an int.
    check(unsafe { libc::fcntl(fd, command, arg) } as i64).map(|v| v as i32)
}

/// fcntl(2) with a structure.
pub fn fcntl_with<T>(fd: i32, command: i32, value: &mut T) -> Result<()> {
    // SAFETY: `value` has the type of the command.
    check(unsafe { libc::fcntl(fd, command, value as *mut T) } as i64).map(|_| ())
}

/// dup3(2).
pub fn dup_to(fd: i32, number: i32, cloexec: bool) -> Result<()> {
    if fd == number {
        return fcntl(fd, libc::F_SETFD, if cloexec { libc::FD_CLOEXEC } else { 0 }).map(|_| ());
    }
    // SAFETY: numbers.
    check(unsafe { libc::dup3(fd, number, if cloexec { libc::O_CLOEXEC } else { 0 }) } as i64).map(|_| ())
}

/// lseek(2) to an absolute offset.
pub fn seek(fd: i32, offset: i64) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::lseek(fd, offset, libc::SEEK_SET) }).map(|_| ())
}

/// ftruncate(2).
pub fn truncate(fd: i32, size: u64) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::ftruncate(fd, size as i64) } as i64).map(|_| ())
}

/// fchmod(2).
pub fn chmod(fd: i32, mode: u32) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::fchmod(fd, mode) } as i64).map(|_| ())
}

/// fchown(2).
pub fn chown(fd: i32, (uid, gid): (u32, u32)) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::fchown(fd, uid, gid) } as i64).map(|_| ())
}

/// Uid and gid of its file.
pub fn owner(fd: i32) -> Result<(u32, u32)> {
    let st = slackwater_socket::sys::fstat(fd).map_err(|e| Error::from_raw_os_error(e.0))?;
    Ok((st.st_uid, st.st_gid))
}

/// pwrite(2), all of it.
pub fn write_at(fd: i32, mut data: &[u8], mut offset: u64) -> Result<()> {
    while !data.is_empty() {
        // SAFETY: `data` is readable for its length.
        let n = check(unsafe { libc::pwrite(fd, data.as_ptr().cast(), data.len(), offset as i64) } as i64)? as usize;
        data = &data[n..];
        offset += n as u64;
    }
    Ok(())
}

/// write(2), once.
pub fn write(fd: i32, data: &[u8]) -> Result<usize> {
    // SAFETY: `data` is readable for its length.
    check(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) } as i64).map(|n| n as usize)
}

/// read(2), once.
pub fn read(fd: i32, out: &mut [u8]) -> Result<usize> {
    // SAFETY: `out` is writable for its length.
    check(unsafe { libc::read(fd, out.as_mut_ptr().cast(), out.len()) } as i64).map(|n| n as usize)
}

/// ioctl(2) with a structure that the kernel reads or fills.
pub fn ioctl_with<T>(fd: i32, request: u64, value: &mut T) -> Result<i32> {
    // SAFETY: `value` has the type of the request.
    check(unsafe { libc::ioctl(fd, request as _, value as *mut T) } as i64).map(|v| v as i32)
}

/// ioctl(2) with bytes.
pub fn ioctl_bytes(fd: i32, request: u64, value: &mut [u8]) -> Result<i32> {
    // SAFETY: the callers give as many bytes as the request's structure has.
    check(unsafe { libc::ioctl(fd, request as _, value.as_mut_ptr()) } as i64).map(|v| v as i32)
}

/// ioctl(2) with a number.
pub fn ioctl(fd: i32, request: u64, value: u64) -> Result<i32> {
    // SAFETY: requests used here take a number.
    check(unsafe { libc::ioctl(fd, request as _, value) } as i64).map(|v| v as i32)
}

/// pipe2(2): (read end, write end).
pub fn pipe() -> Result<(i32, i32)> {
    let mut ends = [0; 2];
    // SAFETY: two ints.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } as i64)?;
    Ok((ends[0], ends[1]))
}

/// mkfifo(3).
pub fn make_fifo(path: &[u8], mode: u32) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: a terminated path.
    check(unsafe { libc::mkfifo(path.as_ptr(), mode) } as i64).map(|_| ())
}

/// memfd_create(2).
pub fn memfd(name: &[u8], flags: u32) -> Result<i32> {
    let name = c_path(name)?;
    // SAFETY: a terminated name.
    check(unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) } as i64).map(|fd| fd as i32)
}

/// eventfd(2) with a count of 0.
pub fn eventfd(semaphore: bool) -> Result<i32> {
    let flags = libc::EFD_CLOEXEC | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: numbers.
    check(unsafe { libc::eventfd(0, flags) } as i64).map(|fd| fd as i32)
}

/// timerfd_create(2).
pub fn timerfd(clock: i32) -> Result<i32> {
    // SAFETY: numbers.
    check(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) } as i64).map(|fd| fd as i32)
}

/// timerfd_settime(2), times in nanoseconds.
pub fn arm(fd: i32, flags: i32, value_ns: u64, interval_ns: u64) -> Result<()> {
    let time = |ns: u64| libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    let spec = libc::itimerspec { it_interval: time(interval_ns), it_value: time(value_ns) };
    // SAFETY: a structure that lives through the call.
    check(unsafe { libc::timerfd_settime(fd, flags, &spec, std::ptr::null_mut()) } as i64).map(|_| ())
}

/// signalfd4(2); the kernel's mask has 8 bytes.
pub fn signalfd(mask: u64) -> Result<i32> {
    // SAFETY: an 8-byte mask.
    check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, libc::SFD_CLOEXEC) }).map(|fd| fd as i32)
}

/// epoll_create1(2).
pub fn epoll() -> Result<i32> {
    // SAFETY: numbers.
    check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } as i64).map(|fd| fd as i32)
}

/// epoll_ctl(2) EPOLL_CTL_ADD.
pub fn epoll_add(epoll: i32, fd: i32, events: u32, data: u64) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: a structure that lives through the call.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) } as i64).map(|_| ())
}

/// inotify_init1(2), non-blocking for the time being.
pub fn inotify() -> Result<i32> {
    // SAFETY: numbers.
    check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) } as i64).map(|fd| fd as i32)
}

/// inotify_add_watch(2).
pub fn inotify_add(fd: i32, path: &[u8], mask: u32) -> Result<i32> {
    let path = c_path(path)?;
    // SAFETY: a terminated path.
    check(unsafe { libc::inotify_add_watch(fd, path.as_ptr(), mask) } as i64).map(|wd| wd as i32)
}

/// inotify_rm_watch(2).
pub fn inotify_remove(fd: i32, wd: i32) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::inotify_rm_watch(fd, wd) } as i64).map(|_| ())
}

/// pidfd_open(2).
pub fn pidfd(pid: i32, flags: u32) -> Result<i32> {
    // SAFETY: numbers.
    check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) }).map(|fd| fd as i32)
}

/// A pidfd of a process that has ended and was waited for.
pub fn dead_pidfd() -> Result<i32> {
    of_the_dead(|child| pidfd(child, 0))
}

/// Opens something of a child that has ended and been waited for when this returns.
pub fn of_the_dead(open: impl FnOnce(i32) -> Result<i32>) -> Result<i32> {
    // SAFETY: the child does nothing but end, by the system call itself.
    let child = check(unsafe { libc::fork() } as i64)? as i32;
    if child == 0 {
        // SAFETY: as above.
        unsafe { libc::_exit(0) };
    }
    let fd = open(child);
    let mut status = 0;
    // SAFETY: our own child.
    check(unsafe { libc::waitpid(child, &mut status, 0) } as i64)?;
    fd
}

/// flock(2) without waiting.
pub fn flock(fd: i32, write: bool) -> Result<()> {
    // SAFETY: numbers.
    check(unsafe { libc::flock(fd, libc::LOCK_NB | if write { libc::LOCK_EX } else { libc::LOCK_SH }) } as i64)
        .map(|_| ())
}

/// close_range(2), both ends included.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: numbers; the caller answers for what it closes.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(|_| ())
}

/// Raises the soft limit of open files to the hard one; returns it.
pub fn raise_limit() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: structures that live through the calls.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } as i64)?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } as i64)?;
    Ok(limit.rlim_cur)
}

/// isatty(3).
pub fn is_terminal(fd: i32) -> bool {
    // SAFETY: a number.
    unsafe { libc::isatty(fd) == 1 }
}
