//! System calls without libc, for capture inside a stopped program.
//!
//! Why not libc's functions: a stopped thread may hold any of libc's locks, and errno would be the program's. Why not a
//! wrapper crate: what capture asks (fdinfo, kcmp, sock_diag, SO_PEEK_OFF, tty ioctls) is outside what they offer, so
//! that most calls would be raw anyhow. Rules: nothing here allocates except where it returns a `Vec`; every call that
//! may be interrupted is repeated; types and constants come from the `libc` crate, its functions are never called.
#![allow(unsafe_code)] // Reason: system calls.

use alloc::{string::String, vec, vec::Vec};
use core::fmt;
use core::mem::{MaybeUninit, size_of};

use crate::arch::syscall6;

/// An errno, as a positive number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::EPERM => "EPERM: not permitted",
            libc::ENOENT => "ENOENT: no such file",
            libc::EINTR => "EINTR: interrupted",
            libc::EIO => "EIO: input/output error",
            libc::EBADF => "EBADF: bad descriptor",
            libc::EAGAIN => "EAGAIN: would block",
            libc::ENOMEM => "ENOMEM: out of memory",
            libc::EACCES => "EACCES: permission denied",
            libc::EBUSY => "EBUSY: busy",
            libc::EEXIST => "EEXIST: exists",
            libc::ENODEV => "ENODEV: no such device",
            libc::ENXIO => "ENXIO: no such device or address",
            libc::EINVAL => "EINVAL: invalid argument",
            libc::ENFILE => "ENFILE: too many open files in the system",
            libc::EMFILE => "EMFILE: too many open files",
            libc::ENOTTY => "ENOTTY: inappropriate ioctl",
            libc::ENOSPC => "ENOSPC: no space left",
            libc::EFBIG => "EFBIG: too large for an image",
            libc::EPIPE => "EPIPE: broken pipe",
            libc::ENOSYS => "ENOSYS: not in this kernel",
            libc::EOPNOTSUPP => "EOPNOTSUPP: not supported",
            libc::EADDRINUSE => "EADDRINUSE: address in use",
            libc::EADDRNOTAVAIL => "EADDRNOTAVAIL: address not available",
            libc::ECONNREFUSED => "ECONNREFUSED: connection refused",
            libc::ENOBUFS => "ENOBUFS: no buffer space",
            other => return write!(f, "errno {other}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

impl core::error::Error for Errno {}

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Makes system call `nr`.
///
/// # Safety
/// Pointers among `args` must be good for what that call does.
#[inline]
pub unsafe fn call(nr: libc::c_long, args: [usize; 6]) -> Result<usize> {
    loop {
        // SAFETY: passed on to the caller.
        let r = unsafe { syscall6(nr as usize, args) };
        if r == -(libc::EINTR as isize) && nr != libc::SYS_close {
            continue;
        }
        return if (-4095..0).contains(&r) { Err(Errno(-r as i32)) } else { Ok(r as usize) };
    }
}

// A call whose arguments are all plain numbers, so that no pointer can be wrong.
fn plain(nr: libc::c_long, args: [usize; 6]) -> Result<usize> {
    // SAFETY: used below only for calls (and fcntl commands) that take no pointer.
    unsafe { call(nr, args) }
}

/// tee(2) without waiting: bytes doubled from pipe `from` into pipe `to`.
pub fn tee(from: i32, to: i32, length: usize) -> Result<usize> {
    plain(libc::SYS_tee, [from as usize, to as usize, length, libc::SPLICE_F_NONBLOCK as usize, 0, 0])
}

/// kcmp(2) of two descriptors of this process by KCMP_FILE: 0 same open file description, 1 less, 2 greater.
pub fn kcmp_file(pid: i32, a: i32, b: i32) -> Result<usize> {
    plain(libc::SYS_kcmp, [pid as usize, pid as usize, 0, a as usize, b as usize, 0])
}

/// kcmp(2) by KCMP_EPOLL_TFD: the order, as [`kcmp_file`] tells it, of descriptor `fd` and the description that epoll set
/// `epoll` watches as number `tfd`, the `nth` of that number. The kernel walks through the set for it.
pub fn kcmp_epoll(pid: i32, fd: i32, epoll: i32, tfd: u32, nth: u32) -> Result<usize> {
    // struct kcmp_epoll_slot of <linux/kcmp.h>.
    let slot = [epoll as u32, tfd, nth];
    // SAFETY: `slot` lives through the call.
    unsafe { call(libc::SYS_kcmp, [pid as usize, pid as usize, 7, fd as usize, slot.as_ptr() as usize, 0]) }
}

/// epoll_ctl(2).
pub fn epoll_ctl(epoll: i32, operation: i32, fd: i32, events: u32, data: u64) -> Result<()> {
    let event = libc::epoll_event { events, u64: data };
    let at = &raw const event as usize;
    // SAFETY: `event` lives through the call.
    unsafe { call(libc::SYS_epoll_ctl, [epoll as usize, operation as usize, fd as usize, at, 0, 0]) }.map(drop)
}

/// Does epoll set `epoll` watch what `fd` is now, as this number? It is asked to add it, and says that it has it; else it
/// is taken out again.
pub fn is_watched(epoll: i32, fd: i32) -> bool {
    // No event is asked for.
    match epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, 0, 0) {
        Ok(()) => {
            let _ = epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, 0, 0);
            false
        }
        Err(e) => e == Errno(libc::EEXIST),
    }
}

