//! System calls that the agent makes, by the bare instruction: no libc, no errno, no cancellation point.
//!
//! # Safety
//! Each function wraps one call whose arguments are checked by its types, or is `unsafe` itself.
use alloc::{string::String, vec::Vec};
use core::{ffi::CStr, sync::atomic::AtomicU32};
pub use syscalls::Errno;

/// Result of a system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// The raw call, checked.
#[macro_export]
macro_rules! sc {
    ($n:ident $(, $a:expr)* $(,)?) => {
        syscalls::syscall!(syscalls::Sysno::$n $(, $a)*)
    };
}

/// futex(2) FUTEX_WAIT, private; returns when woken, when the value differs, on a signal, or after `timeout_ns`.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout_ns: Option<u64>) {
    let ts = timeout_ns.map(|n| [n / 1_000_000_000, n % 1_000_000_000]);
    let ts = ts.as_ref().map_or(core::ptr::null(), |t| t.as_ptr());
    // SAFETY: word and ts live through the call.
    _ = unsafe { sc!(futex, word.as_ptr(), 128, value, ts) };
}

/// futex(2) FUTEX_WAKE, private, everybody.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: word is only an address here.
    _ = unsafe { sc!(futex, word.as_ptr(), 129, i32::MAX) };
}

/// As [`futex_wait`], to be woken by those whose bits are among `bits`.
pub fn futex_wait_bits(word: &AtomicU32, value: u32, bits: u32) {
    // SAFETY: word lives through the call. FUTEX_WAIT_BITSET, private.
    _ = unsafe { sc!(futex, word.as_ptr(), 9 | 128, value, 0, 0, bits) };
}

/// Wakes all that wait with one of `bits`.
pub fn futex_wake_bits(word: &AtomicU32, bits: u32) {
    // SAFETY: word is only an address here. FUTEX_WAKE_BITSET, private.
    _ = unsafe { sc!(futex, word.as_ptr(), 10 | 128, i32::MAX, 0, 0, bits) };
}

/// As [`futex_wait`] on memory that is shared between processes.
pub fn futex_wait_shared(word: &AtomicU32, value: u32, timeout_ns: u64) {
    let ts = [timeout_ns / 1_000_000_000, timeout_ns % 1_000_000_000];
    // SAFETY: word and ts live through the call.
    _ = unsafe { sc!(futex, word.as_ptr(), 0, value, ts.as_ptr()) };
}

/// As [`futex_wake`] on memory that is shared between processes.
pub fn futex_wake_shared(word: &AtomicU32) {
    // SAFETY: word is only an address here.
    _ = unsafe { sc!(futex, word.as_ptr(), 1, i32::MAX) };
}

/// poll(2) for input on one descriptor; `timeout_ms` as there.
pub fn readable(fd: i32, timeout_ms: i32) -> bool {
    let mut p = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: p is one pollfd.
    unsafe { sc!(poll, &raw mut p, 1, timeout_ms) }.is_ok_and(|n| n > 0)
}

/// getpid(2).
pub fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { sc!(getpid) }.unwrap_or(0) as i32
}

/// gettid(2).
pub fn gettid() -> i32 {
    // SAFETY: no arguments.
    unsafe { sc!(gettid) }.unwrap_or(0) as i32
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let mut ts = [0u64; 2];
    // SAFETY: ts is a timespec.
    _ = unsafe { sc!(clock_gettime, 1, ts.as_mut_ptr()) };
    ts[0] * 1_000_000_000 + ts[1]
}

/// A descriptor that closes itself.
pub struct Fd(pub i32);

impl Drop for Fd {
    fn drop(&mut self) {
        crate::conn::disown(self.0);
        // SAFETY: ours.
        _ = unsafe { sc!(close, self.0) };
    }
}

/// open(2) with O_CLOEXEC.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    // SAFETY: path is a C string.
    unsafe { sc!(open, path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.map(|fd| Fd(fd as i32))
}

/// Reads until the end of file.
pub fn read_file(path: &CStr) -> Result<Vec<u8>> {
    read_all(&open(path, libc::O_RDONLY, 0)?)
}

/// Reads an open file until its end.
pub fn read_all(fd: &Fd) -> Result<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(4096);
    loop {
        if out.capacity() - out.len() < 4096 {
            out.reserve(out.len().max(4096));
        }
        let spare = out.spare_capacity_mut();
        // SAFETY: spare is writable for its length; set_len covers what the kernel wrote.
        unsafe {
            let n = sc!(read, fd.0, spare.as_mut_ptr(), spare.len())?;
            if n == 0 {
                return Ok(out);
            }
            let len = out.len() + n;
            out.set_len(len);
        }
    }
}

/// readlink(2), at most 4,095 bytes.
pub fn read_link(path: &CStr) -> Result<String> {
    let mut buf = [0u8; 4096];
    // SAFETY: buf is writable for its length.
    let n = unsafe { sc!(readlink, path.as_ptr(), buf.as_mut_ptr(), buf.len()) }?;
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}

