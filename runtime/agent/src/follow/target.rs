//! Can a program take the agent in? It must be linked dynamically for our machine, and the loader must not distrust its
//! environment (set-uid, set-gid, file capabilities).
use crate::sys;
use alloc::{ffi::CString, string::String, vec, vec::Vec};
use core::ffi::{CStr, c_char};

/// What a program file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// It will join.
    Inside,
    /// It cannot, for this reason.
    Outside(&'static str),
    /// It cannot be read, or is no program: exec itself will say.
    Unknown,
}

/// Interpreters of interpreters, as far as execve(2) follows them.
const DEPTH: u32 = 5;

/// Looks at the file that execve(2) would run.
pub fn examine(path: &CStr) -> Target {
    examine_to(path, DEPTH)
}

fn examine_to(path: &CStr, depth: u32) -> Target {
    let Ok(fd) = sys::open(path, libc::O_RDONLY, 0) else { return Target::Unknown };
    let Ok(st) = sys::fstat(fd.0) else { return Target::Unknown };
    if st.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Target::Unknown;
    }
    let mut head = [0u8; 256];
    // SAFETY: writable for its length.
    let Ok(n) = (unsafe { sc!(pread64, fd.0, head.as_mut_ptr(), head.len(), 0) }) else { return Target::Unknown };
    let head = &head[..n];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty());
        // Set-uid bits of scripts have no effect.
        return match words.next().and_then(|w| CString::new(w).ok()) {
            Some(interpreter) if depth > 0 => examine_to(&interpreter, depth - 1),
            _ => Target::Unknown,
        };
    }
    if !head.starts_with(b"\x7fELF") || head.len() < 64 {
        return Target::Unknown;
    }
    if distrusted(fd.0, &st) {
        return Target::Outside("has set-uid, set-gid or capability bits");
    }
    let machine = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if head[4] != 2 || half(18) != machine {
        return Target::Outside("is for another machine");
    }
    if has_interpreter(fd.0, head) { Target::Inside } else { Target::Outside("is linked statically") }
}

/// Will the loader ignore LD_PRELOAD (AT_SECURE)?
fn distrusted(fd: i32, st: &libc::stat) -> bool {
    // SAFETY: no arguments.
    let (uid, gid) = unsafe { (sc!(geteuid).unwrap_or(0) as u32, sc!(getegid).unwrap_or(0) as u32) };
    let set_gid = libc::S_ISGID | libc::S_IXGRP;
    if st.st_mode & libc::S_ISUID != 0 && st.st_uid != uid || st.st_mode & set_gid == set_gid && st.st_gid != gid {
        return true;
    }
    // SAFETY: a C string; no buffer.
    let size = unsafe { sc!(fgetxattr, fd, c"security.capability".as_ptr(), 0, 0) };
    uid != 0 && size.is_ok_and(|n| n > 0)
}

/// Is there a PT_INTERP among the program headers?
fn has_interpreter(fd: i32, head: &[u8]) -> bool {
    let mut at = [0u8; 8];
    at.copy_from_slice(&head[32..40]);
    let (size, count) =
        (usize::from(u16::from_le_bytes([head[54], head[55]])), usize::from(u16::from_le_bytes([head[56], head[57]])));
    let mut table = vec![0u8; size * count];
    // SAFETY: writable for its length.
    let n = unsafe { sc!(pread64, fd, table.as_mut_ptr(), table.len(), u64::from_le_bytes(at)) }.unwrap_or(0);
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    size >= 4 && table[..n].chunks_exact(size).any(|header| header.starts_with(&PT_INTERP))
}

/// The file that execvp(3) and posix_spawnp(3) would find for `name`; None: none.
///
/// # Safety
/// `environ` is NULL or a NULL-terminated array of C strings.
pub unsafe fn search(name: &CStr, mut environ: *const *const c_char) -> Option<CString> {
    if name.to_bytes().contains(&b'/') {
        return Some(name.into());
    }
    let mut path: &[u8] = b"/bin:/usr/bin";
    // SAFETY: the caller's.
    unsafe {
        while !environ.is_null() && !(*environ).is_null() {
            if let Some(value) = CStr::from_ptr(*environ).to_bytes().strip_prefix(b"PATH=") {
                path = value;
                break;
            }
            environ = environ.add(1);
        }
    }
    path.split(|b| *b == b':').find_map(|folder| {
        let mut full = Vec::with_capacity(folder.len() + name.to_bytes().len() + 2);
        full.extend_from_slice(folder);
        if !folder.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(name.to_bytes());
        let full = CString::new(full).ok()?;
        // SAFETY: a C string.
        unsafe { sc!(faccessat, libc::AT_FDCWD, full.as_ptr(), libc::X_OK) }.is_ok().then_some(full)
    })
}

/// For messages and /proc.
pub fn descriptor_path(fd: i32) -> CString {
    let path: String = alloc::format!("/proc/self/fd/{fd}");
    CString::new(path).unwrap_or_default()
}