/// socket(2), always close-on-exec.
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<Owned> {
    let kind = kind | libc::SOCK_CLOEXEC;
    plain(libc::SYS_socket, [family as usize, kind as usize, protocol as usize, 0, 0, 0]).map(|fd| Owned(fd as i32))
}

/// close(2).
pub fn close(fd: i32) {
    let _ = plain(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
}

/// A descriptor of ours that is closed at the end of its scope.
#[derive(Debug)]
pub struct Owned(pub i32);

impl Drop for Owned {
    fn drop(&mut self) {
        close(self.0);
    }
}

/// fcntl(2) with an integer argument.
pub fn fcntl(fd: i32, command: i32, arg: usize) -> Result<i32> {
    plain(libc::SYS_fcntl, [fd as usize, command as usize, arg, 0, 0, 0]).map(|v| v as i32)
}

/// fcntl(2) with a structure that the kernel reads or fills.
pub fn fcntl_with<T>(fd: i32, command: i32, value: &mut T) -> Result<i32> {
    // SAFETY: `value` is writable for its type's size; commands that take it use a structure of that size.
    unsafe { call(libc::SYS_fcntl, [fd as usize, command as usize, value as *mut T as usize, 0, 0, 0]) }
        .map(|v| v as i32)
}

/// ioctl(2) that fills a plain value.
pub fn ioctl_get<T: Copy + Default>(fd: i32, request: u64) -> Result<T> {
    let mut value = T::default();
    // SAFETY: as `fcntl_with`; the requests used are paired with their types by the callers in these two crates.
    unsafe { call(libc::SYS_ioctl, [fd as usize, request as usize, &raw mut value as usize, 0, 0, 0]) }?;
    Ok(value)
}

/// lseek(2).
pub fn lseek(fd: i32, offset: i64, whence: i32) -> Result<i64> {
    plain(libc::SYS_lseek, [fd as usize, offset as usize, whence as usize, 0, 0, 0]).map(|v| v as i64)
}

/// fstat(2).
pub fn fstat(fd: i32) -> Result<libc::stat> {
    let mut st = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel fills a struct stat, for which all-zero bytes are valid too.
    unsafe {
        call(libc::SYS_fstat, [fd as usize, st.as_mut_ptr() as usize, 0, 0, 0, 0])?;
        Ok(st.assume_init())
    }
}

/// stat(2) of a path without a terminating zero.
pub fn stat(path: &[u8]) -> Result<libc::stat> {
    let path = c_string(path);
    let mut st = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `path` ends in a zero byte; the kernel fills a struct stat.
    unsafe {
        call(
            libc::SYS_newfstatat,
            [libc::AT_FDCWD as usize, path.as_ptr() as usize, st.as_mut_ptr() as usize, 0, 0, 0],
        )?;
        Ok(st.assume_init())
    }
}

/// `f_type` of fstatfs(2).
pub fn filesystem(fd: i32) -> Result<i64> {
    let mut st = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel fills a struct statfs.
    unsafe {
        call(libc::SYS_fstatfs, [fd as usize, st.as_mut_ptr() as usize, 0, 0, 0, 0])?;
        Ok(st.assume_init().f_type)
    }
}

/// openat(2) of an absolute path; O_CLOEXEC is added.
pub fn open(path: &[u8], flags: i32) -> Result<Owned> {
    let path = c_string(path);
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: `path` ends in a zero byte.
    unsafe {
        call(libc::SYS_openat, [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags as usize, 0o600, 0, 0])
            .map(|fd| Owned(fd as i32))
    }
}

/// readlink(2).
pub fn readlink(path: &[u8]) -> Result<Vec<u8>> {
    let path = c_string(path);
    let mut out = vec![0u8; 4096];
    // SAFETY: `path` ends in a zero byte, `out` has the length given.
    let n = unsafe {
        call(
            libc::SYS_readlinkat,
            [libc::AT_FDCWD as usize, path.as_ptr() as usize, out.as_mut_ptr() as usize, out.len(), 0, 0],
        )
    }?;
    out.truncate(n);
    Ok(out)
}

/// read(2).
pub fn read(fd: i32, out: &mut [u8]) -> Result<usize> {
    // SAFETY: `out` is writable for its length.
    unsafe { call(libc::SYS_read, [fd as usize, out.as_mut_ptr() as usize, out.len(), 0, 0, 0]) }
}

/// pread(2).
pub fn pread(fd: i32, out: &mut [u8], offset: u64) -> Result<usize> {
    // SAFETY: `out` is writable for its length.
    unsafe { call(libc::SYS_pread64, [fd as usize, out.as_mut_ptr() as usize, out.len(), offset as usize, 0, 0]) }
}

/// write(2).
pub fn write(fd: i32, data: &[u8]) -> Result<usize> {
    // SAFETY: `data` is readable for its length.
    unsafe { call(libc::SYS_write, [fd as usize, data.as_ptr() as usize, data.len(), 0, 0, 0]) }
}

/// pipe2(2): (read end, write end).
pub fn pipe2(flags: i32) -> Result<(Owned, Owned)> {
    let mut ends = [0i32; 2];
    // SAFETY: the kernel fills two ints.
    unsafe { call(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, flags as usize, 0, 0, 0, 0]) }?;
    Ok((Owned(ends[0]), Owned(ends[1])))
}

