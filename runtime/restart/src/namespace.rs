//! The namespaces that a restart runs in: pid, IPC and mount, and for those without privilege a user namespace.
//!
//! In a pid namespace of its own each process and thread can take its old number, whatever runs on this machine, and two
//! copies of one image do not meet; System V IPC objects take theirs in an IPC namespace. Its /proc must be its own, so the mounts are as well; later mounts of the outside still
//! come in (slave propagation). In the user namespace our own user and group keep their numbers, and no others exist.
#![allow(unsafe_code)]
use crate::sys;
use anyhow::{Context, Result, anyhow};
use std::ffi::CStr;
use std::fs;
use std::io;

/// Which process we are after [`enter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller; init's pid as seen here.
    Outer(i32),
    /// Process 1 of the new namespace; true: in a user namespace.
    Init(bool),
}

/// Forks process 1 of new namespaces. It has yet to call [`settle`].
pub fn enter() -> Result<Side> {
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWNS) as u64;
    match sys::fork_as(flags, None) {
        Ok(0) => return Ok(Side::Init(false)),
        Ok(pid) => return Ok(Side::Outer(pid)),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        Err(e) => return Err(e).context("no new namespaces for processes, IPC and mounts (clone3)"),
    }
    match sys::fork_as(flags | libc::CLONE_NEWUSER as u64, None) {
        Ok(0) => Ok(Side::Init(true)),
        Ok(pid) => Ok(Side::Outer(pid)),
        Err(e) => Err(refused(&e)),
    }
}

/// What to do when the kernel permits no user namespace.
fn refused(e: &io::Error) -> anyhow::Error {
    anyhow!(
        "this system lets an ordinary user make no user namespace ({e}), and a restart needs one to give processes their old ids: \
         let the administrator permit it (sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone above 0, \
         kernel.apparmor_restrict_unprivileged_userns=0; in a container, a seccomp profile that allows it), or restart as root"
    )
}

/// In process 1: user and group numbers, mounts, /proc.
pub fn settle(in_user_namespace: bool, uid: u32, gid: u32) -> Result<()> {
    if in_user_namespace {
        let map = |file: &str, text: String| fs::write(format!("/proc/self/{file}"), text).map_err(|e| refused(&e));
        map("setgroups", "deny".into())?;
        map("uid_map", format!("{uid} {uid} 1"))?;
        map("gid_map", format!("{gid} {gid} 1"))?;
    }
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_SLAVE)
        .map_err(|e| if in_user_namespace { refused(&e) } else { anyhow!("making the mounts our own: {e}") })?;
    mount(c"proc", c"/proc", Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC).map_err(|e| {
        anyhow!(
            "no /proc of our own can be mounted: {e}; parts of /proc are probably hidden, as containers do: \
             run the container with an unmasked /proc (docker: --security-opt systempaths=unconfined), or restart as root"
        )
    })
}

fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(core::ptr::null(), CStr::as_ptr);
    // SAFETY: C strings; no data.
    sys::check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, core::ptr::null()) }).map(drop)
}

/// Numbers for later processes begin at `first`: none of them may be one that a restored thread is about to take.
pub fn next_pid(first: i32) -> Result<()> {
    fs::write("/proc/sys/kernel/ns_last_pid", format!("{}", first - 1)).context(
        "setting the next process number (/proc/sys/kernel/ns_last_pid; the kernel needs CONFIG_CHECKPOINT_RESTORE)",
    )
}

/// The end of process numbers.
pub fn pid_max() -> i32 {
    fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|t| t.trim().parse().ok()).unwrap_or(32768)
}
