//! The namespaces that a restart runs in: pid, IPC and mount, and for those without privilege a user namespace.
//!
//! In a pid namespace of its own each process and thread can take its old number, whatever runs on this machine, and two
//! copies of one image do not meet; System V IPC objects take theirs in an IPC namespace. Its /proc must be its own, so the mounts are as well; later mounts of the outside still
//! come in (slave propagation). In the user namespace our own user and group keep their numbers, and no others exist.
#![allow(unsafe_code)] // mount(2)
use crate::sys;
use anyhow::{Context, Result, anyhow};
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

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
    match sys::fork_as(flags, None, libc::SIGCHLD) {
        Ok(0) => return Ok(Side::Init(false)),
        Ok(pid) => return Ok(Side::Outer(pid)),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        Err(e) => return Err(e).context("no new namespaces for processes, IPC and mounts (clone3)"),
    }
    match sys::fork_as(flags | libc::CLONE_NEWUSER as u64, None, libc::SIGCHLD) {
        Ok(0) => Ok(Side::Init(true)),
        Ok(pid) => Ok(Side::Outer(pid)),
        Err(e) => Err(refused(&e)),
    }
}

/// What to do when the kernel permits no user namespace.
fn refused(e: &io::Error) -> anyhow::Error {
    anyhow!(
        "no user namespace can be made here ({e}), and a restart without CAP_SYS_ADMIN needs one to give processes their old ids: \
         let the administrator permit it (sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone above 0, \
         kernel.apparmor_restrict_unprivileged_userns=0; in a container, a seccomp profile that allows it; inside a chroot there are none), or restart with CAP_SYS_ADMIN, as root has it on a machine of \
         its own, and in a container only where it is granted (docker: --cap-add SYS_ADMIN --security-opt apparmor=unconfined)"
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
    let slave = |point| mount(c"none", point, None, libc::MS_REC | libc::MS_SLAVE);
    slave(c"/")
        // In a chroot(2) the root may be no mount point; then what we put on /proc must stay with us.
        .or_else(|e| if e.raw_os_error() == Some(libc::EINVAL) { slave(c"/proc") } else { Err(e) })
        .map_err(|e| if in_user_namespace { refused(&e) } else { anyhow!("making the mounts our own: {e}") })?;
    let covers = covers(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    mount(c"proc", c"/proc", Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC).map_err(|e| {
        anyhow!(
            "no /proc of our own can be mounted: {e}; parts of /proc are probably hidden, as containers do: \
             run the container with an unmasked /proc (docker: --security-opt systempaths=unconfined), or restart with CAP_SYS_ADMIN of the machine, not of a user namespace"
        )
    })?;
    for (path, copy) in &covers {
        copy.put(path);
    }
    Ok(())
}

/// A copy of a mount, attached nowhere yet.
struct Detached(OwnedFd);

impl Detached {
    fn copy(path: &CStr) -> Option<Self> {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_NO_AUTOMOUNT as libc::c_uint;
        // SAFETY: a C string; the answer is a descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        // SAFETY: new, and nobody else's.
        (fd >= 0).then(|| Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Attaches it. What it covered may not exist in this /proc: then there is nothing to cover.
    fn put(&self, path: &CStr) {
        let (from, to) = (self.0.as_raw_fd(), libc::AT_FDCWD);
        // SAFETY: C strings and our descriptor.
        unsafe {
            libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, path.as_ptr(), libc::MOVE_MOUNT_F_EMPTY_PATH);
        }
    }
}

/// Copies of what is mounted over single files of /proc (lxcfs does that: a container's own cpuinfo and meminfo). Not of /proc's own
/// parts, nor below /proc/sys: containers mount those once more to make them read-only, and a restart must write there.
fn covers(mountinfo: &str) -> Vec<(CString, Detached)> {
    let mut all = Vec::new();
    for path in covered(mountinfo) {
        let Ok(path) = CString::new(path) else { continue };
        if let Some(copy) = Detached::copy(&path) {
            all.push((path, copy));
        }
    }
    all
}

/// The mount points that [`covers`] means, from proc_pid_mountinfo(5).
fn covered(mountinfo: &str) -> Vec<&str> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            Some((front.split(' ').nth(4)?, back.split(' ').next()?))
        })
        .filter(|(path, kind)| path.starts_with("/proc/") && !path.starts_with("/proc/sys") && *kind != "proc")
        .map(|(path, _)| path)
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_of_proc() {
        let text = "23 29 0:22 / /proc rw - proc proc rw\n\
                    40 23 0:35 /proc/cpuinfo /proc/cpuinfo rw,nosuid shared:7 - fuse.lxcfs lxcfs rw\n\
                    41 23 0:22 /sys /proc/sys ro - proc proc rw\n\
                    42 23 0:36 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw\n\
                    43 29 0:37 / /process rw - tmpfs tmpfs rw\n";
        assert_eq!(covered(text), ["/proc/cpuinfo"]);
    }
}
