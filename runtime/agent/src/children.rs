//! The children of a stopped process: zombies, which are part of it, and strays, which are part of nothing.
//!
//! A child that a clone(2) made which is no fork, or came by no wrapper of ours, has no checkpoint thread, so no checkpoint would have it, and its
//! parent would be told after a restart that it has no such child. It is known by what it lacks: it has our library in its
//! memory, and one thread alone. A program which such a child has just executed looks the same until it has joined, so the
//! coordinator asks again for a while. Rule: runs while all threads stand, for strays must be told from the children of later.
use crate::{
    sys,
    text::{dec, signed},
};
use alloc::{ffi::CString, format, string::String, vec::Vec};
use slackwater_image::meta::Zombie;
use slackwater_protocol::names;

/// What was found.
pub struct Children {
    /// Ended, and not waited for.
    pub zombies: Vec<Zombie>,
    /// Alive, one of our processes' kind, and not in the computation.
    pub stray: Option<i32>,
}

impl Children {
    /// # Errors
    /// There is a stray: who, and what to do.
    pub fn followed(&self) -> Result<(), String> {
        let Some(pid) = self.stray else { return Ok(()) };
        Err(format!(
            "process {pid}, a child of process {}, was made by a clone(2) that shares memory, files or handlers with it, \
             begins in other namespaces, or was made by no library function (or it is about to join): it is not part of \
             the computation and would be lost; make it by fork(3) or posix_spawn(3)",
            sys::getpid()
        ))
    }
}

/// /proc/PID/stat of a child; of one that is on its way out (it may have left the computation already) once it is a zombie:
/// else it would be neither a process nor a zombie of the image, and its parent would wait for nobody.
fn settled(path: &core::ffi::CStr) -> Option<Vec<u8>> {
    const PF_EXITING: u64 = 4;
    /// An exit that hangs (in a driver's close) must not hold the world: the child is left out then.
    const PATIENCE_NS: u64 = 1_000_000_000;
    let end = sys::now_ns() + PATIENCE_NS;
    loop {
        let stat = sys::read_file(path).ok()?;
        let close = stat.iter().rposition(|&c| c == b')')?;
        let fields: Vec<&[u8]> = stat[close + 2..].split(|&c| c == b' ').collect();
        // Fields 3 state, 9 flags.
        if matches!(fields.first()?, [b'Z' | b'X']) || dec(fields.get(6)?) & PF_EXITING == 0 || sys::now_ns() > end {
            return Some(stat);
        }
        // SAFETY: no arguments.
        _ = unsafe { sc!(sched_yield) };
    }
}

/// Asks each of `tids` for its children.
pub fn look(tids: &[i32]) -> Children {
    let mut found = Children { zombies: Vec::new(), stray: None };
    let mut info = [0u8; 128];
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: info is a siginfo.
    if unsafe { sc!(waitid, libc::P_ALL, 0, info.as_mut_ptr(), flags, 0) }.is_err() {
        // No children at all.
        return found;
    }
    for tid in tids {
        let Ok(path) = CString::new(format!("/proc/self/task/{tid}/children")) else { continue };
        let Ok(text) = sys::read_file(&path) else { continue };
        for pid in text.split(|&c| c == b' ').filter(|p| !p.is_empty()) {
            let pid = dec(pid) as i32;
            let Ok(path) = CString::new(format!("/proc/{pid}/stat")) else { continue };
            let Some(stat) = settled(&path) else { continue };
            let Some(close) = stat.iter().rposition(|&c| c == b')') else { continue };
            let f: Vec<&[u8]> = stat[close + 2..].trim_ascii_end().split(|&c| c == b' ').collect();
            // Fields 3 state, 5 pgrp, 6 session, 20 threads, 38 exit_signal, 52 exit_code.
            if f.len() <= 49 {
                continue;
            }
            let field = |n: usize| signed(f[n - 3]) as i32;
            if f[0] == b"Z" {
                if field(38) != 0 {
                    found.zombies.push(Zombie { pid, pgid: field(5), sid: field(6), status: field(52) });
                }
            } else if field(20) == 1 && has_library(pid) {
                found.stray = Some(pid);
            }
        }
    }
    found.zombies.sort_by_key(|z| z.pid);
    found.zombies.dedup_by_key(|z| z.pid);
    found
}

/// Is our library mapped in it? One that may not be looked at is somebody else's.
fn has_library(pid: i32) -> bool {
    let Ok(path) = CString::new(format!("/proc/{pid}/maps")) else { return false };
    let text = sys::read_file(&path).unwrap_or_default();
    text.split(|&c| c == b'\n').any(|line| line.ends_with(names::LIBRARY.as_bytes()))
}