/// poll(2) of one descriptor without waiting: its `revents`.
pub fn poll_now(fd: i32, events: i16) -> Result<i16> {
    let mut p = libc::pollfd { fd, events, revents: 0 };
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one pollfd and one timespec, no signal mask.
    unsafe { call(libc::SYS_ppoll, [&raw mut p as usize, 1, &raw const zero as usize, 0, 0, 0]) }?;
    Ok(p.revents)
}

/// The whole of a file in /proc.
pub fn read_file(path: &[u8]) -> Result<Vec<u8>> {
    let file = open(path, libc::O_RDONLY)?;
    let mut out = Vec::new();
    loop {
        let at = out.len();
        out.resize(at + 4096, 0);
        let n = read(file.0, &mut out[at..])?;
        out.truncate(at + n);
        if n == 0 {
            return Ok(out);
        }
    }
}

/// Numbers of the calling process's open descriptors, ascending, without the one used for looking.
///
/// To list /proc/self/fd makes the kernel build a name and an inode for each; to try all numbers of a table that is mostly full
/// takes a fifth of that.
pub fn descriptors() -> Result<Vec<i32>> {
    let dir = open(b"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY)?;
    // How many are open (Linux 6.2; 0 before), and how many the table has room for.
    let count = fstat(dir.0)?.st_size.max(0) as u64;
    if count > 64
        && let Some(room) = table_size()
        && room <= 4 * count
    {
        let open = |fd: &i32| *fd != dir.0 && fcntl(*fd, libc::F_GETFD, 0).is_ok();
        return Ok((0..room as i32).filter(open).collect());
    }
    list(&dir)
}

// `FDSize` of /proc/self/status (proc_pid_status(5)).
fn table_size() -> Option<u64> {
    let status = read_file(b"/proc/self/status").ok()?;
    let line = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"FDSize:"))?;
    decimal(line.trim_ascii())
}