/// stat(2), following links.
pub fn stat(path: &CStr) -> Result<libc::stat> {
    // SAFETY: all zeros is a stat.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: st is writable.
    unsafe { sc!(stat, path.as_ptr(), &raw mut st) }?;
    Ok(st)
}

/// fstat(2).
pub fn fstat(fd: i32) -> Result<libc::stat> {
    // SAFETY: all zeros is a stat.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: st is writable.
    unsafe { sc!(fstat, fd, &raw mut st) }?;
    Ok(st)
}

/// The numeric names in a folder of /proc (`/proc/self/task`, `/proc/self/fd`), but for `.` and `..`.
pub fn numbers_in(path: &CStr) -> Result<Vec<i32>> {
    let mut out = Vec::new();
    let own = each_in(path, |_, name| {
        if let Some(v) = core::str::from_utf8(name).ok().and_then(|s| s.parse().ok()) {
            out.push(v);
        }
    })?;
    out.retain(|&x| x != own || !path.to_bytes().ends_with(b"/fd"));
    Ok(out)
}

/// Inode and name of each entry of a folder; the descriptor by which it was read, closed by now.
pub fn each_in(path: &CStr, mut entry: impl FnMut(u64, &[u8])) -> Result<i32> {
    let fd = open(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let mut buf = [0u8; 8192];
    loop {
        // SAFETY: buf is writable for its length.
        let n = unsafe { sc!(getdents64, fd.0, buf.as_mut_ptr(), buf.len()) }?;
        if n == 0 {
            return Ok(fd.0);
        }
        let mut at = 0;
        while at < n {
            // struct linux_dirent64: ino u64, off u64, reclen u16, type u8, name.
            let reclen = usize::from(u16::from_ne_bytes([buf[at + 16], buf[at + 17]]));
            let name = &buf[at + 19..at + reclen];
            let name = &name[..name.iter().position(|&c| c == 0).unwrap_or(name.len())];
            entry(buf[at..at + 8].try_into().map_or(0, u64::from_ne_bytes), name);
            at += reclen;
        }
    }
}

/// Leaves the descriptor table that the calling thread shares, for one of its own that holds those of `keep` alone.
///
/// # Errors
/// The kernel refuses; the table is shared as before.
pub fn own_table(keep: &mut [i32]) -> Result<()> {
    /// Nothing that is to be closed is copied first.
    const CLOSE_RANGE_UNSHARE: usize = 2;
    keep.sort_unstable();
    let ends = keep.iter().map(|&fd| (fd, fd + 1)).chain([(i32::MAX, 0)]);
    let (mut from, mut flags) = (0, CLOSE_RANGE_UNSHARE);
    for (kept, next) in ends {
        if from < kept {
            // SAFETY: closes in this thread's own table, from the first call on.
            match unsafe { sc!(close_range, from, kept - 1, flags) } {
                Ok(_) => flags = 0,
                // Before Linux 5.9.
                Err(Errno::ENOSYS) => return own_table_by_hand(keep),
                Err(e) => return Err(e),
            }
        }
        from = next;
    }
    Ok(())
}

fn own_table_by_hand(keep: &[i32]) -> Result<()> {
    // SAFETY: this thread's table becomes its own; what is closed is then its own copy.
    unsafe {
        sc!(unshare, libc::CLONE_FILES)?;
        for fd in numbers_in(c"/proc/thread-self/fd")? {
            if keep.binary_search(&fd).is_err() {
                _ = sc!(close, fd);
            }
        }
    }
    Ok(())
}

/// An anonymous private mapping.
pub fn map_anonymous(len: usize, extra_flags: i32) -> Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra_flags;
    // SAFETY: a new mapping.
    unsafe { sc!(mmap, 0, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1i64 as usize, 0) }.map(|p| p as *mut u8)
}

/// Fills with random bytes (getrandom(2)).
pub fn random(buf: &mut [u8]) {
    let mut done = 0;
    while done < buf.len() {
        // SAFETY: writable for the rest.
        match unsafe { sc!(getrandom, buf[done..].as_mut_ptr(), buf.len() - done, 0) } {
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// write(2) of a line to stderr: for what a person must see.
pub fn complain(line: &str) {
    let stderr = standard_error();
    let mut text = Vec::with_capacity(line.len() + 14);
    text.extend_from_slice(b"slackwater: ");
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    // SAFETY: readable for its length.
    _ = unsafe { sc!(write, stderr.as_ref().map_or(2, |fd| fd.0), text.as_ptr(), text.len()) };
}

/// The program's standard error, for the checkpoint thread that has a descriptor table of its own; None: descriptor 2 is it.
fn standard_error() -> Option<Fd> {
    if !(crate::init::is_bare() && crate::relay::is_listener()) {
        return None;
    }
    // SAFETY: new descriptors. Access to one's own process is always granted (pidfd_getfd(2), Linux 5.6).
    unsafe {
        let process = Fd(sc!(pidfd_open, getpid(), 0).ok()? as i32);
        sc!(pidfd_getfd, process.0, 2, 0).ok().map(|fd| Fd(fd as i32))
    }
}
