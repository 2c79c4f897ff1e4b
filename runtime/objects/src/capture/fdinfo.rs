//! /proc/self/fdinfo: `key:\tvalue` lines (Documentation/filesystems/proc.rst, 3.8).
use alloc::vec::Vec;

use slackwater_socket::sys;

use super::{CaptureError, Result};
use crate::model::{Lock, LockClass};

/// The text for one descriptor.
pub fn read(fd: i32) -> Result<Vec<u8>> {
    sys::read_file(&sys::proc_path("/proc/self/fdinfo/", fd))
        .map_err(|e| CaptureError::call(fd, "reading /proc/self/fdinfo", e))
}

/// Value of the first line that starts with `key:`, without blanks around it.
pub fn value<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    text.split(|&b| b == b'\n')
        .find_map(|line| Some(line.strip_prefix(key.as_bytes())?.strip_prefix(b":")?.trim_ascii()))
}

/// A value in decimal.
pub fn number(text: &[u8], key: &str) -> Option<u64> {
    sys::decimal(value(text, key)?)
}

/// Blank-separated words of a line.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty())
}

/// The `lock:` lines: `lock: 1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF`.
pub fn locks(text: &[u8]) -> Vec<Lock> {
    text.split(|&b| b == b'\n')
        .filter_map(|line| {
            let words: Vec<&[u8]> = words(line.strip_prefix(b"lock:")?).collect();
            // Waiters for a lock are shown with an arrow; they are threads in a system call that is made again.
            let [_, class, kind, mode, _, _, start, end] = words.as_slice() else { return None };
            let class = match *class {
                b"FLOCK" => LockClass::Flock,
                b"POSIX" => LockClass::Posix,
                b"OFDLCK" => LockClass::Ofd,
                b"LEASE" if *kind == b"ACTIVE" => LockClass::Lease,
                _ => return None,
            };
            Some(Lock {
                class,
                write: *mode == b"WRITE",
                start: sys::decimal(start)?,
                end: if *end == b"EOF" { None } else { Some(sys::decimal(end)?) },
            })
        })
        .collect()
}