fn list(dir: &Owned) -> Result<Vec<i32>> {
    let mut buffer = vec![0u8; 32 * 1024];
    let mut out = Vec::new();
    loop {
        // SAFETY: `buffer` is writable for its length.
        let n = unsafe {
            call(libc::SYS_getdents64, [dir.0 as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
        }?;
        if n == 0 {
            break;
        }
        let mut at = 0;
        while at + 19 <= n {
            // struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
            let length = u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]) as usize;
            if length < 19 || at + length > n {
                break;
            }
            let name = buffer[at + 19..at + length].split(|&b| b == 0).next().unwrap_or(&[]);
            if let Some(fd) = decimal(name)
                && fd as i32 != dir.0
            {
                out.push(fd as i32);
            }
            at += length;
        }
    }
    out.sort_unstable();
    Ok(out)
}

/// getsockopt(2) of a plain value; the kernel may fill less than all of it.
pub fn getsockopt<T: Copy + Default>(fd: i32, level: i32, name: i32) -> Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as u32;
    // SAFETY: `value` is writable for `length` bytes and all bit patterns that the kernel writes there are valid ints.
    unsafe {
        call(
            libc::SYS_getsockopt,
            [fd as usize, level as usize, name as usize, &raw mut value as usize, &raw mut length as usize, 0],
        )
    }?;
    Ok(value)
}

/// getsockopt(2) of bytes: how many of `value` were written.
pub fn getsockopt_into(fd: i32, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let mut length = value.len() as u32;
    // SAFETY: `value` is writable for `length` bytes.
    unsafe {
        call(
            libc::SYS_getsockopt,
            [fd as usize, level as usize, name as usize, value.as_mut_ptr() as usize, &raw mut length as usize, 0],
        )
    }?;
    Ok(length as usize)
}

/// getsockopt(2) of at most `limit` bytes.
pub fn getsockopt_bytes(fd: i32, level: i32, name: i32, limit: usize) -> Result<Vec<u8>> {
    let mut value = vec![0u8; limit];
    let length = getsockopt_into(fd, level, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

/// setsockopt(2) of bytes.
pub fn setsockopt_bytes(fd: i32, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: `value` is readable for its length.
    unsafe {
        call(
            libc::SYS_setsockopt,
            [fd as usize, level as usize, name as usize, value.as_ptr() as usize, value.len(), 0],
        )
    }
    .map(|_| ())
}

/// setsockopt(2) of an int.
pub fn setsockopt(fd: i32, level: i32, name: i32, value: i32) -> Result<()> {
    setsockopt_bytes(fd, level, name, &value.to_ne_bytes())
}

/// clock_gettime(2) in nanoseconds.
pub fn clock(clock: i32) -> Result<i64> {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills a timespec. The vdso is left alone: it is the program's.
    unsafe { call(libc::SYS_clock_gettime, [clock as usize, &raw mut t as usize, 0, 0, 0, 0]) }?;
    Ok(t.tv_sec * 1_000_000_000 + t.tv_nsec)
}

/// sched_yield(2).
pub fn give_way() {
    let _ = plain(libc::SYS_sched_yield, [0; 6]);
}

/// getpid(2).
pub fn getpid() -> i32 {
    plain(libc::SYS_getpid, [0; 6]).unwrap_or(0) as i32
}

/// Bytes with a terminating zero; what lies behind a zero inside is cut off, as the kernel would.
pub fn c_string(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1);
    out.extend(bytes.iter().take_while(|&&b| b != 0));
    out.push(0);
    out
}

/// `/proc/self/fd/N` and the like.
pub fn proc_path(prefix: &str, number: i32) -> Vec<u8> {
    let mut out: Vec<u8> = prefix.into();
    out.extend_from_slice(alloc::format!("{number}").as_bytes());
    out
}

/// A decimal number, the whole of `text`.
pub fn decimal(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// A hexadecimal number without prefix, the whole of `text`.
pub fn hex(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(text).ok()?, 16).ok()
}

/// Bytes as a `String`; what is not UTF-8 is replaced (for messages only).
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
